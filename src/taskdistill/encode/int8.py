"""The int8 back end: every linear map of the layers in eight bits, smoothed by what flows through
it, its cosine to float32 measured.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from taskdistill.encode.batches import token_batches
from taskdistill.encode.int8_linear import FusedLinear, FusedSlice, Int8Linear, available
from taskdistill.errors import BadInput
from taskdistill.model.golden import BASE, cosines
from taskdistill.model.layers import layers_of
from taskdistill.model.model import Model
from taskdistill.model.reference_texts import TEXTS
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import Role

ALPHA = 0.5
"""Share of an input channel's range that smoothing moves into the weights (SmoothQuant, arXiv
2211.10438); 0.4 to 0.6 were best.
"""

SMALLEST = 1e-5
CALIBRATION_TOKENS = 1024
SIBLINGS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Maps of the same input that are computed as one, in the order in which a layer calls them."""


@dataclass(frozen=True, slots=True)
class CosineStats:
    """How close int8 vectors came to those in float32 on the calibration texts."""

    mean: float
    smallest: float
    texts: int


class Int8Model:
    """A transformer whose linear maps run in eight bits, one copy of them for each task that was
    asked for.
    """

    def __init__(self, model: Model, texts: Sequence[str] | None = None) -> None:
        """Prepare the base; a task's maps, with its adapter merged, are made when the task is first
        selected.

        `model`: the model in float32; it is not changed and its other weights are shared. `texts`:
        calibration texts; None for fixed ones in several scripts. Raises BadInput if the model is
        static or not on the CPU, no text is given, or torch has no int8 kernels.
        """
        if not isinstance(model.module, TransformerModel):
            raise BadInput(
                f"{model.name} is a static model and has no linear maps for int8; use the back end"
                " torch"
            )
        if model.module.device.type != "cpu":
            raise BadInput(
                f"back end int8 runs on a CPU, the model is on {model.module.device}; use the back"
                " end torch there"
            )
        if not available():
            raise BadInput("this build of torch has no oneDNN int8 kernels; use the back end torch")
        chosen = list(TEXTS if texts is None else texts)
        if not chosen:
            raise BadInput(
                "int8 needs calibration texts and got none; give some texts like those that will be"
                " encoded, or leave them out"
            )
        prompt = model.settings.prompts.get(Role.DOCUMENT.value, "")
        self._ids = [
            row
            for row in model.tokenizer.ids(
                chosen, prompt=prompt, max_length=model.settings.max_length
            ).ids
            if len(row)
        ]
        self._source = model.module
        self.tasks = model.module.tasks
        self.embedding_dim = model.module.embedding_dim
        self.cosines: dict[str, CosineStats] = {}
        """`base` or task to what was measured; filled as tasks are selected."""
        self._modules: dict[str | None, TransformerModel] = {}
        self._task: str | None = None
        self._lock = threading.Lock()

    def select(self, task: str | None) -> None:
        """Switch to a task's maps. `task`: name of an adapter, or None for the base."""
        self._task = task

    def prepare(self, task: str | None) -> TransformerModel:
        """Give a task's int8 copy, making it the first time.

        `task`: name of an adapter, or None for the base.
        """
        with self._lock:
            if task not in self._modules:
                self._modules[task], self.cosines[task or BASE] = quantized(
                    self._source, task, self._ids
                )
            return self._modules[task]

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors. Returns `(texts, D)` in the order given, not normalised."""
        prepared = self._modules.get(self._task)
        return (prepared or self.prepare(self._task)).embed(ids)


@torch.no_grad()
def quantized(
    source: TransformerModel, task: str | None, ids: Sequence[np.ndarray]
) -> tuple[TransformerModel, CosineStats]:
    """Make an int8 copy of a model for one task, and measure it.

    `source`: the model in float32, with its adapters; nobody else may use it meanwhile. `task`:
    adapter to merge; None for the base. Returns the copy, which shares every tensor but those of
    the linear maps, and its cosines to the model in float32.
    """
    source.select(task)
    try:
        largest: dict[str, Tensor] = {}
        with _recording(source, largest):
            expected = _embed(source, ids)
    finally:
        source.select(None)
    shared = {id(tensor): tensor for tensor in (*source.parameters(), *source.buffers())}
    model = copy.deepcopy(source, shared)
    for parent, names in _families(model):
        owner = model.backbone.get_submodule(parent)
        parts = [_weights(owner.get_submodule(name), task) for name in names]
        smooth = _smooth(
            torch.cat([weight for weight, _ in parts]), largest[f"{parent}.{names[0]}"]
        )
        fused = Int8Linear(
            torch.cat([weight for weight, _ in parts]), _joined([bias for _, bias in parts]), smooth
        )
        family = FusedLinear(fused, [len(weight) for weight, _ in parts])
        for place, name in enumerate(names):
            setattr(owner, name, fused if len(names) == 1 else FusedSlice(family, place))
    result = cosines(expected, _embed(model, ids))
    return model, CosineStats(float(result.mean()), float(result.min()), len(result))


def _maps(module: TransformerModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield every linear map of the layers, adapters included, by its name in the backbone."""
    layers = layers_of(module.backbone)
    place = next(name for name, result in module.backbone.named_modules() if result is layers)
    inside = ""
    for name, result in layers.named_modules(prefix=place):
        if isinstance(result, LoraLayer):
            inside = f"{name}."
        if isinstance(result, LoraLayer | nn.Linear) and not (inside and name.startswith(inside)):
            yield name, result


