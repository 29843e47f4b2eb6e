"""From a docstring to prose: a summary that reads like a query and a body, with mark-up and code
taken out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MAX_BODY = 1000
"""Characters at which a body is cut, between words."""
MAX_READ = 6 * MAX_BODY
"""Characters of a docstring that are looked at."""
MAX_SUMMARY = 300
MIN_BODY_WORDS = 12
MIN_SUMMARY_WORDS = 3

_ROLE = re.compile(r":[A-Za-z][\w:+.-]*:`(?:[^`<]*<)?([~!]?)([^`>]*)>?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?")
_MARKDOWN_LINK = re.compile(r"!?\[([^\]\n]*)\]\((?:[^()\s]|\([^()]*\))*\)")
_REFERENCE = re.compile(r"\[#?[\w.-]{1,20}\]_|`([^`\n]+)`__?(?!\w)")
_QUOTED = re.compile(r"`+([^`\n]*)`+")
_BOLD = re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*\n]+?)(?<=\S)\*{1,2}(?![\w*])")
_TAG = re.compile(r"</?[a-zA-Z][\w-]*(?:\s[^<>\n]*)?/?>")
_URL = re.compile(r"<?\bhttps?://\S+")
_FIELD = re.compile(
    r"^\s*:(?:param|parameter|arg|argument|key|keyword|ivar|cvar|var|raises?|except|exception)\s+(?:[\w\[\],"
    r" .|]+\s)?\s*([*\w.]+)\s*:"
)
_FIELD_ALONE = re.compile(r"^\s*:(returns?|yields?)(?:\s[^:]*)?:", re.IGNORECASE)
_FIELD_TYPE = re.compile(r"^\s*:(?:type\b[^:]*|rtype|vartype\b[^:]*|meta\b[^:]*):")
_UNDERLINE = re.compile(r"^\s*([=\-~^*#\"'+`_.:])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^(\s*)\.\.\s+(?:\[[^\]]*\]|_[^:]*:|\|[^|]*\||([\w:+-]+?)\s?::?)\s*(.*)$")
_DROPPED_DIRECTIVES_LIST = """
math code code-block sourcecode ipython image figure plot testcode testoutput testsetup doctest
highlight jupyter-execute versionadded versionchanged versionremoved deprecated list-table
csv-table table autosummary autoclass automodule autofunction toctree index include raw
currentmodule module moduleauthor sectionauthor codeauthor minigallery legacy inheritance-diagram
graphviz parsed-literal literalinclude only rubric
"""
_DROPPED_DIRECTIVES = frozenset(_DROPPED_DIRECTIVES_LIST.split())
_CODE_HEADINGS = re.compile(
    r"^\s*(?:#+\s*)?(?:examples?|usage|example usage|sample usage|see"
    r" also|references|doctests?|footnotes)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^\s*(?:#+\s*)?([A-Z][\w ]{2,30}):{0,2}\s*$")
_TABLE = re.compile(
    r"^\s*(?:args?|arguments?|parameters?|params?|returns?|yields?|raises?|inputs?|outputs?|attributes?)\s*(?::|$)|"
    r"^[*\w]+\s*(?:\(.*\))?\s*:(?:\s|$)",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"^[\w.]+\s*(?:\[[^\]]*\])?\([^)]*\)?[^.]*$")
_WORD = re.compile(r"[A-Za-z]{2,}")
_COMMON_LIST = """
a an the of to in on for and or is are be as by with from that this if it not when which at into
can will has have all each given new one used using return returns set get create
"""
_COMMON = frozenset(_COMMON_LIST.split())
_PHRASES = (
    "copyright",
    "licensed under",
    "all rights reserved",
    "spdx-",
    "help(type(self))",
    "do not edit",
    "see base class",
    "see parent class",
)
_BOILERPLATE = re.compile(
    r"return (?:repr|str|self|hash|iter|len|value|key)\b.{0,12}$|implement"
    r" \w+\(self|auto-?generated|todo|fixme|"
    r"(?:inherited|overrid(?:e|es|den)|deprecated|alias|internal|private|see|same as|refer"
    r" to|noqa|type:|pylint|coding[:=]|usage:|"
    r"parameters?|args?|arguments?|returns?|raises?|yields?|examples?|notes?|attributes?|warnings?)\b[:.]?\s*(?:[\w.]+\.?)?$",
    re.IGNORECASE,
)


class Prose(NamedTuple):
    """A docstring's first paragraph and the rest of it; either may be empty."""

    summary: str
    body: str


