"""Shards of a corpus by several processes of this machine: each loads the model and is handed one
shard after the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process

from taskdistill.encode.shards import ShardJob, ShardWorker
from taskdistill.encode.texts import EncodeStats
from taskdistill.errors import BadInput, WorkFailed


def run_processes(
    job: ShardJob, pending: Sequence[int], devices: Sequence[str]
) -> Generator[tuple[int, EncodeStats], None, None]:
    """Encode shards in fresh processes, one for each device named.

    `devices`: a device for each process. Yields a shard that is done, and what became of its rows;
    in no particular order. Raises WorkFailed if a process ends before its work does. Finished
    shards are kept.
    """
    context = get_context("spawn")
    waiting = iter(pending)
    workers = {}
    try:
        for device in devices[: len(pending)]:
            near_end, far_end = context.Pipe()
            process = context.Process(target=work, args=(job, device, far_end), daemon=True)
            process.start()
            far_end.close()
            workers[near_end] = process
        open_ends = set(workers)
        while open_ends:
            for end in connection.wait(list(open_ends)):
                assert isinstance(end, connection.Connection)
                done = _receive(end, workers[end].exitcode)
                if done is not None:
                    yield done
                number = next(waiting, None)
                with suppress(
                    ConnectionError
                ):  # a worker that is gone is told of when its end is read
                    end.send(number)
                if number is None:
                    open_ends.discard(end)
        for process in workers.values():
            process.join()
    finally:
        for end, process in workers.items():
            if process.is_alive():
                process.terminate()
            process.join()
            end.close()


def _receive(end: connection.Connection, code: int | None) -> tuple[int, EncodeStats] | None:
    try:
        kind, *payload = end.recv()
    except (EOFError, ConnectionResetError):
        why = "" if code is None else f" (exit code {code})"
        raise WorkFailed(
            f"a worker ended before its work{why}, perhaps for want of memory; finished shards are"
            " kept: run the command again, with fewer processes"
        ) from None
    if kind == "bad":
        raise BadInput(payload[0])
    if kind == "failed":
        raise WorkFailed(payload[0])
    return None if kind == "ready" else (payload[0], payload[1])


def work(job: ShardJob, device: str, end: connection.Connection) -> None:
    """Be a worker: load the model, then encode the shards that come through the pipe until None
    comes.

    `device`: where the model runs.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = ShardWorker(job, job.open(device))
        end.send(("ready",))
        while (number := end.recv()) is not None:
            end.send(("done", number, worker.run(number)))
    except (EOFError, ConnectionError):
        return
    except BadInput as error:
        end.send(("bad", str(error)))
    except Exception as error:  # whatever it is, the parent tells it in one line
        end.send(
            (
                "failed",
                (
                    f"a worker failed ({type(error).__name__}: {error}); finished shards are kept,"
                    " run the command again to go on"
                ),
            )
        )


def _end_with_parent() -> None:
    """End at once when the parent is gone, however it went, so that nobody works on a folder that
    nobody holds.
    """
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
