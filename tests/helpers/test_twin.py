"""The pretend accelerator refuses what a card refuses, keeps what a card keeps, and computes what
the CPU computes.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny, twin
from helpers.twin import DEVICE
from torch._subclasses.fake_tensor import FakeTensorMode

CPU = torch.device("cpu")
ALLOWED = {
    "one scalar of the CPU in arithmetic": lambda d, c: (
        torch.ones(3, device=d) * torch.ones((), device=c)
    ),
    "one scalar first": lambda d, c: torch.ones((), device=c) - torch.ones(3, device=d),
    "one scalar in where": lambda d, c: torch.where(
        torch.ones(3, device=d) > 0, torch.ones(3, device=d), torch.ones((), device=c)
    ),
    "one scalar to fill with": (
        lambda d, c: torch.ones(3, device=d).masked_fill(
            torch.ones(3, device=d) > 0, torch.ones((), device=c)
        )
    ),
    "CPU indices": lambda d, c: torch.ops.aten.index.Tensor(
        torch.ones(3, 2, device=d), [torch.tensor([0, 2], device=c)]
    ),
    "CPU indices to put": (
        lambda d, c: torch.ones(3, device=d).index_put(
            (torch.tensor([0, 2], device=c),), torch.ones(2, device=d)
        )
    ),
    "a scalar put at indices": (
        lambda d, c: torch.ones(3, device=d).index_put(
            (torch.tensor([0, 2], device=d),), torch.ones((), device=c)
        )
    ),
}
"""Operations on a device `d` and the CPU `c` that CUDA takes."""
REFUSED = {
    "addition": lambda d, c: torch.ones(3, device=d) + torch.ones(3, device=c),
    "matrix product": lambda d, c: torch.ones(3, 3, device=d) @ torch.ones(3, 3, device=c),
    "linear": lambda d, c: F.linear(torch.ones(2, 3, device=d), torch.ones(3, 3, device=c)),
    "joined": lambda d, c: torch.cat([torch.ones(3, device=d), torch.ones(3, device=c)]),
    "values put": (
        lambda d, c: torch.ones(3, device=d).index_put(
            (torch.tensor([0, 2], device=d),), torch.ones(2, device=c)
        )
    ),
    "embedding": lambda d, c: F.embedding(torch.tensor([1], device=c), torch.ones(3, 2, device=d)),
    "selected rows": (
        lambda d, c: torch.ones(3, device=d).index_select(0, torch.tensor([1], device=c))
    ),
    "copied rows": (
        lambda d, c: torch.ones(3, device=d).index_copy(
            0, torch.tensor([1], device=c), torch.ones(1, device=d)
        )
    ),
    "added rows": (
        lambda d, c: torch.ones(3, device=d).index_add_(
            0, torch.tensor([1], device=d), torch.ones(1, device=c)
        )
    ),
    "gather": lambda d, c: torch.ones(3, device=d).gather(0, torch.tensor([1], device=c)),
    "scatter": lambda d, c: torch.ones(3, device=d).scatter(0, torch.tensor([1], device=c), 2.0),
    "where": lambda d, c: torch.where(
        torch.ones(3, device=c) > 0, torch.ones(3, device=d), torch.ones(3, device=d)
    ),
    "mask": lambda d, c: torch.ones(3, device=d).masked_fill(torch.ones(3, device=c) > 0, 0.0),
    "attention": lambda d, c: F.scaled_dot_product_attention(
        *(torch.ones(1, 1, 2, 4, device=each) for each in (d, d, c))
    ),
    "attention mask": lambda d, c: F.scaled_dot_product_attention(
        *(torch.ones(1, 1, 2, 4, device=d) for _ in range(3)), attn_mask=torch.zeros(2, 2, device=c)
    ),
    "classes": lambda d, c: F.cross_entropy(
        torch.ones(2, 3, device=d), torch.tensor([0, 1], device=c)
    ),
    "written into the CPU": lambda d, c: torch.ones(3, device=c).add_(torch.ones(3, device=d)),
    "bags": lambda d, c: F.embedding_bag(
        torch.tensor([1, 2], device=d),
        torch.ones(3, 2, device=d),
        torch.tensor([0, 1], device=c),
        mode="mean",
    ),
}
"""Operations that CUDA refuses, and torch's own simulation of it too."""
REFUSED_BY_KERNELS = {
    "indices of the device for the CPU": lambda d, c: torch.ones(3, device=c)[
        torch.tensor([0], device=d)
    ],
    "scalar joined": lambda d, c: torch.stack([torch.ones((), device=d), torch.ones((), device=c)]),
    "a scalar that clamps": (
        lambda d, c: torch.ones(3, device=d).clamp(min=torch.ones((), device=c))
    ),
    "two scalars": lambda d, c: torch.addcmul(
        torch.ones(3, device=d), torch.ones((), device=c), torch.ones((), device=c)
    ),
    "a scalar of the CPU is written": (
        lambda d, c: torch.ones((), device=c).add_(torch.ones((), device=d))
    ),
    "comparison of all": lambda d, c: torch.equal(torch.ones(3, device=d), torch.ones(3, device=c)),
    "comparison of scalars": lambda d, c: torch.equal(
        torch.ones((), device=d), torch.ones((), device=c)
    ),
    "out": lambda d, c: torch.mm(
        torch.ones(2, 2, device=d), torch.ones(2, 2, device=d), out=torch.empty(2, 2, device=c)
    ),
    "row numbers to fill": (
        lambda d, c: torch.ones(3, device=d).index_fill(0, torch.tensor([1], device=c), 0.0)
    ),
    "a device that is not there": lambda d, c: torch.ones(3, device=d).to("twin:1"),
    "numbers for numpy": lambda d, c: torch.ones(3, device=d).numpy(),
    "an array of numpy": lambda d, c: np.asarray(torch.ones(3, device=d)),
    "pinning": lambda d, c: torch.ones(3, device=d).pin_memory(),
    "a generator of the CPU": (
        lambda d, c: torch.empty(3, device=d).bernoulli_(0.5, generator=torch.Generator(c))
    ),
}
"""What CUDA's kernels and Python bindings refuse, which torch's simulation of shapes does not know.
"""


