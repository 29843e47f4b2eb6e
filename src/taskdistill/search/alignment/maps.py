"""Maps from a new model's vectors into the space of an old index.

Procrustes, low-rank and residual maps as in Drift-Adapter (arXiv 2509.23471).
N texts; D the new model's dimensions, E the old one's; H the hidden units of the residual network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.quantization import normalize
from taskdistill.search.prf import Floats
from taskdistill.search.settings import SearchEncoder
from taskdistill.types import Precision

FILE = "map.npz"
LINEAR_ARRAYS = frozenset({"matrix", "bias"})
RESIDUAL_ARRAYS = LINEAR_ARRAYS | {"inner", "inner_bias", "outer", "outer_bias"}

KINDS = ("procrustes", "low-rank", "residual")
HELD_OUT = 0.1
"""Share of the sample on which rank, ridge and kind are chosen."""
MIN_TEXTS = 100
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Tried, as a share of the mean variance times rows."""
RANKS = (32, 64, 128, 256, 512)
HIDDEN, EPOCHS, BATCH, RATE = 256, 30, 128, 1e-3

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """`x matrix + bias`, scaled to unit length.

    With a residual part `+ relu(x inner + inner_bias) outer + outer_bias` before scaling.
    """

    kind: str
    arrays: Mapping[str, Floats]

    @property
    def source_dim(self) -> int:
        """Dimensions that go in."""
        return int(self.arrays["matrix"].shape[0])

    @property
    def target_dim(self) -> int:
        """Dimensions that come out."""
        return int(self.arrays["matrix"].shape[1])

    def __call__(self, vectors_ND: Floats) -> Floats:
        """Map unit rows to unit rows `(N, E)`."""
        a = self.arrays
        mapped_NE = vectors_ND @ a["matrix"] + a["bias"]
        if "inner" in a:
            hidden_NH = np.maximum(vectors_ND @ a["inner"] + a["inner_bias"], 0)
            mapped_NE = mapped_NE + hidden_NH @ a["outer"] + a["outer_bias"]
        return normalize(mapped_NE)

    def save(self, folder: Path) -> None:
        """Write the map into a folder."""
        with (folder / FILE).open("wb") as stream:
            np.savez(stream, **dict(self.arrays))  # type: ignore[arg-type]


def load_map(folder: Path, kind: str) -> AlignmentMap:
    """Read a map that its folder says is of a kind."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], dtype=np.float32) for name in stored.files}
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{folder / FILE} cannot be read ({error}); run `taskdistill migrate` again"
        ) from None
    finite = all(np.isfinite(array).all() for array in arrays.values())
    if set(arrays) not in (LINEAR_ARRAYS, RESIDUAL_ARRAYS) or not finite:
        raise BadInput(
            f"{folder / FILE} holds {sorted(arrays)} instead of finite numbers of a map; run "
            "`taskdistill migrate` again"
        )
    return AlignmentMap(kind, arrays)


class AlignedEncoder:
    """A new model that queries an index of an old one."""

    def __init__(
        self,
        encoder: SearchEncoder,
        mapping: AlignmentMap,
        *,
        space_id: str,
        model_hash: str,
        task: str | None,
    ) -> None:
        """Wrap a model.

        `mapping`: from the model's vectors to the index's. `space_id`: space of the index.
        `model_hash`: hash of the model that the map was fitted to. `task`: the new model's adapter;
        None for its base. Raises BadInput if the map is of another model.
        """
        if encoder.model_hash != model_hash and model_hash not in getattr(encoder, "extends", ()):
            raise BadInput(
                f"the map was fitted to a model of hash {model_hash[:12]}, {encoder.name} has "
                f"{encoder.model_hash[:12]}; fit it anew"
            )
        self._encoder, self._map, self._task = encoder, mapping, task
        self.name = f"{encoder.name} through a {mapping.kind} map"
        self.space_id, self.model_hash = space_id, encoder.model_hash
        self.embedding_dim = mapping.target_dim

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = "document",
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
    ) -> NDArray[np.floating]:
        """Embed texts into the old space: `(N, E)` unit rows.

        `task`: the index's; the new model uses its own. `prompt_name`: which of the new model's
        prompts goes before every text.
        """
        if truncate_dim not in (None, self.embedding_dim) or precision != Precision.FLOAT32:
            raise BadInput(
                f"a map gives {self.embedding_dim} dimensions in float32, not {truncate_dim} in "
                f"{precision}"
            )
        return self._map(self._encoder.encode(texts, task=self._task, prompt_name=prompt_name))


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map and how good it is."""

    map: AlignmentMap
    cosine: float
    """Mean cosine to the old vectors on held-out texts."""
    chosen: str
    """What was chosen there, in words."""

    def __str__(self) -> str:
        return (
            f"{self.map.kind:<11} cosine {self.cosine:.4f} on held-out texts  {self.chosen}"
        ).rstrip()


