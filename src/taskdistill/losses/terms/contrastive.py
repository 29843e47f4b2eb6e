"""InfoNCE: of pairs, of labeled rows both ways, of quantized vectors, and with weights on what is
hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from taskdistill.config import ConfigModel
from taskdistill.losses.term import PAIR_ROWS, LossTerm, PhaseSetting, TermConfig
from taskdistill.losses.vectors import normalize, step_rng, without_positives
from taskdistill.tasks import Task
from taskdistill.types import RowKind

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from taskdistill.losses.inputs import LossInputs


def info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    *,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE of queries against candidate documents (section 5.1).

    Large problems are computed by row chunks with the gradient taken in the forward pass; see
    `streaming_info_nce`. `queries`: unit rows, `(B, D)`. `documents`: unit rows, `(M, D)`: every
    query's positive and all negatives. `positives`: row of each query's positive in `documents`,
    `(B,)` of int64. `excluded`: `(B, M)` of bool, true where a candidate is no negative; a query's
    positive is never excluded. Returns scalar, the mean over queries of minus the log-probability
    of the positive.
    """
    import torch.nn.functional as F

    if queries.shape[0] * documents.shape[0] > STREAM_ABOVE:
        # Loads torch, since it defines a function of autograd.
        from taskdistill.losses.streaming import streaming_info_nce

        return streaming_info_nce(queries, documents, positives, temperature, excluded=excluded)
    logits = queries @ documents.T / temperature
    if excluded is not None:
        logits = logits.masked_fill(without_positives(excluded, positives), -math.inf)
    return F.cross_entropy(logits, positives)


STREAM_ABOVE = 4096 * 4096
"""Similarities above which `info_nce` streams; below, one matrix is quicker or equal."""


class HardNegativeWeighting(ConfigModel):
    """What makes InfoNCE of pairs look harder at what is hard (ours); zero turns each off."""

    focal: float = Field(
        default=0.0,
        ge=0,
        description=(
            "Exponent g of the weight (1 - p)^g of a query, p the probability of its positive"
        ),
    )
    hardness: float = Field(
        default=0.0,
        ge=0,
        description="a in the weight exp(a similarity) of a query's own hard negatives",
    )
    mixed_negatives: int = Field(
        default=0, ge=0, description="Negatives made for each query by mixing two of its hard ones"
    )

    @property
    def enabled(self) -> bool:
        """Whether any of the three is on."""
        return bool(self.focal or self.hardness or self.mixed_negatives)


def sharpened_info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    *,
    excluded: Tensor | None = None,
    weighting: HardNegativeWeighting = HardNegativeWeighting(),
    hard: Tensor | None = None,
    mixed: Tensor | None = None,
) -> Tensor:
    """InfoNCE that looks harder at what is hard.

    With every setting at zero it is `info_nce`. `queries`: unit rows, `(B, D)`. `documents`: unit
    rows, `(M, D)`. `positives`: row of each query's positive, `(B,)`. `excluded`: `(B, M)` of bool,
    true where a candidate is no negative. The focal weights (KaLM) carry gradients, the weights of
    hard negatives (EmbeddingGemma) none. `hard`: `(B, M)` of bool, true where a document is a hard
    negative of the query's own; needed with `hardness`. `mixed`: further negatives of each query's
    own, unit rows, `(B, S, D)`, from `mixed_negatives`.
    """
    import torch

    focal, hardness = weighting.focal, weighting.hardness
    similarities = queries @ documents.T
    logits = similarities / temperature
    if hardness and hard is not None:
        logits = logits + hardness * similarities.detach() * hard
    if excluded is not None:
        logits = logits.masked_fill(without_positives(excluded, positives), -torch.inf)
    if mixed is not None:
        mixed_logits = torch.einsum("bd,bsd->bs", queries, mixed)
        weighted = mixed_logits / temperature + (
            hardness * mixed_logits.detach() if hardness else 0.0
        )
        present = mixed.detach().abs().sum(-1) > 0
        logits = torch.cat([logits, weighted.masked_fill(~present, -torch.inf)], 1)
    log_p = torch.log_softmax(logits, 1).gather(1, positives[:, None])[:, 0]
    return (-((1 - log_p.exp()).clamp_min(0) ** focal) * log_p).mean() if focal else -log_p.mean()