def prose(docstring: str) -> Prose:
    """Split a docstring into summary and body of plain text.

    Mark-up loses its signs; code, doctests, tables, pictures, formulas and version notes go. The
    summary is the first paragraph that is no signature, cut after its first sentences at
    `MAX_SUMMARY` characters. The body is the rest, cut at `MAX_BODY`. `docstring`: text as
    `ast.get_docstring` gives it (indentation removed). Returns summary in one line, and body with
    its line breaks. Parts that are no English-like text come back empty.
    """
    lines = _plain_lines(docstring)
    start = next((i for i, line in enumerate(lines) if line), len(lines))
    end = _paragraph_end(lines, start)
    first = " ".join(lines[start:end])
    if end < len(lines) and (" " not in first or ("(" in first and _SIGNATURE.match(first))):
        start = next((i for i in range(end, len(lines)) if lines[i]), len(lines))
        end = _paragraph_end(lines, start)
    if end > start and _TABLE.match(lines[start]):
        end = start
    summary, left_over = _cut_summary(" ".join(lines[start:end]))
    body = re.sub(r"\n{2,}", "\n", "\n".join([left_over, *lines[end:]])).strip()
    return Prose(
        summary if is_prose(summary, MIN_SUMMARY_WORDS) else "",
        cut(body, MAX_BODY) if is_prose(body, MIN_BODY_WORDS) else "",
    )


def is_prose(text: str, words: int) -> bool:
    """Say whether a text reads like English rather than code, a table or boilerplate.

    Returns True if it does.
    """
    pieces = text[:MAX_BODY].split()
    result = _WORD.findall(" ".join(pieces))
    if (
        len(result) < words
        or _BOILERPLATE.match(text)
        or any(phrase in text[:400].lower() for phrase in _PHRASES)
    ):
        return False
    common = sum(word in _COMMON for word in result)
    return (
        sum(map(len, result)) >= 0.7 * sum(map(len, pieces)) and common >= (len(result) + 4) // 12
    )


def cut(text: str, characters: int) -> str:
    """Cut a text between words. `characters`: most characters of the result."""
    if len(text) <= characters:
        return text
    shown = text[: characters + 1].rsplit(None, 1)[0]
    return shown[:characters].rstrip()


def _paragraph_end(lines: list[str], start: int) -> int:
    end = start
    while (
        end < len(lines)
        and lines[end]
        and not (end > start and _HEADING.match(lines[end]) and lines[end].endswith(":"))
    ):
        end += 1
    return end


def _cut_summary(text: str) -> tuple[str, str]:
    """Keep whole sentences up to the limit; the rest belongs to the body."""
    text = " ".join(text.split())
    if len(text) <= MAX_SUMMARY:
        return text.rstrip(":"), ""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text[:MAX_SUMMARY])]
    place = ends[-1] if ends else len(cut(text, MAX_SUMMARY))
    return text[:place].rstrip(), text[place:].lstrip()


def _plain_lines(docstring: str) -> list[str]:
    text = unicodedata.normalize("NFC", docstring[:MAX_READ]).replace("\0", "").replace("\\n", " ")
    lines: list[str] = []
    skip_deeper_than: int | None = None
    in_fence = in_doctest = False
    source = text.expandtabs(4).split("\n")
    for number, line in enumerate(source):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith("```"):
            in_fence = not in_fence
            continue
        if in_fence:
            continue
        if bare.startswith((">>>", "In [")):
            in_doctest = True
            continue
        if in_doctest:
            in_doctest = bool(bare)
            continue
        if skip_deeper_than is not None:
            if not bare or indent > skip_deeper_than:
                continue
            skip_deeper_than = None
        following = source[number + 1] if number + 1 < len(source) else ""
        if _CODE_HEADINGS.match(bare):
            underlined = bool(_UNDERLINE.match(following))
            skip_deeper_than = indent if not underlined else None
            if underlined:
                lines.append("\f")
            continue
        if directive := _DIRECTIVE.match(line):
            if directive[2] is None or directive[2] in _DROPPED_DIRECTIVES:
                skip_deeper_than = indent
                continue
            line = directive[3]
        if _UNDERLINE.match(line) or _FIELD_TYPE.match(line):
            if lines and _HEADING.match(lines[-1]) and _UNDERLINE.match(line):
                lines[-1] = "\v" + lines[-1]
            continue
        if line.rstrip().endswith("::"):
            skip_deeper_than = indent
            line = line[: line.rindex("::")] + ":"
        lines.append(_inline(line))
    return _without_code_sections(lines)


def _without_code_sections(lines: list[str]) -> list[str]:
    """Drop what stands under an underlined heading such as Examples (marked form feed) until the
    next one (marked tab).
    """
    lines_left: list[str] = []
    dropping = False
    for line in lines:
        if line == "\f":
            dropping = True
        elif line.startswith("\v"):
            dropping = False
            lines_left += ["", line[1:].strip()]
        elif not dropping:
            lines_left.append(line.strip())
    return lines_left


def _inline(line: str) -> str:
    if ":" in line:
        line = _FIELD.sub(r"\1:", line)
        line = _FIELD_ALONE.sub(lambda match: match[1].capitalize() + ":", line)
    if "`" in line or "_" in line or "]" in line:
        line = _ROLE.sub(
            lambda match: match[2].rsplit(".", 1)[-1] if match[1] == "~" else match[2], line
        )
        line = _LINK.sub(r"\1", line)
        line = _MARKDOWN_LINK.sub(r"\1", line)
        line = _REFERENCE.sub(lambda match: match[1] or "", line)
        line = _QUOTED.sub(r"\1", line)
    if "*" in line:
        line = _BOLD.sub(r"\1", line)
    if "<" in line or "://" in line:
        line = _URL.sub("", _TAG.sub("", line))
    return " ".join(line.split())
