"""Windowed attention on the packed stream: the vectors and gradients of transformers itself, at a
cost that grows with the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny
from helpers import tiny_families as families
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.model import packed_attention as attention
from taskdistill.model.backbone import build_backbone, without_dropout
from taskdistill.model.band import Band, FamilyMask, band_mask
from taskdistill.model.packed import pack
from taskdistill.model.packed_attention import ATTENTION, packed_attention
from taskdistill.model.student import TransformerModel
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.workers import WorkerPool
from taskdistill.types import Pooling

BOTH_WAYS = {"use_bidirectional_attention": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("modernbert", {}),
    "modernbert, odd window": ("modernbert", {"local_attention": 10}),
    "modernbert, window of one": ("modernbert", {"local_attention": 1}),
    "modernbert-decoder": ("modernbert-decoder", {}),
    "gemma3": ("gemma3_text", families.WINDOWED),
    "gemma3, both ways": ("gemma3_text", families.WINDOWED | BOTH_WAYS),
    "gemma3, both ways, odd window": (
        "gemma3_text",
        families.WINDOWED | BOTH_WAYS | {"sliding_window": 13},
    ),
    "embedding gemma 2": ("embedding_gemma2_text", {}),
    "mistral": ("mistral", {}),
    "mistral, window of one": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, upper layers": ("qwen3", {"layer_types": None, "max_window_layers": 2}),
    "gpt_oss": ("gpt_oss", families.WINDOWED),
}
LENGTHS = (24, 80, 5, 63, 150, 1, 80)
"""Three to ten windows of eight tokens and more, and texts within one; 150 tokens are several
blocks of queries.
"""


@pytest.fixture(params=CASES)
def made(request):
    kind, changes = CASES[request.param]
    return families.backbone(kind, **changes)


@pytest.fixture(params=["blocks of 64", "blocks of 3"])
def blocks(request, monkeypatch):
    if request.param == "blocks of 3":
        monkeypatch.setitem(attention.BLOCK, "cpu", (3, 3))


def scale(states: list[Tensor]) -> float:
    return max(float(part.abs().max()) for part in states)


def test_states_are_those_of_each_text_by_itself(made, blocks):
    ids = families.texts(LENGTHS)
    with torch.no_grad():
        found, rows = families.together(made, ids), families.together(made, ids, by_rows=True)
        single = [families.together(made, [text])[0] for text in ids]
        expected = families.alone(made, ids)
    for other in (found, rows, single):
        assert max(
            float((a - b).abs().max()) for a, b in zip(other, expected, strict=True)
        ) <= 2e-5 * max(1.0, scale(expected))


def test_texts_about_as_long_as_a_window_or_a_few_of_them(made):
    """Off by one shows at a window's own length: each text alone in its batch, and all of them
    together.
    """
    ids = families.texts((*range(6, 12), *range(15, 19), 1, 2, 23, 24, 25, 33))
    with torch.no_grad():
        together, expected = families.together(made, ids), families.alone(made, ids)
        made.set_attn_implementation(ATTENTION)
        single = [families.together(made, [text])[0] for text in ids]
    for other in (together, single):
        assert max(
            float((a - b).abs().max()) for a, b in zip(other, expected, strict=True)
        ) <= 2e-5 * max(1.0, scale(expected))


def test_gradients_are_those_of_each_text_by_itself(made, blocks):
    ids = families.texts((24, 80, 5, 70))
    weights = [
        torch.linspace(-1, 1, len(text) * families.WIDTH).reshape(len(text), -1) for text in ids
    ]
    both = []
    for side in (families.together, families.alone):
        made.zero_grad()
        torch.stack(
            [(part * own).sum() for part, own in zip(side(made, ids), weights, strict=True)]
        ).sum().backward()
        both.append(
            {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
        )
    found, expected = both
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 5e-5 * max(
            1.0, float(gradient.abs().max())
        ), name


def test_windows_decide_something():
    """The same weights without a window give other states, so the equalities above would show a
    lost window.
    """
    for kind, changes in (
        ("modernbert", {"local_attention": 10_000}),
        ("mistral", {"sliding_window": 10_000}),
    ):
        with torch.no_grad():
            near, far = (
                families.together(families.backbone(kind, **change), families.texts((80,)))[0]
                for change in ({}, changes)
            )
        assert float((near - far).abs().max()) > 0.01 * float(far.abs().max())


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_tokens_is_refused_before_any_text(kind, window):
    with pytest.raises(BadInput, match=f"sliding_window is {window}"):
        build_backbone(families.config(kind, **families.WINDOWED, sliding_window=window))


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "modernbert"])
@pytest.mark.parametrize(
    "types",
    [["chunked_attention", "full_attention"] * 2, ["linear_attention"] * 4, ["full_attention"], []],
)
def test_layers_of_other_kinds_or_numbers_are_refused_before_any_text(kind, types):
    with pytest.raises(BadInput, match=r"^student\.config") as refused:
        build_backbone(families.config(kind, layer_types=types))
    assert "\n" not in str(refused.value)


class Products:
    """Counts what is given to torch's attention."""

    def __init__(self, monkeypatch) -> None:
        self.shapes: list[tuple[int, int, bool]] = []
        real = F.scaled_dot_product_attention

        def counted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            self.shapes.append((q.shape[2], k.shape[2], options.get("attn_mask") is not None))
            return real(q, k, v, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    @property
    def pairs(self) -> int:
        return sum(queries * keys for queries, keys, _ in self.shapes)


@pytest.mark.parametrize("grad", [False, True])
def test_pairs_of_tokens_grow_with_the_length_not_its_square(monkeypatch, grad):
    """Neither time nor memory is quadratic: no product is larger than a block and its reach, also
    in training.
    """
    model = TransformerModel(
        families.backbone("mistral", max_position_embeddings=4096), Pooling.MEAN
    )
    counts = []
    for length in (1024, 2048, 4096):
        products = Products(monkeypatch)
        with torch.set_grad_enabled(grad):
            model.embed(families.texts((length,)))
        counts.append(products.pairs)
        assert max(queries * keys for queries, keys, _ in products.shapes) <= 64 * 192
        monkeypatch.undo()
    assert counts[1] <= 2.1 * counts[0] and counts[2] <= 2.1 * counts[1]


def test_a_gradient_does_not_take_memory_by_the_square(monkeypatch):
    """What backward makes of the blocks of keys has the size of the blocks, not that of the text
    for each of them.
    """
    made: list[int] = []
    query, key, value = (torch.randn(1, 2, 2048, 8, requires_grad=True) for _ in range(3))
    groups = pack(families.texts((2048,))).groups
    out, _ = packed_attention(
        nn.Module(), query, key, value, None, groups=groups, is_causal=True, sliding_window=8
    )

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(
                part.numel()
                for part in torch.utils._pytree.tree_leaves(result)
                if isinstance(part, Tensor) and part._base is None
            )
            return result

    with Sizes():
        out.sum().backward()
    assert sum(made) <= 40 * query.numel()


def test_short_texts_run_without_mask_once_a_length(monkeypatch):
    """Texts within the window cost what they cost without one."""
    model = TransformerModel(families.backbone("modernbert"), Pooling.MEAN)
    products = Products(monkeypatch)
    with torch.no_grad():
        model.embed(families.texts((4, 4, 9, 7)))
    assert products.shapes == [(4, 4, False), (7, 7, False), (9, 9, False)] * 4


def test_layers_and_texts_share_their_masks():
    band_mask.cache_clear()
    model = TransformerModel(families.backbone("modernbert"), Pooling.MEAN)
    with torch.no_grad():
        model.embed(families.texts((150, 149)))
    assert band_mask.cache_info().misses <= 6


def test_masks_made_while_encoding_serve_training():
    band_mask.cache_clear()
    model = TransformerModel(families.backbone("mistral"), Pooling.MEAN)
    with torch.inference_mode():
        model.embed(families.texts((150,)))
    model.embed(families.texts((150,))).sum().backward()


# what a layer may ask for


def attend(
    module: nn.Module | None = None, mask: Any = None, length: int = 6, **asked: Any
) -> Tensor:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 8) for _ in range(3))
    groups = pack(families.texts((length,))).groups
    return packed_attention(
        module or nn.Module(), query, key, value, mask, groups=groups, **{"is_causal": True} | asked
    )[0]


