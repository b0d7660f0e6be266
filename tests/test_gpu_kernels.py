"""What a GPU runs: one kernel each way, no more memory than the results, and the same bits from every kernel shape.

The CUDA kernels choose vectors and chunks by N, T and alignment. Small tensors, which the other tests use, go to the
narrow kernels; here are tensors large enough for the wide ones, and one beyond 2^31 elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from snnkern import functional
from snnkern.codegen.emit.step import kinds

from support import DTYPES, NEURON_NAMES, calm, function, inputs, neuron_class, options_of
from test_tensor_parameters import numbers, options, value

pytestmark = pytest.mark.gpu
CHECKPOINT_PERIOD = 16
TENSOR_CASES = [
    f"{n}:{reset}:{kind}"
    for n in NEURON_NAMES
    for reset in neuron_class(n).resets()
    for kind in kinds(neuron_class(n))
    if kind in ("tensor", "general")
]


def operator(neuron: str, state: torch.dtype = torch.float32, **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The neuron's operator, with a learned parameter of 0.5 in the state dtype where it has one."""
    op = getattr(torch.ops.snnkern, f"{neuron}_forward")
    learned = [torch.tensor(0.5, dtype=state, device="cuda", requires_grad=True) for _ in neuron_class(neuron).learned]
    options = options_of(neuron, surrogate="atan", **options)
    return lambda x, *states: op(x, *learned, *states, **options)


def many(factor: int = 4) -> int:
    """As many neurons as vectors of `factor` are worth."""
    return 256 * factor * torch.cuda.get_device_properties(0).multi_processor_count


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)


def kernels(work: Callable[[], object]) -> list[str]:
    """The names of all that `work` puts on the GPU."""
    work()  # what happens once, such as loading a module
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return [e.name for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def shifted(t: Tensor) -> Tensor:
    """The same values at an address that is no multiple of a vector."""
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("v_reset", [0.0, None], ids=["hard", "soft"])
@pytest.mark.sanitize
def test_vectors_give_the_bits_of_single_neurons(neuron: str, dtype: str, v_reset: float | None) -> None:
    op = operator(neuron, v_reset=v_reset)
    states = [s.name for s in neuron_class(neuron).states]
    scale = calm(neuron, "soft" if v_reset is None else "hard")
    for steps, count in itertools.product((1, 3, 4, 7, 8, 9, 16, 17, 37), (many(), many() + 2)):
        x = random(steps, count, dtype=DTYPES[dtype]) * scale
        init = [random(count, seed=10 + k) * scale for k in range(len(states))]
        incoming = [random(steps, count, dtype=DTYPES[dtype], seed=2)]
        incoming += [random(count, seed=20 + k) for k in range(len(states))]
        results = []
        for place in (lambda t: t, shifted):
            leaves = [place(x).requires_grad_(), *(t.clone().requires_grad_() for t in init)]
            outputs = op(*leaves)
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, incoming)])
        names = ["output", *states, "grad_x", *(f"grad_{s}" for s in states)]
        for name, wide, narrow in zip(names, *results, strict=True):
            assert torch.equal(wide, narrow), (name, steps, count)


@pytest.mark.parametrize("case", TENSOR_CASES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.sanitize
def test_vectors_of_tensor_parameters_give_the_bits_of_single_neurons(case: str, dtype: str) -> None:
    neuron, reset, kind = case.split(":")
    conventions, count = kind == "general", many(2)
    for steps in (4, 19):
        tensors = inputs(neuron, (steps, count), DTYPES[dtype], "cuda", reset=reset)
        for i, p in enumerate(numbers(neuron, reset, conventions)):
            tensors[p.name] = value(p, (count,), torch.float32, "cuda", i)
        others = {name: o for name, o in options(neuron, reset).items() if name not in tensors}
        learned = [t.name for t in neuron_class(neuron).learned]  # of one element: summed over neurons
        results = []
        for place in (lambda t: t, shifted):
            leaves = {name: place(t.detach()).requires_grad_() for name, t in tensors.items()}
            outputs = function(functional, neuron)(**leaves, **others)
            wanted = [t for name, t in leaves.items() if name not in learned]
            results.append([*outputs, *torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])])
        for wide, narrow in zip(*results, strict=True):
            assert torch.equal(wide, narrow), steps


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("steps", "chunk"), [(4, 8), (16, 16), (40, 16)])
def test_large_tensors_take_vectors(dtype: str, steps: int, chunk: int) -> None:
    x = random(steps, many(), dtype=DTYPES[dtype]).requires_grad_()
    op = operator("lif")
    (forward,) = kernels(lambda: op(x))
    assert ", (int)4, (int)4>" in forward or ", 4, 4>" in forward, forward
    spikes = op(x)[0]
    (backward,) = kernels(lambda: torch.autograd.grad(spikes, x, x.detach(), retain_graph=True))
    V = 2 if dtype == "f32" or chunk == 16 else 4
    assert f", (int){V}, (int){chunk}>" in backward or f", {V}, {chunk}>" in backward, backward


