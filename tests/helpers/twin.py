"""A pretend accelerator named `twin`: tensors that live on the CPU, say that they do not, and
refuse to meet tensors that are really there.

Importing this module registers the device in this process, so that `torch.device("twin:0")` exists
and tensors can be put there. It is no *available* accelerator, which `device: auto` would choose,
until `present()` (or `attach()`, for the rest of the process) says so. A child process imports the
module, or finds it by itself through the entry point that `autoload(folder)` writes: that is how
torch finds the packages of real devices outside its tree.

What is checked, and where the rule comes from:
- Two devices in one operation. Which operators torch's own code generator checks on CUDA
  (`device_check` in native_functions.yaml, which ships with torch) decides: operators with the
  check take no CPU tensor at all, not even a scalar; operators of TensorIterator take one CPU
  scalar of no dimension among their inputs, never as an output (TensorIterator::compute_types).
  tests/helpers/test_twin.py compares the refusals with those of torch's FakeTensor for `cuda`.
- Indexing takes indices of the CPU for a tensor of the device, not the other way round; a value put
  there may be one CPU scalar.
- Fused AdamW wants its step counters on the device. `torch.equal`, `cat`, `stack`, `mm`,
  `index_select`, `out=` and so on want one device.
- `.numpy()` and `np.asarray` are refused; `.cpu()`, `.item()` and `.tolist()` copy;
  `torch.from_numpy` makes tensors of the CPU.
- A generator belongs to a device: twin tensors draw from a generator of the twin only. `bernoulli_`
  and the like draw the CPU's numbers.
- `.to(device)` of a module keeps its Parameter objects, as on CUDA, and `.data =` crosses devices.
- A copy to the CPU with `non_blocking=True` holds garbage until `torch.twin.synchronize()` or
  another copy that waits.
- `pin_memory` gives a copy that says so, of CPU tensors only.
- Memory: `torch.twin.mem_get_info()`, with `limit_memory()`; a tensor larger than what is free
  raises torch.OutOfMemoryError.
- `torch.autocast("twin")` casts what CUDA's does (autocast_mode.h), as far as this package's models
  use it.

What it cannot show: other results of other kernels (matrix products of a card, TF32, flash
attention: operators run on the CPU, so results are the CPU's bits), streams and races between them,
NCCL, peer-to-peer copies, out of memory in the middle of a kernel, CUDA graphs, several devices,
`torch.compile`. In-place operators that change a tensor's shape are refused (`resize_`, `t_`,
`set_`). A CPU tensor that draws from a twin's generator is not noticed. Not checked against a card:
see the notes at `CAST_LOW` and `_pending`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "twin"
GIGABYTE = 1 << 30
CROSSING = {"copy_", "_to_copy", "_copy_from", "_copy_from_and_resize"}
"""Operators that are there to cross devices."""
INDEXING = {
    "index",
    "_unsafe_index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index_put",
}
ANY_VALUE = {"fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
"""TensorIterator's operators of which only the argument `value` may be a CPU scalar; their mask or
index may not.
"""
RESHAPES_ITSELF = {
    "resize_",
    "t_",
    "set_",
    "squeeze_",
    "unsqueeze_",
    "transpose_",
    "swapaxes_",
    "swapdims_",
    "as_strided_",
    "resize_as_",
}
CAST_LOW = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addbmm",
    "mv",
    "addmv",
    "addr",
    "linear",
    "matmul",
    "linalg_vecdot",
    "prelu",
)
"""Operators that CUDA's autocast runs in the low precision (convolutions and recurrent cells are
left out: no model here has any).
"""
CAST_HIGH = (
    "layer_norm",
    "native_layer_norm",
    "softmax.int",
    "log_softmax.int",
    "exp",
    "log",
    "pow.Tensor_Scalar",
    "rsqrt",
    "reciprocal",
    "sum",
)
CAST_HIGH += (
    "sum.dim_IntList",
    "norm.Scalar",
    "cosine_similarity",
    "nll_loss",
    "cumsum",
    "prod",
    "softplus",
    "linalg_vector_norm",
)
"""Operators that it runs in float32."""


class _Module:
    """What `torch.twin` is: the functions that torch expects of a device, and those that CUDA has
    beside them.
    """

    def __init__(self) -> None:
        self.available = False
        self.total_memory = 4 * GIGABYTE
        self.used_elsewhere = 0
        self.synchronized = 0
        self.calls: dict[str, int] = {}

    def is_available(self) -> bool:
        return self.available

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1 if self.available else 0

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        _own(device)

    def get_device_name(self, device: Any = None) -> str:
        return "pretend accelerator"

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        _default_generator.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        _default_generator.manual_seed(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def synchronize(self, device: Any = None) -> None:
        self.synchronized += 1
        _finish_copies()

    def empty_cache(self) -> None:
        pass

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return max(0, self.total_memory - self.used_elsewhere), self.total_memory


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return module.available

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


module = _Module()
_setup_privateuseone_for_python_backend(NAME, module, _Hook())
DEVICE, CPU = torch.device(NAME, 0), torch.device("cpu")


class _GeneratorType(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_GeneratorType):
    """torch.Generator, which makes generators of the twin as well; those draw what a CPU's of the
    same seed draws.
    """

    def __new__(cls, device: Any = "cpu") -> Any:
        place = torch.device(device)
        if place.type != NAME:
            return torch._C.Generator(place)
        made = super().__new__(cls, "cpu")
        number = int(made._cdata)
        _generators.add(number)
        weakref.finalize(made, _generators.discard, number)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return DEVICE


_generators = set[int]()
"""Addresses of the twin's generators: an operator gets another Python object around the same one.
"""
torch.Generator = Generator  # type: ignore[misc, assignment]
_default_generator = Generator(NAME)
_pending: list[tuple[torch.Tensor, torch.Tensor]] = []
"""Copies to the CPU that nobody has waited for: target and what it will hold. On a card their order
follows the stream; here all end together.
"""


class Twin(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Twin:
        shape = {
            "strides": inner.stride(),
            "storage_offset": inner.storage_offset(),
            "dtype": inner.dtype,
        }
        made: Twin = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **shape, device=DEVICE)
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"twin({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert twin:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor"
            " to host memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def untyped_storage(self) -> Any:
        raise NotImplementedError("the pretend device hands out no storage")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(
            "the pretend device writes no pickles; move the tensor to the CPU"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            made: torch.Tensor = Twin(self.inner.detach().clone())
            made.requires_grad_(self.requires_grad)
            memo[id(self)] = (
                torch.nn.Parameter(made, self.requires_grad)
                if isinstance(self, torch.nn.Parameter)
                else made
            )
        return memo[id(self)]  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _checked() -> dict[str, bool]:
    """Read which operators torch checks on CUDA for one device: full name to whether it is checked
    by the generated code.
    """
    text = (
        Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    ).read_text("utf-8")
    found, name = {}, ""
    for line in text.splitlines():
        if started := re.match(r"- func: ([\w.]+)\(", line):
            name = started[1]
            found[name] = True
        elif line.lstrip().startswith("device_check: NoCheck"):
            found[name] = False
    return found


CHECKED = _checked()


class _Operator:
    """What an operator's schema says, read once."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.base = schema.name.removeprefix("aten::")
        self.full = f"{self.base}.{schema.overload_name}" if schema.overload_name else self.base
        self.arguments = [
            (a.name, a.alias_info is not None and a.alias_info.is_write) for a in schema.arguments
        ]
        self.draws = any(name == "generator" for name, _ in self.arguments)
        self.views = any(
            each.alias_info is not None and not each.alias_info.is_write for each in schema.returns
        )
        self.composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        )