def fit_maps(
    new_ND: Floats, old_NE: Floats, *, kind: str = "best", seed: int = 17
) -> list[FittedMap]:
    """Fit maps and score them on held-out texts, best first.

    `new_ND`: unit rows of the new model. `old_NE`: unit rows of the old one, of the same texts.
    `kind`: one of `KINDS`, or `best` for all of them. `seed`: decides which texts are held out, and
    the residual network.
    """
    if kind not in (*KINDS, "best"):
        raise BadInput(f"unknown map {kind!r}{did_you_mean(kind, (*KINDS, 'best'))}")
    if len(new_ND) < MIN_TEXTS:
        raise BadInput(
            f"{len(new_ND)} texts are too few to fit a map; give {MIN_TEXTS} or more, some "
            "thousand are usual"
        )
    # Rank, ridge and kind are chosen on texts that no map has seen.
    order = np.random.default_rng(seed).permutation(len(new_ND))
    count = max(10, round(HELD_OUT * len(new_ND)))
    held_out, used = order[:count], order[count:]
    new, old = new_ND[used], old_NE[used]

    def scored(mapping: AlignmentMap, chosen: str) -> FittedMap:
        cosine = held_out_cosine(mapping, new_ND[held_out], old_NE[held_out])
        return FittedMap(mapping, cosine, chosen)

    def best_low_rank() -> FittedMap:
        full = min(new.shape[1], old.shape[1])
        return max(
            (
                scored(low_rank(new, old, rank, ridge), f"rank {rank}, ridge {ridge:g}")
                for ridge in RIDGES
                for rank in sorted({min(rank, full) for rank in RANKS} | {full})
            ),
            key=lambda fitted: fitted.cosine,
        )

    fitted = []
    if kind in ("procrustes", "best"):
        fitted.append(scored(procrustes(new, old), ""))
    if kind != "procrustes":
        linear = best_low_rank()
        if kind in ("low-rank", "best"):
            fitted.append(linear)
        if kind in ("residual", "best"):
            network = residual(new, old, linear.map, seed)
            fitted.append(scored(network, f"on {linear.chosen}, {HIDDEN} hidden"))
    return sorted(fitted, key=lambda each: -each.cosine)


def held_out_cosine(mapping: AlignmentMap, new_ND: Floats, old_NE: Floats) -> float:
    """Return the mean cosine of mapped vectors with the old ones."""
    return float((mapping(new_ND) * normalize(old_NE)).sum(1).mean())


def procrustes(new_ND: Floats, old_NE: Floats) -> AlignmentMap:
    """Fit the rotation that brings the new vectors nearest to the old ones.

    Between other sizes its rows or columns are orthonormal.
    """
    u, _, vt = np.linalg.svd(new_ND.T.astype(np.float64) @ old_NE, full_matrices=False)
    return _linear("procrustes", u @ vt, np.zeros(old_NE.shape[1]))


