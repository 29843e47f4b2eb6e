"""The commands and how their errors end."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from taskdistill.cli.json_result import Checked
from taskdistill.errors import BadInput, TruncationWarning, WorkFailed
from taskdistill.io.protection import spell
from taskdistill.registry import Registry

COMMANDS: Registry[Callable[[typer.Typer], None]] = Registry(
    "taskdistill.cli.commands", "register", noun="command module"
)
"""Each module of commands/ registers what it has."""

LISTED = (
    "train",
    "adapt",
    "encode",
    "evaluate",
    "ablate",
    "compare-teachers",
    "needle",
    "search",
    "migrate",
    "tune",
    "serve",
    "export",
    "info",
    "data",
    "mine",
    "merge",
    "shrink",
)
"""The order of `--help`, as one meets the commands; a module that is not named comes last."""

RENAMED_COMMANDS = {"probe": "compare-teachers"}
RENAMED_OPTIONS = {
    "evaluate": {"--set": "--eval-set", "--seen": "--train-data"},
    "compare-teachers": {"--set": "--eval-set", "--limit": "--max-texts"},
    "merge": {"--set": "--eval-set"},
    "shrink": {"--set": "--eval-set"},
    "index": {"--rescore": "--rescore-precision"},
    "tiers": {"--rescore": "--rescore-precision"},
    "data": {"--limit": "--max-documents"},
}
"""Command to its old spellings, which are understood with a warning until version 0.3."""


class Commands(TyperGroup):
    """The commands; the name of one may be two words, such as `search tune` beside `search INDEX
    QUERY`.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that arguments begin with: its name, the command, and what is left of
        the arguments.
        """
        two = " ".join(args[:2])
        return (
            (two, self.commands[two], args[2:])
            if two in self.commands
            else super().resolve_command(ctx, args)
        )


app = typer.Typer(
    name="taskdistill",
    cls=Commands,
    help="Distil a text-embedding teacher into a compact student with task adapters, and use it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_debug = False
_python_shows = warnings.showwarning
_Usage: Any = typer.BadParameter.__mro__[2]
"""The base of every usage error; typer carries its own copy of click in some versions and imports
it in others.
"""


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Distil a text-embedding teacher into a compact student with task adapters, and use it."""
    global _debug
    _debug = debug
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("taskdistill"))
        raise typer.Exit


for name in sorted(COMMANDS, key=lambda name: (*LISTED, name).index(name)):
    COMMANDS[name](app)
for group in (app, *(each.typer_instance for each in app.registered_groups)):
    for command in group.registered_commands if group is not None else ():
        command.cls = Checked
        # Rich keeps the ends of lines; the terminal's width decides them, not the source's.
        command.help = "\n\n".join(
            " ".join(paragraph.split())
            for paragraph in (inspect.getdoc(command.callback) or "").split("\n\n")
        )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as one line; others as Python does."""
    if category is TruncationWarning:
        print(f"warning: {message}", file=sys.stderr)
    else:
        _python_shows(message, category, filename, lineno, file, line)


@cache
def _commands() -> Any:
    """Build what the commands and their options are once: reading the annotations of all of them
    takes longer than many a command.
    """
    return get_command(app)


def main() -> None:
    """Run the command line and exit with 0 (success), 1 (the work failed) or 2 (bad input)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker threads of our own tokenize
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run a command line, given without the program's name.

    Returns 0 success, 1 failure of the work, 2 bad input.
    """
    global _debug
    _debug = False
    warnings.showwarning = _warn
    try:
        code = _commands()(args=_present_spelling(argv), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except _Usage as error:
        error.show()
        return 2
    except (BadInput, WorkFailed) as error:
        return _tell(str(error), 2 if isinstance(error, BadInput) else 1)
    except (KeyboardInterrupt, typer.Abort):
        return _tell("stopped", 1)
    except BrokenPipeError:
        return 0
    except MemoryError:
        return _tell("out of memory; lower the batch size or the number of texts held at once", 1)
    except OSError as error:
        return _tell(spell(error), 1)


def _present_spelling(argv: list[str]) -> list[str]:
    """Replace what was renamed, and say so; words after the first that is no option are the
    command's.
    """
    place = next((n for n, word in enumerate(argv) if not word.startswith("-")), None)
    if place is None:
        return argv
    words = list(argv)
    words[place] = RENAMED_COMMANDS.get(words[place], words[place])
    options = RENAMED_OPTIONS.get(words[place], {})
    for n in range(place + 1, len(words)):
        if words[n] == "--":
            break
        option, equals, value = words[n].partition("=")
        words[n] = options.get(option, option) + equals + value
    for before, now in zip(argv, words, strict=True):
        if before != now:
            before, now = before.partition("=")[0], now.partition("=")[0]
            print(f"warning: {before} is called {now} now; the old name will go", file=sys.stderr)
    return words


def _tell(message: str, code: int) -> int:
    if _debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
