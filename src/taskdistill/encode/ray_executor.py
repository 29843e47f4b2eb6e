"""Shards of a corpus on a Ray cluster, through Ray Data; every machine must reach the model, the
texts and the output by the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from taskdistill.device import CPU
from taskdistill.encode.shards import ShardJob, ShardWorker
from taskdistill.encode.texts import EncodeStats
from taskdistill.errors import require_extra


class ShardActor:
    """A worker as Ray makes it: rows with a shard number in, rows with its counts out."""

    def __init__(self, job: ShardJob, device: str) -> None:
        """Load the model.

        `device`: where the model runs; Ray shows each actor only its own GPUs.
        """
        self._worker = ShardWorker(job, job.open(device))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Encode the shards of a batch.

        Returns the numbers, and the counts of each shard as JSON.
        """
        counts = [json.dumps(self._worker.run(int(number)).as_dict()) for number in batch["shard"]]
        return {"shard": batch["shard"], "counts": counts}


def run_ray(
    job: ShardJob, pending: Sequence[int], devices: Sequence[str]
) -> Generator[tuple[int, EncodeStats], None, None]:
    """Encode shards with one Ray actor for each device named.

    `devices`: a device for each actor; on GPUs Ray chooses which one. Yields a shard that is done,
    and what became of its rows.
    """
    require_extra("ray", "ray", "encoding on a Ray cluster")
    import ray.data

    device = devices[0].partition(":")[0]
    resources = {"num_cpus": job.threads} if device == CPU.type else {"num_gpus": 1}
    shards = ray.data.from_items(
        [{"shard": number} for number in pending], override_num_blocks=len(pending)
    )
    done = shards.map_batches(
        ShardActor,
        batch_size=1,
        fn_constructor_args=(job, device),
        compute=ray.data.ActorPoolStrategy(size=min(len(devices), len(pending))),
        **resources,
    )
    for row in done.iter_rows():
        yield int(row["shard"]), EncodeStats(**json.loads(row["counts"]))