def mixed_negatives(
    documents: Tensor,
    owners: Tensor,
    count: int,
    *,
    mixes: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """Make negatives between negatives.

    Of each query, two of its hard negatives mixed by a draw from Beta(2, 2) (KaLM). `documents`:
    hard negatives, unit rows, `(H, D)`. `owners`: query of each, `(H,)`. `mixes`: negatives made
    for each query. `generator`: source of the draws; None for torch's own. Returns unit rows `(B,
    mixes, D)`; zero where a query has fewer than two hard negatives. Gradients flow into both sides
    of a mix.
    """
    import torch

    out = documents.new_zeros(count, mixes, documents.shape[1])
    rows: list[Tensor] = []
    places: list[tuple[int, int]] = []
    for query in range(count):
        own_rows = torch.nonzero(owners == query)[:, 0]
        if len(own_rows) < 2:
            continue
        for mix in range(mixes):
            first, second = own_rows[
                torch.randperm(len(own_rows), generator=generator)[:2].to(own_rows.device)
            ]
            share = _beta(generator)
            rows.append(share * documents[first] + (1 - share) * documents[second])
            places.append((query, mix))
    if not rows:
        return out
    at = torch.tensor(places, device=out.device)
    return out.index_put((at[:, 0], at[:, 1]), normalize(torch.stack(rows)))


def _beta(generator: Generator | None) -> float:
    """Draw from Beta(2, 2), which is the middle one of three uniform numbers."""
    import torch

    return float(torch.rand(3, generator=generator).median())


def sign_straight_through(vectors: Tensor) -> Tensor:
    """Binary codes forward, the identity backward (quantisation-aware training; ours).

    Returns `(N, D)` of plus or minus one over the root of D, so that rows have unit length and a
    dot product is the share of equal bits, scaled to -1 to 1. The gradient is that of `vectors`.
    """
    import torch

    codes: Tensor = torch.where(vectors > 0, 1.0, -1.0).to(vectors.dtype) / vectors.shape[-1] ** 0.5
    straight: Tensor = vectors + (codes - vectors).detach()
    return straight


INT8_STEPS = 255
"""Steps between the smallest and the largest code of int8."""


def int8_straight_through(vectors: Tensor) -> Tensor:
    """Int8 codes forward, the identity backward (quantisation-aware training; ours).

    Each dimension has the range of the batch, as stored vectors have that of the calibration texts
    (`compress.Int8Ranges`). Returns `(N, D)`: what the codes of the unit rows stand for, scaled to
    unit length. The gradient is that of `vectors` scaled to unit length.
    """
    import torch

    unit = normalize(vectors)
    low, high = unit.detach().amin(0), unit.detach().amax(0)
    step = ((high - low) / INT8_STEPS).clamp_min(torch.finfo(unit.dtype).tiny)
    codes = ((unit.detach() - low) / step).round() * step + low
    straight: Tensor = unit + (normalize(codes) - unit).detach()
    return straight


class ContrastConfig(TermConfig):
    """Keys of the phase; temperature and mask are of the inputs."""

    in_menu: ClassVar[bool] = False
    sharpen: HardNegativeWeighting = Field(
        default=HardNegativeWeighting(),
        description="Focal and hardness weights and mixed negatives of InfoNCE, off by default",
    )


BOTH_ROWS = (RowKind.PAIRS, RowKind.LABELLED)


def _contrast(
    name: str, order: int, codes: Callable[[Tensor], Tensor], *, plain: bool = False
) -> LossTerm[ContrastConfig]:
    """Describe a contrast of what `codes` makes of the vectors.

    The plain one is taken of labeled rows as well, and its temperature can be learned.
    """

    def compute(config: ContrastConfig, inputs: LossInputs, width: int) -> Tensor:
        if inputs.kind is RowKind.LABELLED:
            return _both_ways(inputs, width)
        return _of_pairs(config, inputs, width, codes)

    return LossTerm(
        name=name,
        order=order,
        compute=compute,
        config=ContrastConfig,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, *((Task.CLASSIFICATION,) if plain else ())),
        rows={"adapter": BOTH_ROWS if plain else PAIR_ROWS},
        needs=frozenset({"candidates", "several_rows"}),
        learns_temperature=plain,
        phase_settings={
            "temperature": PhaseSetting(rows=BOTH_ROWS),
            "learn_temperature": PhaseSetting(rows=BOTH_ROWS),
            "min_temperature": PhaseSetting(rows=BOTH_ROWS),
            "negatives": PhaseSetting(rows=BOTH_ROWS),
            "false_negative_margin": PhaseSetting(rows=PAIR_ROWS),
            "negatives_of_others": PhaseSetting(rows=PAIR_ROWS),
            "sharpen": PhaseSetting(rows=PAIR_ROWS),
            "mask_same_label": PhaseSetting(rows=(RowKind.LABELLED,)),
        },
    )


def _of_pairs(
    config: ContrastConfig, inputs: LossInputs, width: int, codes: Callable[[Tensor], Tensor]
) -> Tensor:
    import torch

    queries = codes(inputs.vectors[inputs.query_idx, :width])
    documents = codes(inputs.vectors[inputs.candidate_idx, :width])
    count, weighting = len(queries), config.sharpen
    positives = torch.arange(count, device=queries.device)
    if not weighting.enabled:
        return info_nce(queries, documents, positives, inputs.temperature, excluded=inputs.excluded)
    hard = mixed = None
    owners = inputs.negative_owner
    if owners is not None and len(owners):
        if weighting.hardness:
            is_own = owners[None, :] == positives[:, None]
            hard = torch.cat([is_own.new_zeros(count, count), is_own], 1)
        if weighting.mixed_negatives:
            mixed = mixed_negatives(
                documents[count:],
                owners,
                count,
                mixes=weighting.mixed_negatives,
                generator=step_rng(inputs.step),
            )
    return sharpened_info_nce(
        queries,
        documents,
        positives,
        inputs.temperature,
        excluded=inputs.excluded,
        weighting=weighting,
        hard=hard,
        mixed=mixed,
    )


def _both_ways(inputs: LossInputs, width: int) -> Tensor:
    """Contrast anchors with documents, and positives with anchors (section 5.4)."""
    import torch

    assert inputs.positive_idx is not None
    unit = normalize(inputs.vectors[:, :width])
    anchors, documents = unit[inputs.query_idx], unit[inputs.candidate_idx]
    diagonal = torch.arange(len(anchors), device=anchors.device)
    tau, excluded = inputs.temperature, inputs.excluded
    forward = info_nce(anchors, documents, diagonal, tau, excluded=excluded)
    among_anchors = None if excluded is None else excluded[:, : len(anchors)]
    backward = info_nce(
        unit[inputs.positive_idx], unit[inputs.query_idx], diagonal, tau, excluded=among_anchors
    )
    return forward + backward


TERMS = (
    _contrast("info_nce", 1, normalize, plain=True),
    _contrast("binary_info_nce", 6, sign_straight_through),
    _contrast("int8_info_nce", 7, int8_straight_through),
)