_operators: dict[Any, _Operator] = {}


def _described(func: Any) -> _Operator:
    if func not in _operators:
        _operators[func] = _Operator(func)
    return _operators[func]


def _tensors(
    operator: _Operator, args: Sequence[Any], kwargs: dict[str, Any]
) -> list[tuple[str, bool, torch.Tensor]]:
    """List an operator's tensors: argument, whether it is written, tensor."""
    found = []
    for place, (name, written) in enumerate(operator.arguments):
        given = args[place] if place < len(args) else kwargs.get(name)
        for leaf in given if isinstance(given, list | tuple) else (given,):
            if isinstance(leaf, torch.Tensor):
                found.append((name, written, leaf))
    return found


def _meet(operator: _Operator, tensors: Sequence[tuple[str, bool, torch.Tensor]]) -> None:
    """Refuse two devices in one operator, as CUDA does."""
    base, full = operator.base, operator.full
    here = [each for each in tensors if isinstance(each[2], Twin)]
    there = [each for each in tensors if not isinstance(each[2], Twin)]
    if not here or not there or base in CROSSING:
        return

    def refuse(argument: str) -> None:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got {argument} is on cpu,"
            " different from other tensors on twin:0 (when checking argument in method"
            f" wrapper_{NAME}_{full})"
        )

    if base in INDEXING:
        for argument, _, tensor in there:
            if argument == "self" or (argument == "values" and tensor.dim() > 0):
                refuse(argument)
        return
    if CHECKED.get(full, True):
        refuse(there[0][0])
    scalars = 0
    for argument, written, tensor in there:
        if written or tensor.dim() > 0 or (base in ANY_VALUE and argument != "value"):
            refuse(argument)
        scalars += 1
    if scalars > 1:
        raise RuntimeError("Trying to pass too many CPU scalars to non-CPU kernel!")