def low_rank(new_ND: Floats, old_NE: Floats, rank: int, ridge: float) -> AlignmentMap:
    """Fit an affine map of limited rank by ridge regression.

    It is cut to the directions of its predictions that vary most. `ridge`: added to the diagonal,
    as a share of the mean variance times rows.
    """
    mean_D, mean_E = new_ND.mean(0, dtype=np.float64), old_NE.mean(0, dtype=np.float64)
    x_ND, y_NE = new_ND - mean_D, old_NE - mean_E
    gram_DD = x_ND.T @ x_ND
    gram_DD[np.diag_indices_from(gram_DD)] += ridge * np.trace(gram_DD) / len(gram_DD)
    matrix_DE = np.linalg.solve(gram_DD, x_ND.T @ y_NE)
    _, _, vt = np.linalg.svd(x_ND @ matrix_DE, full_matrices=False)
    cut_DE = matrix_DE @ vt[:rank].T @ vt[:rank]
    return _linear("low-rank", cut_DE, mean_E - mean_D @ cut_DE)


def residual(new_ND: Floats, old_NE: Floats, linear: AlignmentMap, seed: int) -> AlignmentMap:
    """Train a small network on what a linear map leaves over.

    Its outer layer starts at zero, so that it begins as that map.
    """
    rng = np.random.default_rng(seed)
    base_NE = new_ND @ linear.arrays["matrix"] + linear.arrays["bias"]
    # The target has the mean length of what it is added to: only directions count.
    scale = np.linalg.norm(base_NE, axis=1).mean()
    target_NE = normalize(old_NE) * scale - base_NE
    dim = new_ND.shape[1]
    weights: dict[str, Float64] = {
        # Unit rows have numbers near 1 / sqrt(dim): by 4, hidden units see inputs of some size.
        "inner": rng.standard_normal((dim, HIDDEN)) / np.sqrt(dim) * 4,
        "inner_bias": np.zeros(HIDDEN),
        "outer": np.zeros((HIDDEN, old_NE.shape[1])),
        "outer_bias": np.zeros(old_NE.shape[1]),
    }
    # Adam with betas 0.9 and 0.999; its rate falls to zero.
    first, second = (
        {name: np.zeros_like(value) for name, value in weights.items()} for _ in range(2)
    )
    step, total = 0, EPOCHS * -(-len(new_ND) // BATCH)
    for _ in range(EPOCHS):
        order = rng.permutation(len(new_ND))
        for start in range(0, len(new_ND), BATCH):
            rows = order[start : start + BATCH]
            step += 1
            for name, gradient in _gradients(weights, new_ND[rows], target_NE[rows]).items():
                first[name] += 0.1 * (gradient - first[name])
                second[name] += 0.001 * (gradient**2 - second[name])
                rate = RATE * (1 - step / total) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                weights[name] -= rate * first[name] / (np.sqrt(second[name]) + 1e-9)
    arrays = {name: value.astype(np.float32) for name, value in weights.items()}
    return AlignmentMap("residual", {**linear.arrays, **arrays})


def _gradients(
    weights: dict[str, Float64], x_ND: Floats, target_NE: NDArray[np.floating]
) -> dict[str, Float64]:
    """Return the gradients of the mean squared length of the network's error."""
    before_NH = x_ND @ weights["inner"] + weights["inner_bias"]
    hidden_NH = np.maximum(before_NH, 0)
    error_NE = 2 * (hidden_NH @ weights["outer"] + weights["outer_bias"] - target_NE) / len(x_ND)
    back_NH = (error_NE @ weights["outer"].T) * (before_NH > 0)
    return {
        "inner": x_ND.T @ back_NH,
        "inner_bias": back_NH.sum(0),
        "outer": hidden_NH.T @ error_NE,
        "outer_bias": error_NE.sum(0),
    }


def _linear(kind: str, matrix_DE: Float64, bias_E: Float64) -> AlignmentMap:
    arrays = {"matrix": matrix_DE.astype(np.float32), "bias": bias_E.astype(np.float32)}
    return AlignmentMap(kind, arrays)
