"""The tiny things that the record is made of, each made once: data of every kind, models, a trained
run, an index.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from golden import entry
from golden.masks import Mask

REPOSITORY = Path(__file__).parents[2]


class Workshop:
    """A folder of this run, and what is in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mask = Mask({"TMP": root, "REPO": REPOSITORY})

    def path(self, name: str) -> Path:
        """A place in the folder that nothing holds yet."""
        place = self.root / name
        if place.exists():
            raise FileExistsError(f"two parts of the record write {name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def copy(self, folder: Path, name: str) -> Path:
        """A copy of a folder, for what changes it."""
        return Path(shutil.copytree(folder, self.path(name)))

    def run(
        self, *words: object, result: Path | None = None, made: Path | None = None
    ) -> dict[str, Any]:
        """Run a command: exit code, what it printed, its result file, and the names of the files
        that it made.
        """
        given = [str(word) for word in words]
        code, out, err = entry.run_command(
            [*given, "--json", str(result)] if result is not None else given
        )
        done: dict[str, Any] = {
            "code": code,
            "out": self.mask.lines(out),
            "err": self.mask.text(err).splitlines(),
        }
        if result is not None:
            done["result"] = self.read(result)
        if made is not None and made.exists():
            done["files"] = self.files(made)
        return done

    def name(self, *words: object) -> str:
        """The key under which a command line is recorded."""
        return self.mask.text(" ".join(str(word) for word in words))

    def command(
        self,
        record: dict[str, Any],
        *words: object,
        made: Path | None = None,
        result: Path | None = None,
        code: int | None = 0,
    ) -> dict[str, Any]:
        """Run a command and record it under its own words; another exit code than `code` ends the
        record, None takes any.
        """
        done = self.run(*words, made=made, result=result)
        record[self.name(*words)] = done
        if code is not None and done["code"] != code:
            raise AssertionError(
                f"{self.name(*words)}: exit code {done['code']}: {' '.join(done['err'])[:500]}"
            )
        return done

    def read(self, path: Path) -> Any:
        """A JSON file, masked; a manifest without the hashes of what names the folders of this run:
        of itself, the recipe, the card.
        """
        if not path.is_file():
            return "(no file)"
        content = self.mask.value(json.loads(path.read_text("utf-8")))
        if path.name == "taskdistill.json":
            content.pop("sha256", None)
            content.get("inputs", {}).pop("recipe", None)
            content.get("files", {}).pop("README.md", None)
        return content

    def files(self, folder: Path) -> list[str]:
        """Names of all files below a folder; or its own, of a file."""
        if folder.is_file():
            return [folder.name]
        return [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    @cached_property
    def data(self) -> Path:
        """Rows of every kind, and an evaluation set of every type."""
        root = entry.write_data(self.root / "data")
        rng, topics = np.random.default_rng(11), list(entry.TOPICS)

        def about(n: int) -> str:
            return entry.sentence(topics[n % len(topics)], rng, 7)

        entry.write_jsonl(
            root / "pairs/rank.test.jsonl",
            [
                {"query": about(n), "positive": about(n), "negatives": [about(n + 1), about(n + 2)]}
                for n in range(16)
            ],
        )
        entry.write_jsonl(
            root / "pairs/twin.test.jsonl",
            [
                {"query": about(n), "positive": about(n), "lang": "fr" if n % 2 else "de"}
                for n in range(16)
            ],
        )
        entry.write_jsonl(
            root / "scored/same.test.jsonl",
            [{"text1": about(n), "text2": about(n + n % 2), "score": 1 - n % 2} for n in range(24)],
        )
        for split in ("train", "test"):
            rows = [
                {
                    "text": f"{about(n)} {about(n + 1)}",
                    "label": [topics[n % 8], topics[(n + 1) % 8]],
                }
                for n in range(48)
            ]
            entry.write_jsonl(root / f"labelled/many.{split}.jsonl", rows)
        entry.write_jsonl(
            root / "labelled/clu-topics.test.jsonl",
            [{"text": about(n), "label": topics[n % 8]} for n in range(40)],
        )
        summaries = [
            {
                "human": [about(n), about(n)],
                "machine": [about(n), about(n + 1), about(n + 3)],
                "scores": [0.9, 0.4, 0.1 * (n % 3)],
            }
            for n in range(8)
        ]
        entry.write_jsonl(root / "summaries/news.test.jsonl", summaries)
        documents = [about(n) for n in range(24)]
        for language, mark in (("en", ""), ("xx", "zz ")):
            write_retrieval(
                root / "retrieval" / f"town-{language}", [mark + text for text in documents], mark
            )
        return root

    @cached_property
    def teacher(self) -> Path:
        """A random teacher of 32 dimensions."""
        return entry.write_teacher(self.root / "teacher")

    @cached_property
    def topics(self) -> Path:
        """A model that knows what words are about."""
        return entry.write_topic_model(self.root / "topics", width=32, noise=0.4, seed=4)

    @cached_property
    def models(self) -> dict[str, Path]:
        """A random model of each family, with adapters, int8 ranges and golden vectors."""
        return {
            family: entry.write_adapted(self.root / "models" / family, family)
            for family in entry.FAMILIES
        }

    @cached_property
    def student(self) -> Path:
        """A model with a projection into the teacher's space."""
        return entry.write_adapted(self.root / "student", "bert", self.teacher)

    @cached_property
    def large_set(self) -> Path:
        """A retrieval set of enough documents to fit a map between two models."""
        rng, topics = np.random.default_rng(41), list(entry.TOPICS)
        return write_retrieval(
            self.root / "large", [entry.sentence(topics[n % 8], rng, 6 + n % 6) for n in range(130)]
        )

    @cached_property
    def corpus(self) -> Path:
        """Documents with metadata, some of one text."""
        rng, topics = np.random.default_rng(21), list(entry.TOPICS)
        rows = [
            {
                "id": f"d{n}",
                "text": entry.sentence(topics[n % 8], rng, 6 + n % 7),
                "topic": topics[n % 8],
                "year": 1990 + n % 12,
                "new": n % 3 == 0,
            }
            for n in range(60)
        ]
        return entry.write_jsonl(self.root / "corpus.jsonl", rows)

    @cached_property
    def texts(self) -> Path:
        """A file of lines."""
        rng = np.random.default_rng(31)
        path = self.root / "texts.txt"
        path.write_text(
            "\n".join(entry.sentence(topic, rng) for topic in [*entry.TOPICS] * 3) + "\n"
        )
        return path

    def recipe(self, *, steps: int = 6, **changes: Any) -> dict[str, Any]:
        """A recipe of every phase over the data; `changes` are merged into its parts."""
        raw = entry.raw_recipe(self.data, self.teacher, steps=steps)
        raw["stage1"]["projection_init"] = "default"
        raw["long"] = {**raw["stage1"], "max_length": 48, "rope_theta": None}
        del raw["long"]["projection_init"]
        raw["evaluation"] |= {
            "sets": ["retrieval/qa", "sts/sts", "classification/topics"],
            "dims": [8, 16],
        }
        for name, change in changes.items():
            raw[name] = _merged(raw[name], change) if isinstance(raw.get(name), dict) else change
        return raw

    def write_recipe(self, name: str, raw: dict[str, Any]) -> Path:
        """A recipe as a file."""
        import yaml

        path = self.path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    @cached_property
    def recipe_file(self) -> Path:
        """The tiny recipe of every phase, six steps each."""
        return self.write_recipe("tiny", self.recipe())

    @cached_property
    def trained(self) -> tuple[Path, dict[str, Any]]:
        """A run of twenty steps of every phase by the command, and what the command said."""
        recipe = self.write_recipe("twenty", self.recipe(steps=20))
        out = self.path("runs/twenty")
        return out, self.run("train", recipe, "--out", out, "--quiet")


def write_retrieval(folder: Path, documents: list[str], mark: str = "") -> Path:
    """A retrieval set whose queries are the first words of its first documents."""
    queries = [mark + " ".join(text.removeprefix(mark).split()[:4]) for text in documents[:12]]
    entry.write_jsonl(
        folder / "corpus.jsonl",
        [{"_id": f"d{n}", "text": text} for n, text in enumerate(documents)],
    )
    entry.write_jsonl(
        folder / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(queries)]
    )
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(12))
    )
    return folder


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        merged[key] = (
            _merged(old[key], value)
            if isinstance(value, dict) and isinstance(old.get(key), dict)
            else value
        )
    return merged