def _own(device: Any) -> bool:
    if device is None:
        return False
    place = torch.device(device)
    if place.type == NAME and (place.index or 0) != 0:
        raise RuntimeError(f"{NAME} error: invalid device ordinal {place.index}")
    return place.type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    operator = _described(func)
    base = operator.base
    if base == "scaled_dot_product_attention":
        return _attention(*args, **kwargs)
    if base != "silu_backward" and operator.composite:
        return func.decompose(
            *args, **kwargs
        )  # reached in inference mode: each of its parts comes here by itself
    module.calls[base] = module.calls.get(base, 0) + 1
    tensors = _tensors(operator, args, kwargs)
    _meet(operator, tensors)
    if base in RESHAPES_ITSELF:
        raise NotImplementedError(
            f"the pretend device does not change shapes in place ({base}); use the operator without"
            " underscore"
        )
    target = kwargs.get("device")
    twins = [tensor for _, _, tensor in tensors if isinstance(tensor, Twin)]
    to_twin = _own(target) or (target is None and bool(twins))
    source = kwargs.get("generator")
    if source is not None and to_twin and source._cdata not in _generators:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if source is None and operator.draws and to_twin:
        kwargs = {**kwargs, "generator": _default_generator}
    here = {
        name: CPU if name == "device" and value is not None else _inner(value)
        for name, value in kwargs.items()
    }
    if base in ("_local_scalar_dense", "equal", "nonzero", "_to_copy", "copy_") and not kwargs.get(
        "non_blocking"
    ):
        _finish_copies()
    out = func(*(_inner(value) for value in args), **here)
    if base == "copy_":
        return args[0]
    if not to_twin:
        return _later(out) if base == "_to_copy" and kwargs.get("non_blocking") else out
    known = {id(tensor.inner): tensor for tensor in twins}
    if (
        operator.views
        and torch.is_inference_mode_enabled()
        and not all(tensor.is_inference() for tensor in twins)
    ):
        with torch.inference_mode(
            False
        ):  # a view of an ordinary tensor is an ordinary one, in inference mode too
            return _wrap(out, known)
    return _wrap(out, known)


def _inner(value: Any) -> Any:
    if isinstance(value, Twin):
        return value.inner
    return type(value)(_inner(each) for each in value) if type(value) in (list, tuple) else value


def _wrap(value: Any, known: dict[int, Twin]) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_wrap(each, known) for each in value)
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) in known:
        if _layout(known[id(value)]) != _layout(value):
            raise NotImplementedError(
                "an operator changed the shape of its `out`, which the pretend device cannot"
                " follow; give it the right shape"
            )
        return known[id(value)]
    if value.untyped_storage().nbytes() > module.mem_get_info()[0]:
        raise torch.OutOfMemoryError(
            f"{NAME} out of memory. Tried to allocate {value.untyped_storage().nbytes()} bytes."
        )
    return Twin(value)


def _later(result: torch.Tensor) -> torch.Tensor:
    held = result.clone()
    result.fill_(
        torch.nan if result.is_floating_point() else -(1 << 7) if result.dtype is torch.int8 else 0
    )
    _pending.append((result, held))
    return result


def _finish_copies() -> None:
    while _pending:
        target, held = _pending.pop()
        target.copy_(held)


_library = torch.library.Library("aten", "IMPL")
_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")