def fake(operation):
    """Run an operation where torch simulates CUDA without a card."""
    with FakeTensorMode():
        operation(torch.device("cuda"), CPU)


@pytest.mark.parametrize("name", ALLOWED)
def test_it_takes_what_a_card_takes(name):
    ALLOWED[name](DEVICE, CPU)
    fake(ALLOWED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_a_card_refuses(name):
    with pytest.raises(RuntimeError, match=r"on the same device|too many CPU scalars"):
        REFUSED[name](DEVICE, CPU)
    with pytest.raises(Exception, match=r"device"):
        fake(REFUSED[name])


@pytest.mark.parametrize("name", REFUSED_BY_KERNELS)
def test_it_refuses_what_the_kernels_of_a_card_refuse(name):
    with pytest.raises(
        (RuntimeError, TypeError), match=r"device|scalars|ordinal|numpy|pinned|generator"
    ):
        REFUSED_BY_KERNELS[name](DEVICE, CPU)


def fused_step(place):
    parameter = torch.nn.Parameter(torch.ones(4, device=DEVICE))
    parameter.grad = torch.ones(4, device=DEVICE)
    optimiser = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    optimiser.step()
    optimiser.state[parameter]["step"] = optimiser.state[parameter]["step"].to(place)
    optimiser.step()
    return parameter


def test_a_fused_optimiser_wants_its_counters_on_the_device():
    assert fused_step(DEVICE).device == DEVICE
    with pytest.raises(RuntimeError, match=r"state_steps is on cpu.*_fused_adamw_"):
        fused_step(CPU)


def test_a_moved_module_keeps_its_parameters_and_their_gradients():
    module = torch.nn.Linear(3, 2)
    module(torch.ones(1, 3)).sum().backward()
    before, gradient = dict(module.named_parameters()), module.weight.grad.clone()
    for place in (DEVICE, CPU, DEVICE):
        module.to(place)
        assert all(parameter is before[name] for name, parameter in module.named_parameters())
        assert {p.device for p in before.values()} == {place} and module.weight.grad.device == place
        assert isinstance(module.weight, torch.nn.Parameter) and torch.equal(
            module.weight.grad.cpu(), gradient
        )
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.data = parameter.data.to(DEVICE, torch.bfloat16)
    assert parameter.device == DEVICE and parameter.dtype is torch.bfloat16
    other = copy.deepcopy(module)
    other.weight.data.zero_()
    assert module.weight.abs().sum() > 0 and other.weight.device == DEVICE


def test_a_copy_that_nobody_waited_for_holds_garbage():
    numbers = torch.arange(3.0, device=DEVICE)
    copied = numbers.to("cpu", non_blocking=True)
    assert copied.isnan().all()
    torch.twin.synchronize()
    assert copied.tolist() == [0, 1, 2]


def test_copies_cross_in_both_directions():
    numbers = torch.arange(3.0)
    assert (
        torch.zeros(3, device=DEVICE).copy_(numbers).tolist()
        == [0, 1, 2]
        == torch.zeros(3).copy_(numbers.to(DEVICE)).tolist()
    )
    assert torch.from_numpy(np.ones(2)).to(DEVICE).sum().item() == 2


def test_what_is_made_there_has_its_shape():
    made = [
        torch.arange(3, device=DEVICE),
        torch.arange(1, 4, device=DEVICE),
        torch.randperm(3, device=DEVICE),
    ]
    made += [
        torch.linspace(0, 1, 3, device=DEVICE),
        torch.full((3,), 2.0, device=DEVICE),
        torch.tensor([1, 2, 3], device=DEVICE),
    ]
    assert all(each.device == DEVICE and each.shape == (3,) == each.inner.shape for each in made)
    assert torch.eye(2, device=DEVICE).shape == (2, 2) == torch.empty(2, 2, device=DEVICE).shape
    assert torch.triu_indices(3, 3, offset=1, device=DEVICE).tolist() == [[0, 0, 1], [1, 2, 2]]
    with pytest.raises(NotImplementedError, match="shape of its `out`"):
        torch.mm(
            torch.eye(2, device=DEVICE),
            torch.eye(2, device=DEVICE),
            out=torch.empty(0, device=DEVICE),
        )


def test_inference_mode_is_as_everywhere():
    ordinary = torch.arange(6, device=DEVICE)
    with torch.inference_mode():
        assert not ordinary.view(2, 3).is_inference() and (ordinary * 2).is_inference()
        assert ordinary.expand(2, 6).sum().item() == 30
    made = ordinary.view(3, 2)
    made += 1
    assert ordinary.tolist() == [1, 2, 3, 4, 5, 6]


def test_memory_ends():
    with twin.limit_memory(1 << 20):
        torch.zeros(1 << 17, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError, match="twin out of memory"):
            torch.zeros(1 << 19, device=DEVICE)
    free, total = torch.twin.mem_get_info()
    assert free == total


def test_it_is_the_accelerator_only_while_it_is_present():
    assert not torch.accelerator.is_available()
    with twin.present():
        assert (
            torch.accelerator.is_available()
            and torch.accelerator.current_accelerator().type == "twin"
        )
        assert torch.ones(2).pin_memory().is_pinned()
    assert torch.accelerator.device_count() == 0 or torch.cuda.is_available()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_trains_there_to_the_bits_of_the_cpu(family):
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 100, size=n) for n in (3, 5, 5, 9)]
    found, halves = [], []
    for place in (CPU, DEVICE):
        model = tiny.student(family)
        tiny.add_adapter(model, "retrieval")
        model.to(place)
        model.select("retrieval")
        with torch.no_grad(), torch.autocast(place.type, torch.bfloat16):
            halves.append(model.embed(ids).float().cpu())
        weights = [p.requires_grad_() for p in model.parameters()]
        optimiser = torch.optim.AdamW(weights, lr=1e-2, fused=True)
        for _ in range(2):
            optimiser.zero_grad()
            model.embed(ids).square().mean().backward()
            optimiser.step()
        found.append([p.detach().cpu() for p in weights])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert F.cosine_similarity(*halves).min() > 0.999, (
        "in bfloat16 a card's autocast runs more operators in float32 than the CPU's"
    )
    assert not torch.equal(halves[1], tiny.student(family).embed(ids))


def test_a_child_process_finds_it_as_it_finds_real_devices(tmp_path):
    code = (
        "import torch; x = torch.ones(2, device='twin:0');"
        " print(torch.accelerator.current_accelerator(), (x + x).cpu().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=twin.autoload(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("twin [2.0, 2.0]\n", 0), done.stderr