def _families(module: TransformerModel) -> list[tuple[str, tuple[str, ...]]]:
    """Name the maps by their parent; those of the same input stand together."""
    names = [name.rpartition(".") for name, _ in _maps(module)]
    children: dict[str, list[str]] = {}
    for parent, _, child in names:
        children.setdefault(parent, []).append(child)
    result: list[tuple[str, tuple[str, ...]]] = []
    for parent, linears in children.items():
        together = [group for group in SIBLINGS if set(group) <= set(linears)]
        alone = [(name,) for name in linears if not any(name in group for group in together)]
        result += [(parent, group) for group in (*together, *alone)]
    return result


def _weights(result: nn.Module, task: str | None) -> tuple[Tensor, Tensor | None]:
    """Give weights and bias of a map, with a task's update added."""
    base = result.get_base_layer() if isinstance(result, LoraLayer) else result
    assert isinstance(base, nn.Linear)
    weight = base.weight.detach()
    if isinstance(result, LoraLayer) and task is not None and task in result.lora_A:
        weight = weight + result.get_delta_weight(task).to(weight.dtype)
    return weight, base.bias


def _joined(biases: list[Tensor | None]) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return torch.cat(present) if present else None


def _smooth(weight: Tensor, largest: Tensor) -> Tensor:
    """Choose what each input channel is divided by, so that inputs and weights share what is hard
    to round.
    """
    return (
        largest.clamp(min=SMALLEST) ** ALPHA
        / weight.abs().amax(0).clamp(min=SMALLEST) ** (1 - ALPHA)
    ).clamp(min=SMALLEST)


@contextmanager
def _recording(module: TransformerModel, largest: dict[str, Tensor]) -> Iterator[None]:
    """Note the largest magnitude of every input channel of every map while texts run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            size = inputs[0].flatten(0, -2).abs().amax(0)
            largest[name] = torch.maximum(largest[name], size) if name in largest else size

        return note

    hooks = [result.register_forward_hook(hook(name)) for name, result in _maps(module)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _embed(module: TransformerModel, ids: Sequence[np.ndarray]) -> np.ndarray:
    vectors = np.zeros((len(ids), module.embedding_dim), np.float32)
    for batch in token_batches(np.array([len(row) for row in ids]), CALIBRATION_TOKENS):
        vectors[batch] = module.embed([ids[i] for i in batch]).float().numpy()
    return vectors