@pytest.mark.parametrize("tensor", ["tau", "strict"])
def test_tensor_parameters_and_conventions_take_vectors(tensor: str) -> None:
    x = random(16, many(2)).requires_grad_()
    given = {"tau": torch.full((many(2),), 2.0, device="cuda"), "strict": True}[tensor]
    (forward,) = kernels(lambda: functional.lif(x, **{tensor: given}))[-1:]
    assert ", (int)2, (int)8>" in forward or ", 2, 8>" in forward, forward
    spikes = functional.lif(x, **{tensor: given})[0]
    (backward,) = kernels(lambda: torch.autograd.grad(spikes, x, x.detach(), retain_graph=True))
    assert "Sigmoid" in backward, backward  # compiled in
    assert ", (int)2, (int)16>" in backward or ", 2, 16>" in backward, backward


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_kernel_each_way(neuron: str, dtype: str) -> None:
    """No zero fill, no copy; a learned parameter's gradient is summed by PyTorch."""
    op = operator(neuron, torch.float64 if dtype == "f64" else torch.float32)
    for steps, shape in ((4, (8, 3, 5, 5)), (40, (1000,))):
        x = random(steps, *shape, dtype=DTYPES[dtype])
        with torch.no_grad():
            (inference,) = kernels(lambda x=x: op(x))
        x.requires_grad_()
        (forward,) = kernels(lambda x=x: op(x))
        assert "forward_kernel" in inference and "forward_kernel" in forward
        spikes = op(x)[0]
        grad = random(*x.shape, dtype=DTYPES[dtype], seed=1)
        names = kernels(lambda x=x, s=spikes, g=grad: torch.autograd.grad(s, x, g, retain_graph=True))
        assert "backward_kernel" in names[0]
        assert len(names[1:]) == len(neuron_class(neuron).learned), names
        assert all("reduce" in name for name in names[1:]), names


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_nothing_waits_for_the_gpu(neuron: str) -> None:
    op = operator(neuron)
    x = random(20, 64).requires_grad_()
    init = [random(64, seed=1).requires_grad_() for _ in neuron_class(neuron).states]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = op(x, *init)
        torch.autograd.grad(outputs, [x, *init], [t.detach() for t in outputs])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [4, 16, 64])
def test_memory(dtype: str, steps: int) -> None:
    """Inference holds its results alone, training the states of every 16th step more, BPTT one gradient."""
    count, kind = 2**16, DTYPES[dtype]
    state = 8 if dtype == "f64" else 4
    results = steps * count * kind.itemsize + count * state
    checkpoints = (steps - 1) // CHECKPOINT_PERIOD * count * state
    op = operator("lif")
    x = random(steps, count, dtype=kind)
    grad = random(steps, count, dtype=kind, seed=1)

    def grown(since: int) -> tuple[int, int]:
        return torch.cuda.memory_allocated() - since, torch.cuda.max_memory_allocated() - since

    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    with torch.no_grad():
        inference = op(x)
    assert grown(start) == (results, results)
    del inference
    x.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    training = op(x)
    assert grown(start) == (results + checkpoints, results + checkpoints)
    assert checkpoints <= steps * count * state / 8
    torch.autograd.grad(training[0], x, grad)
    assert grown(start)[1] == results + checkpoints + steps * count * kind.itemsize


def test_more_than_2_31_elements() -> None:
    steps, count = 5, 2**29 + 2
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip(f"needs 40 GiB of free GPU memory, and there are {free / 2**30:.0f}")
    op = operator("lif")
    x = random(steps, count, dtype=torch.bfloat16).requires_grad_()
    spikes, v = op(x)
    (grad,) = torch.autograd.grad(spikes, x, x.detach())
    for part in (slice(0, 1000), slice(count // 2, count // 2 + 1000), slice(count - 1000, count)):
        small = x.detach()[:, part].clone().requires_grad_()
        expected = op(small)
        assert torch.equal(spikes[:, part], expected[0])
        assert torch.equal(v[part], expected[1])
        assert torch.equal(grad[:, part], torch.autograd.grad(expected[0], small, small.detach())[0])
