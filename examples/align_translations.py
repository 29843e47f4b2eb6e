"""Pairs of translations out of graded files that were the same rows once: python align_translations.py DATA OUT [NAME].

`DATA/scored/NAME-en.train.jsonl.gz` and its translations (`NAME-de`, `NAME-fr`, ...) hold the same sentence pairs in the same order
with the same scores, but each has lost rows of its own. The scores line them up: only runs of at least six equal scores count. OUT
becomes a data folder with `pairs/NAME-translations.train.jsonl.gz` (the translation as query, English as positive) and links to every
file of DATA.
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
    matcher = difflib.SequenceMatcher(None, *([round(row["score"], 3) for row in rows] for rows in (theirs, english)), autojunk=False)
    runs = [block for block in matcher.get_matching_blocks() if block.size >= RUN]
    return [(theirs[run.a + i], english[run.b + i]) for run in runs for i in range(run.size)]


def main() -> None:
    """Write the folder."""
    data, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    name = sys.argv[3] if len(sys.argv) > 3 else "stsb"
    for path in sorted(data.rglob("*.*")):
        place = out / path.relative_to(data)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    english = read(data / "scored" / f"{name}-en.train.jsonl.gz")
    with gzip.open(out / "pairs" / f"{name}-translations.train.jsonl.gz", "wt", encoding="utf-8") as stream:
        for path in sorted((data / "scored").glob(f"{name}-*.train.jsonl.gz")):
            language = path.name.removeprefix(f"{name}-").split(".")[0]
            if language == "en":
                continue
            matches = aligned(read(path), english)
            written = set()
            for theirs, ours in matches:
                for side in ("text1", "text2"):
                    pair = (theirs[side], ours[side])
                    if pair not in written and pair[0] != pair[1]:
                        written.add(pair)
                        stream.write(json.dumps({"query": pair[0], "positive": pair[1], "lang": language}, ensure_ascii=False) + "\n")
            print(f"{language}: {len(matches):,} rows matched, {len(written):,} pairs of sentences")


if __name__ == "__main__":
    main()
