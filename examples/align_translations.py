"""Pairs of translations out of files that were the same rows once: python align_translations.py
DATA OUT [NAME [PARALLEL]].

`DATA/scored/NAME-en.train.jsonl.gz` and its translations (`NAME-de`, `NAME-fr`, ...) hold the same
sentence pairs in the same order with the same scores, but each has lost rows of its own. The scores
line them up: only runs of at least six equal scores count. `DATA/labelled/PARALLEL.train.jsonl.gz`
holds the same labelled sentences in the same order for every language; it is left out if it is not
there, or some language has another number of rows or other labels. OUT becomes a data folder with
`pairs/NAME-translations.train.jsonl.gz` and `pairs/PARALLEL-translations.train.jsonl.gz` (the
translation as query, English as positive) and links to every file of DATA. Default: stsb and
sib200.
"""

import difflib
import gzip
import json
import sys
from pathlib import Path

RUN = 6
"""Equal scores in a row that make a match; fewer may be chance."""


def read(path: Path) -> list[dict]:
    """Read the rows of one file."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def aligned(theirs: list[dict], english: list[dict]) -> list[tuple[dict, dict]]:
    """Match rows by runs of equal scores."""
    matcher = difflib.SequenceMatcher(
        None,
        *([round(row["score"], 3) for row in rows] for rows in (theirs, english)),
        autojunk=False,
    )
    runs = [block for block in matcher.get_matching_blocks() if block.size >= RUN]
    return [(theirs[run.a + i], english[run.b + i]) for run in runs for i in range(run.size)]


def parallel(rows: list[dict]) -> dict[str, list[tuple[str, str]]]:
    """Pair the sentences of every language with the English ones of the same place."""
    by_language: dict[str, list[dict]] = {}
    for row in rows:
        by_language.setdefault(row["lang"], []).append(row)
    english = by_language.pop("en", [])
    labels = [row["label"] for row in english]
    if other := [
        language
        for language, found in by_language.items()
        if [row["label"] for row in found] != labels
    ]:
        print(f"left out: {', '.join(other)} do not have the rows of English in its order")
        return {}
    return {
        language: [(a["text"], b["text"]) for a, b in zip(found, english, strict=True)]
        for language, found in by_language.items()
    }


def write(path: Path, pairs: dict[str, list[tuple[str, str]]]) -> None:
    """Write distinct pairs, the translation as query."""
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for language, found in pairs.items():
            distinct = [(theirs, ours) for theirs, ours in dict.fromkeys(found) if theirs != ours]
            for theirs, ours in distinct:
                stream.write(
                    json.dumps(
                        {"query": theirs, "positive": ours, "lang": language}, ensure_ascii=False
                    )
                    + "\n"
                )
            print(f"{path.name}: {language}: {len(distinct):,} pairs of sentences")


def main() -> None:
    """Write the folder."""
    data, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    name, same = [*sys.argv[3:5], *("stsb", "sib200")[len(sys.argv[3:5]) :]]
    for path in sorted(data.rglob("*.*")):
        place = out / path.relative_to(data)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    english, found = read(data / "scored" / f"{name}-en.train.jsonl.gz"), {}
    for path in sorted((data / "scored").glob(f"{name}-*.train.jsonl.gz")):
        language = path.name.removeprefix(f"{name}-").split(".")[0]
        if language != "en":
            rows = aligned(read(path), english)
            found[language] = [
                (theirs[side], ours[side]) for theirs, ours in rows for side in ("text1", "text2")
            ]
    write(out / "pairs" / f"{name}-translations.train.jsonl.gz", found)
    labelled = data / "labelled" / f"{same}.train.jsonl.gz"
    if labelled.is_file() and (sentences := parallel(read(labelled))):
        write(out / "pairs" / f"{same}-translations.train.jsonl.gz", sentences)


if __name__ == "__main__":
    main()