def _copied_from(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    return target


_library.impl("_copy_from", _copied_from, "PrivateUse1")


def _factory(name: str) -> None:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    _library.impl(name, lambda *args, **kwargs: _run(operator, args, kwargs), "PrivateUse1")


for _operator in (
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
    "randperm",
    "randperm.generator",
):
    _factory(_operator)  # torch would make these empty and let an operator resize them


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Take the CPU's own kernel where the CPU would, so that results have its bits."""
    aten = torch.ops.aten
    plain = [_inner(each) for each in (query, key, value, attn_mask)]
    chosen = torch._fused_sdp_choice(
        *plain, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if chosen == 1:
        if enable_gqa:
            key, value = (
                each.repeat_interleave(query.shape[-3] // each.shape[-3], -3)
                for each in (key, value)
            )
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _silu_backward(grad_output: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Cards have a kernel for this one; without one of its own, torch would compose it of other
    operators.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aten.silu_backward.default(grad_output, own)


for _key in ("PrivateUse1", "AutogradPrivateUse1"):
    _library.impl("scaled_dot_product_attention", _attention, _key)
    _library.impl("silu_backward", _silu_backward, _key)


_plain_data = torch._C.TensorBase.data
_plain_compatible = torch._has_compatible_shallow_copy_type


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _compatible(input: torch.Tensor, from_: torch.Tensor) -> bool:
    return (
        isinstance(input, Twin) or isinstance(from_, Twin) or bool(_plain_compatible(input, from_))
    )


_compatible.__annotations__ = {
    "input": torch.Tensor,
    "from_": torch.Tensor,
    "return": bool,
}  # torch's compiler compares them with its own


def _set_data(own: torch.Tensor, value: torch.Tensor) -> None:
    """Do what `tensor.data = value` does on CUDA, where both devices share one kind of tensor: the
    object stays, its content changes.
    """
    if not isinstance(own, Twin) and not isinstance(value, Twin):
        _plain_data.__set__(own, value)
        return
    if isinstance(own, Twin) and isinstance(value, Twin) and _layout(own) == _layout(value):
        own.inner = value.inner
        return
    needs_grad, is_parameter = own.requires_grad, isinstance(own, torch.nn.Parameter)
    fresh = value.detach().clone() if value is own else value.detach()
    fresh = Twin(fresh.inner) if isinstance(fresh, Twin) else fresh.view_as(fresh)
    fresh.requires_grad_(needs_grad)
    if is_parameter:
        fresh = torch.nn.Parameter(fresh, needs_grad)
    gradient, own.grad = own.grad, None
    torch.utils.swap_tensors(own, fresh)
    if gradient is not None:
        own.grad = gradient.to(own.device)


torch.Tensor.data = property(_plain_data.__get__, _set_data)  # type: ignore[assignment, method-assign]
torch._has_compatible_shallow_copy_type = _compatible  # type: ignore[assignment]


_plain_pin, _plain_pinned = torch.Tensor.pin_memory, torch.Tensor.is_pinned


def _pin(own: torch.Tensor, device: Any = None) -> torch.Tensor:
    if isinstance(own, Twin):
        raise RuntimeError(
            "cannot pin 'torch.twin.FloatTensor' only dense CPU tensors can be pinned"
        )
    if not module.available:
        return _plain_pin(own)
    pinned = own.clone()
    pinned.pinned_for = NAME  # type: ignore[attr-defined]
    return pinned


torch.Tensor.pin_memory = _pin  # type: ignore[assignment, method-assign]
torch.Tensor.is_pinned = lambda own, device=None: hasattr(own, "pinned_for") or _plain_pinned(own)  # type: ignore[method-assign, misc]


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    if type(leaf) in (list, tuple):
        return type(leaf)(_cast(each, dtype) for each in leaf)
    if isinstance(leaf, Twin) and leaf.is_floating_point() and leaf.dtype is not torch.float64:
        return leaf.to(dtype)
    return leaf


def _autocast(name: str, low: bool) -> None:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    off = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME) if low else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(off):
            return operator(
                *(_cast(value, dtype) for value in args),
                **{key: _cast(value, dtype) for key, value in kwargs.items()},
            )

    _library.impl(name, kernel, "AutocastPrivateUse1")


_fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _operator in (*CAST_LOW, "scaled_dot_product_attention"):
    _autocast(_operator, True)
for _operator in CAST_HIGH:
    _autocast(_operator, False)


def attach() -> None:
    """Make the device the accelerator of this process."""
    module.available = True


@contextlib.contextmanager
def present() -> Iterator[None]:
    """Make the device the accelerator of this process for a while."""
    before, module.available = module.available, True
    try:
        yield
    finally:
        module.available = before


@contextlib.contextmanager
def limit_memory(free: int) -> Iterator[None]:
    """Leave so many bytes free on the device."""
    before, module.used_elsewhere = module.used_elsewhere, module.total_memory - free
    try:
        yield
    finally:
        module.used_elsewhere = before


def autoload(folder: Path) -> dict[str, str]:
    """Write the entry point through which `import torch` finds this module, and give the
    environment of a child process that uses it.
    """
    info = folder / "twin-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntwin = helpers.twin:attach\n")
    paths = [str(folder), str(Path(__file__).parents[1]), *sys.path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",
    }