@pytest.mark.parametrize(
    "keyword", ["softcap", "position_bias", "sinks", "cache", "chunk_size", "something_new"]
)
def test_keywords_that_are_not_known_are_refused(keyword):
    for value in (30.0, 1, torch.ones(2), True):
        with pytest.raises(BadInput, match=keyword):
            attend(**{keyword: value})
    assert torch.equal(attend(**{keyword: None}), attend())


def test_keywords_that_change_nothing_pass():
    assert torch.equal(
        attend(deterministic=True, position_ids=torch.arange(6), use_cache=False), attend()
    )


def test_a_layer_that_does_not_say_whether_it_is_causal_is_refused():
    with pytest.raises(BadInput, match="does not say whether it is causal"):
        attend(is_causal=None)


def mask_of(rule: Any) -> FamilyMask:
    return FamilyMask(lambda batch, head, q, k: rule(q, k), torch.device("cpu"))


@pytest.mark.parametrize(
    "rule",
    {
        "chunks": lambda q, k: (q // 4 == k // 4) & (k <= q),
        "prefix": lambda q, k: (k <= q) | (k < 3),
        "strided": lambda q, k: (k <= q) & ((q - k) % 2 == 0),
        "no first token": lambda q, k: (k <= q) & ((k > 0) | (q == 0)),
    }.values(),
)
def test_masks_that_are_no_band_are_refused(rule):
    with pytest.raises(BadInput, match="cannot be packed"):
        attend(mask=mask_of(rule), length=12)


def test_a_mask_of_another_direction_than_the_layer_says_is_refused():
    with pytest.raises(BadInput, match="says that it is causal"):
        attend(mask=mask_of(lambda q, k: (q - k).abs() < 100))


@pytest.mark.parametrize("chunk", [2, 3, 4, 7])
def test_chunks_are_refused_in_every_text_longer_than_one(chunk):
    """Wherever the tokens that are looked at stand in their chunks."""
    for length in range(chunk + 1, 5 * chunk):
        for rule in (
            lambda q, k: (q // chunk == k // chunk) & (k <= q),
            lambda q, k: q // chunk == k // chunk,
        ):
            with pytest.raises(BadInput):
                attend(
                    mask=mask_of(rule),
                    length=length,
                    is_causal=rule(torch.tensor(0), torch.tensor(1)).item() is False,
                )


@pytest.mark.parametrize("reach", [(2, 7), (7, 2), (0, 5), (11, 1), (1, 11), (30, 3), (3, 30)])
@pytest.mark.parametrize("length", [4, 8, 12, 13, 20])
def test_a_band_may_reach_further_on_one_side(reach, length):
    before, behind = reach
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 8) for _ in range(3))
    mask = mask_of(lambda q, k: (q - k <= before) & (k - q <= behind))
    found, _ = packed_attention(
        nn.Module(),
        query,
        key,
        value,
        mask,
        groups=pack(families.texts((length,))).groups,
        is_causal=False,
    )
    distance = torch.arange(length) - torch.arange(length)[:, None]
    seen = (distance >= -before) & (distance <= behind)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
    assert float((found - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("before", [0, 1, 4, 50])
@pytest.mark.parametrize("causal", [True, False])
def test_the_band_is_read_off_the_mask_whatever_the_keyword_says(before, causal):
    """Transformers' own attention goes by the mask; the keyword is for kernels that get none."""
    band = Band(before, 0 if causal else before)
    mask = mask_of(lambda q, k: (q - k <= before) & (k - q <= (0 if causal else before)))
    read = mask.band(pack(families.texts((20,))).groups)
    assert read == (band if before < 19 else Band(None, 0 if causal else None))
    expected = attend(length=20, is_causal=causal, sliding_window=before + 1)
    assert torch.equal(attend(mask=mask, length=20, is_causal=causal, sliding_window=3), expected)


def test_a_longer_text_is_looked_at_again():
    """A layer whose chunks show only in longer texts is refused when the first of them comes."""
    module = nn.Module()
    mask = lambda: mask_of(lambda q, k: (q // 10 == k // 10) & (k <= q))  # noqa: E731
    attend(module, mask(), length=9)
    with pytest.raises(BadInput, match="cannot be packed"):
        attend(module, mask(), length=25)


def test_sinks_are_those_of_the_formula():
    """A sink takes part in the softmax and carries no value (gpt_oss), in windows too, and its
    gradient is right.
    """
    length, groups = 40, pack(families.texts((40,))).groups
    for window in (None, 7):
        torch.manual_seed(1)
        query, key, value = (
            torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)
        )
        sinks = torch.randn(4, requires_grad=True)
        found, _ = packed_attention(
            nn.Module(),
            query,
            key,
            value,
            None,
            groups=groups,
            is_causal=True,
            sliding_window=window,
            s_aux=sinks,
            scaling=0.3,
        )
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | (distance >= (window or length))
        scores = (query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3).masked_fill(
            hidden, float("-inf")
        )
        weights = torch.cat(
            [scores, sinks[None, :, None, None].expand(1, 4, length, 1)], -1
        ).softmax(-1)[..., :-1]
        expected = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
        assert float((found - expected).detach().abs().max()) <= 1e-6
        for one, other in zip(
            torch.autograd.grad(found.square().sum(), (query, key, value, sinks)),
            torch.autograd.grad(expected.square().sum(), (query, key, value, sinks)),
            strict=True,
        ):
            assert float((one - other).abs().max()) <= 1e-5


# the variable-length kernel of a GPU, its place taken by a reference


@pytest.fixture
def kernel(monkeypatch) -> Iterator[list[tuple[int, int]]]:
    """Give the windows of all calls of the kernel; the fallback fails the test."""
    calls: list[tuple[int, int]] = []

    def reference(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor,
        _: Tensor,
        longest: int,
        __: int,
        **options: Any,
    ) -> Tensor:
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and starts.dtype == torch.int32
        before, behind = options["window_size"]
        calls.append((before, behind))
        out = []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            assert stop - start <= longest
            distance = torch.arange(stop - start) - torch.arange(stop - start)[:, None]
            seen = (distance >= -(before if before >= 0 else longest)) & (
                distance <= (behind if behind >= 0 else longest)
            )
            part = [each[start:stop].transpose(0, 1)[None].float() for each in (q, k, v)]
            out.append(
                F.scaled_dot_product_attention(
                    *part, attn_mask=seen, scale=options["scale"], enable_gqa=options["enable_gqa"]
                )[0].transpose(0, 1)
            )
        return torch.cat(out).to(q.dtype)

    monkeypatch.setattr(attention, "KERNEL_DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference)

    def fallback(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the fallback ran")

    monkeypatch.setattr(attention._Attend, "__call__", fallback)
    yield calls


KERNEL_FAMILIES = {
    "bert": {(-1, -1)},
    "eurobert": {(-1, -1)},
    "qwen3": {(7, 0), (-1, 0)},
    "modernbert": {(8, 8), (-1, -1)},
    "gemma3_text": {(7, 0)},
}
"""Family to the windows of its layers, before and behind; in the last one all layers have one."""


@pytest.mark.parametrize("family", KERNEL_FAMILIES)
def test_training_in_bfloat16_runs_on_the_kernel(family, kernel):
    """Norms and rotations in float32 widen queries and keys under autocast; all layers reach the
    kernel all the same.
    """
    model = TransformerModel(families.backbone(family), Pooling.MEAN).train()
    without_dropout(model.backbone)
    ids = families.texts((24, 80, 5, 24))
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(vectors: Tensor) -> tuple[dict[str, Tensor], float]:
        return {"sum": vectors.float().sin().sum()}, 0.0

    passes = Passes(seed=1, micro_batch_tokens=100, compute=torch.bfloat16)
    gradients(model, ids, StepLoss(terms=loss), trained, passes, threads=WorkerPool(1))
    assert len(kernel) == 4 * 2 and set(kernel) == KERNEL_FAMILIES[family]
    passes = replace(passes, keep_tokens=0)
    gradients(model, ids, StepLoss(terms=loss), trained, passes, threads=WorkerPool(1))
    assert len(kernel) == 4 * 2 + 2 * 4 * 2


@pytest.mark.parametrize("family", KERNEL_FAMILIES)
def test_encoding_in_bfloat16_runs_on_the_kernel(family, kernel):
    model = TransformerModel(families.backbone(family), Pooling.MEAN)
    with torch.no_grad():
        expected = [
            part.mean(0) for part in families.alone(model.backbone, families.texts((24, 80, 5)))
        ]
        model.backbone.set_attn_implementation(ATTENTION)
        found = model.to(torch.bfloat16).embed(families.texts((24, 80, 5)))
    assert len(kernel) == 4 and set(kernel) == KERNEL_FAMILIES[family]
    assert F.cosine_similarity(found.float(), torch.stack(expected)).min() >= 0.99


def test_float32_and_dropout_stay_off_the_kernel(monkeypatch):
    monkeypatch.setattr(attention, "KERNEL_DEVICES", frozenset({"cpu"}))
    half, single = torch.zeros(4, 2, 8, dtype=torch.bfloat16), torch.zeros(4, 2, 8)
    assert attention.kernel_takes(half, half, 0.0)
    assert not attention.kernel_takes(single, single, 0.0) and not attention.kernel_takes(
        half, half, 0.1
    )
    odd = torch.zeros(4, 2, 12, dtype=torch.bfloat16)
    assert not attention.kernel_takes(odd, odd, 0.0) and not attention.kernel_takes(half, odd, 0.0)


def test_training_in_bfloat16_without_the_kernel_is_near_float32():
    """The fallback, too, computes in one number type."""
    model = TransformerModel(build_backbone(tiny.config("qwen3")), Pooling.MEAN)
    ids = [np.arange(5, 40), np.arange(7, 19)]
    with torch.no_grad():
        exact = model.embed(ids)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.embed(ids)
    assert F.cosine_similarity(rough.float(), exact).min() >= 0.99
