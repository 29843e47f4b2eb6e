"""Training a three-layer student: the packed stream against SentenceTransformerTrainer; same
student, loss, batch and data.

    python benchmarks/train_speed.py # mixed lengths against the trainer's defaults, then short
    texts python benchmarks/train_speed.py --grouped # against the trainer with batches of like
    lengths

Loss: mean squared error to the teacher's cached vectors, AdamW, batches of 128 texts cut at 128
tokens. Both sides pay for tokenising. A turn is a few steps; the first step of a turn is not
counted, nor is the start of the other side's trainer. The last line is the ratio on mixed lengths.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import MODEL, Side, _busy, finish, load_texts, machine, options, parser, table

from taskdistill import Encoder
from taskdistill.model.backbone import resolve, without_dropout
from taskdistill.model.folder import read_model
from taskdistill.model.layers import keep_layers
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.workers import workers

BATCH, MAX_LENGTH, RATE, LAYERS = 128, 128, 2e-5, [0, 2, 5]
Turn = Callable[[], list[tuple[float, float, float]]]
"""Steps of one turn: (seconds, processor seconds, cores that others used)."""


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=1280, rounds=3)
    made.add_argument("--steps", type=int, default=6, help="counted steps of a turn")
    made.add_argument(
        "--grouped",
        action="store_true",
        help="the other side groups texts of like length into batches",
    )
    asked = options(made, quick_texts=256)
    steps = 1 if asked.quick else asked.steps
    print(machine(asked.threads, ("accelerate", "datasets")))
    found: dict[str, Any] = {}
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts, asked.data)
        targets = Encoder.load(MODEL).encode(texts)
        peer = f"SentenceTransformerTrainer, {'grouped lengths' if asked.grouped else 'defaults'}"
        with workers(asked.threads) as threads:
            turns: dict[str, Turn] = {
                peer: _theirs(texts, targets, steps, asked.grouped),
                "taskdistill, packed": _ours(texts, targets, steps, threads),
            }
            sides = {name: Side() for name in turns}
            for _ in range(asked.rounds):
                for name, turn in turns.items():
                    for seconds, cpu, foreign in turn():
                        sides[name].seconds.append(seconds)
                        sides[name].cpu.append(cpu)
                        sides[name].foreign.append(foreign)
        theirs, ours = sides.values()
        rows = [
            [
                name,
                f"{BATCH / s.median:,.1f}",
                f"{theirs.median / s.median:.2f}",
                f"{theirs.median_cpu / s.median_cpu:.2f}",
                f"{s.median_foreign:.1f}",
            ]
            for name, s in sides.items()
        ]
        table(
            f"{kind}: {asked.texts:,} texts, batches of {BATCH}",
            ["side", "texts/s", "ratio", "ratio of cpu time", "cores used by others"],
            rows,
        )
        found[kind] = {
            "ratio": theirs.median / ours.median,
            "ratio_cpu": theirs.median_cpu / ours.median_cpu,
            "texts_per_second": BATCH / ours.median,
        }
    print(f"\nshort texts: {found['short']['ratio']:.2f}")
    finish(found["mixed"]["ratio"], found, asked.json)


def student() -> Any:
    """Cut the teacher to three layers, without dropout."""
    made = read_model(resolve(MODEL))
    keep_layers(made.module.backbone, LAYERS)
    without_dropout(made.module.backbone)
    return made


class Clock:
    """Seconds between ticks, and who else was busy."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), _busy()

    def tick(self, count: bool = True) -> None:
        """End one step and begin the next."""
        now = self._now()
        wall, own, busy = (after - before for after, before in zip(now, self._last, strict=True))
        if count:
            self.found.append((wall, own, max(0.0, busy - own) / wall))
        self._last = now


def _ours(texts: list[str], targets: np.ndarray, steps: int, threads: Any) -> Turn:
    made = student()
    module, wanted = made.module.train(), torch.from_numpy(targets)
    parameters = list(module.backbone.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    draws = np.random.default_rng(0)

    def turn() -> list[tuple[float, float, float]]:
        clock = Clock()
        for number in range(steps + 1):
            rows = draws.choice(len(texts), BATCH, replace=False)
            ids = made.tokenizer.ids([texts[i] for i in rows], prompt="", max_length=MAX_LENGTH).ids
            target = wanted[rows]

            def distance(vectors: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
                return (torch.nn.functional.normalize(vectors, dim=1) - goal).square().mean()

            gradients(
                module,
                ids,
                StepLoss(
                    terms=lambda vectors, target=target: ({"mse": distance(vectors, target)}, 0.0),
                    share=lambda vectors, places, target=target: (
                        distance(vectors, target[places]) * (len(places) / BATCH)
                    ),
                ),
                parameters,
                Passes(seed=number),
                threads=threads,
            )
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            assert torch.isfinite(norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            clock.tick(number > 0)
        return clock.found

    return turn


def _theirs(texts: list[str], targets: np.ndarray, steps: int, grouped: bool) -> Turn:
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss
    from transformers import TrainerCallback

    disable_progress_bars()
    model = SentenceTransformer(str(resolve(MODEL)), device="cpu")
    model.max_seq_length = MAX_LENGTH
    keep_layers(model[0].auto_model, LAYERS)
    without_dropout(model[0].auto_model)
    data = Dataset.from_dict({"text": texts, "label": targets.tolist()})
    lengths = [
        len(row)
        for row in model.tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    ]
    seeds = iter(range(1000))

    def turn() -> list[tuple[float, float, float]]:
        clock = Clock()

        class Ticks(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *given: Any, **named: Any) -> None:
                clock.tick(given[1].global_step > 1)

        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=steps + 1,
                learning_rate=RATE,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=next(seeds),
                **({"batch_sampler": _grouped(lengths)} if grouped else {}),
            )
            trainer = SentenceTransformerTrainer(
                model=model,
                args=arguments,
                train_dataset=data,
                loss=MSELoss(model),
                callbacks=[Ticks()],
            )
            clock.tick(False)
            trainer.train()
        return clock.found

    return turn


def _grouped(lengths: list[int]) -> Callable[..., Any]:
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from transformers.trainer_pt_utils import LengthGroupedSampler

    def sampler(
        dataset: Any, batch_size: int, drop_last: bool, generator: Any = None, **_: Any
    ) -> Any:
        rows = LengthGroupedSampler(
            batch_size, dataset=dataset, lengths=copy.copy(lengths), generator=generator
        )
        return DefaultBatchSampler(rows, batch_size=batch_size, drop_last=drop_last)

    return sampler


if __name__ == "__main__":
    main()
