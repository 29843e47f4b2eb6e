"""llama.cpp, through the package xllamacpp, in a process of its own: a native abort must not take ours with it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from taskdistill.errors import WorkFailed

PACKAGE = "xllamacpp"
SECONDS = 600

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
    """Say which llama.cpp is here.

    Returns:
        Its name and version, or None if it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return f"llama.cpp ({PACKAGE} {metadata.version(PACKAGE)})"


def llama_cpp_vectors(
    path: Path, texts: Sequence[str] | Sequence[list[int]], length: int
) -> np.ndarray:
    """Embed texts with llama.cpp.

    Args:
        path: GGUF file.
        texts: Texts with their prompt, or their token ids with the special tokens.
        length: Tokens of context.

    Returns:
        float32 `(n, D)`, unit rows.

    Raises:
        WorkFailed: If llama.cpp does not load the file or fails.
    """
    job = json.dumps({"path": str(path), "texts": list(texts), "length": length})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=job.encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"llama.cpp gave no vectors of {path.name} within {SECONDS} s") from None
    if done.returncode != 0:
        said = done.stdout or b" | ".join(done.stderr.strip().splitlines()[-3:])
        raise WorkFailed(
            f"llama.cpp could not use {path.name} (exit {done.returncode}): {said.decode(errors='replace')}"
        )
    return np.array(json.loads(done.stdout), dtype=np.float32)
