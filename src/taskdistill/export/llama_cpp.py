"""llama.cpp through xllamacpp, in a child process: a native abort must not end ours."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import WorkFailed

PACKAGE = "xllamacpp"
TIMEOUT = 600
"""Seconds for all texts of an export; the first load of a large file takes the most of it."""

# Standard output is moved away first: llama.cpp itself prints there.
_PROGRAM = """
import json, os, sys
job = json.loads(sys.stdin.read())
out = os.dup(1)
os.dup2(2, 1)
import xllamacpp as x
p = x.CommonParams()
p.model.path = job["path"]
p.embedding, p.warmup, p.n_gpu_layers, p.n_parallel, p.fit_params = True, False, 0, 1, False
p.n_ctx = p.n_batch = p.n_ubatch = job["length"]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.embd_normalize = 2
server = x.Server(p)
rows = []
for text in job["texts"]:
    reply = server.handle_embeddings({"input": [text], "model": "m"})
    if "data" not in reply:
        os.write(out, json.dumps({"error": str(reply)[:500]}).encode())
        os._exit(1)
    rows.append(reply["data"][0]["embedding"])
os.write(out, json.dumps(rows).encode())
os._exit(0)
"""


def llama_cpp_version() -> str | None:
    """Name and version of the llama.cpp that is installed, or None."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return f"llama.cpp ({PACKAGE} {metadata.version(PACKAGE)})"


def llama_cpp_vectors(
    path: Path, texts: Sequence[str] | Sequence[list[int]], length: int
) -> NDArray[np.float32]:
    """Embed texts with llama.cpp: unit rows `(n, D)`.

    `texts`: texts with their prompt, or their token ids with the special tokens. Raises WorkFailed
    if llama.cpp does not load the file or fails.
    """
    request = json.dumps({"path": str(path), "texts": list(texts), "length": length})
    try:
        process = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=request.encode(),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"llama.cpp gave no vectors of {path.name} within {TIMEOUT} s") from None
    if process.returncode != 0:
        output = process.stdout or b" | ".join(process.stderr.strip().splitlines()[-3:])
        raise WorkFailed(
            f"llama.cpp could not use {path.name} (exit {process.returncode}): "
            f"{output.decode(errors='replace')}"
        )
    return np.array(json.loads(process.stdout), dtype=np.float32)
