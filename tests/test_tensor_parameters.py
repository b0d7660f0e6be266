"""Every number of every neuron may be a tensor that broadcasts against x_seq[0], with a gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from snnkern import functional, reference, surrogate
from snnkern.codegen.specification.neurons import Float

from support import (
    DTYPES,
    NEURON_NAMES,
    calm,
    check_same,
    function,
    inputs,
    neuron_class,
    noise,
    operator,
    options_of,
    reset_options,
    state_dtype,
)

each_neuron = pytest.mark.parametrize("neuron", NEURON_NAMES)
each_reset = pytest.mark.parametrize("case", [f"{n}:{r}" for n in NEURON_NAMES for r in neuron_class(n).resets()])
STEP = (2, 3, 4, 5)  # [N, C, H, W]
# What people train: a value for a layer, a channel, a neuron; and shapes for which a kernel has to be given a copy.
SHAPES = [(), (1,), (3, 1, 1), (1, 3, 1, 1), (5,), (2, 1, 1, 1), (4, 1), STEP, (3, 4, 5), (3, 1, 5), (2, 1, 4, 1)]


def value(p: Float, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Values around the default, within the range of the parameter."""
    around = 0.2 * noise(shape, torch.float64, seed).abs()
    if p.range.integer:
        around = around.ceil()
    elif p.range.high != float("inf"):
        around = -0.2 * around
    default = -0.4 if p.name == "v_min" else p.number  # by default there is none
    return (default + around).to(dtype).to(device)


def numbers(neuron: str, reset: str = "hard", conventions: bool = True) -> list[Float]:
    n = neuron_class(neuron)
    out = [p for p in n.numbers() if p.name != "v_reset" or reset == "hard"]
    return out if conventions else [p for p in out if p not in n.conventions]


def options(neuron: str, reset: str, used: surrogate.Surrogate | None = None) -> dict[str, Any]:
    hard = {p.name: p.number for p in numbers(neuron)}.get("v_reset", 0.0)
    return {**options_of(neuron, surrogate=used or surrogate.ATan()), **reset_options(neuron, reset, hard)}


@each_reset
def test_each_parameter_at_every_shape(case: str, device: str) -> None:
    neuron, reset = case.split(":")
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = inputs(neuron, (7, *STEP), torch.float64, device, reset=reset)
        x = tensors["x_seq"].detach()
        tensors["x_seq"] = x.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, x.shape[:2])
        for i, (p, shape) in enumerate(itertools.product(numbers(neuron, reset), SHAPES)):
            given = {p.name: value(p, shape, torch.float64, device, i)}
            others = {name: o for name, o in options(neuron, reset).items() if name != p.name}
            check_same(neuron, {**tensors, **given}, parameter_tolerance=1e-9, **others)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
@each_reset
def test_all_parameters_at_once(case: str, dtype: str, device: str) -> None:
    """With and without initial states, whose start may be a parameter; over several checkpoints."""
    neuron, reset = case.split(":")
    runs = (
        # On CUDA SoftSign is called, and the others are compiled in. A steeper one would magnify the last bits of exp.
        (1, False, True, False, surrogate.Sigmoid()),
        (5, True, False, False, surrogate.SoftSign()),
        (37, False, False, False, surrogate.ATan()),
        (19, True, True, True, surrogate.ATan()),
    )
    for steps, store_v_seq, init, conventions, used in runs:
        tensors = inputs(neuron, (steps, *STEP), DTYPES[dtype], device, reset=reset)
        if not init:
            tensors = {name: t for name, t in tensors.items() if not name.endswith("_init")}
        for i, p in enumerate(numbers(neuron, reset, conventions)):
            tensors[p.name] = value(p, SHAPES[(i + steps) % len(SHAPES)], state_dtype(DTYPES[dtype]), device, i)
        others = {name: o for name, o in options(neuron, reset, used).items() if name not in tensors}
        check_same(neuron, tensors, store_v_seq=store_v_seq, **others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each_neuron
def test_gradient_has_the_dtype_of_the_parameter(neuron: str, dtype: torch.dtype, device: str) -> None:
    x = noise((4, 3, 5), torch.float32, 0, device, calm(neuron, "hard")).requires_grad_()
    learned = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]
    for p in numbers(neuron):
        t = value(p, (5,), dtype, device, 1).requires_grad_()
        results = []
        for module in (functional, reference):
            outputs = function(module, neuron)(x, *learned, **{p.name: t})
            (grad,) = torch.autograd.grad(sum(o.sum() for o in outputs), t, materialize_grads=True)
            assert grad.dtype == dtype and grad.shape == t.shape
            results.append(grad)
        torch.testing.assert_close(*results, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


@each_neuron
def test_a_tensor_equals_its_number(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 3, 5), torch.float32, device)
    plain = function(functional, neuron)(**tensors)
    for p in numbers(neuron):
        given = function(functional, neuron)(**tensors, **{p.name: torch.tensor(p.number, device=device)})
        assert all(torch.equal(a, b) for a, b in zip(plain, given, strict=True)), p.name


@each_neuron
def test_the_same_bits_on_every_run(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 64, 3, 50), torch.float32, device)
    given = {p.name: value(p, (3, 1), torch.float32, device, 0).requires_grad_() for p in numbers(neuron)}
    runs = []
    for _ in range(3):
        outputs = function(functional, neuron)(**tensors, **given)
        runs.append(torch.autograd.grad(sum(o.sum() for o in outputs), list(given.values())))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.usefixtures("fresh_dynamo")
def test_no_recompilation_when_a_value_changes() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    run = torch.compile(lambda x, tau: functional.lif(x, tau=tau)[0], backend=counter, fullgraph=True)
    for tau in (1.5, 2.0, 3.0):
        x, t = torch.randn(4, 3), torch.tensor(tau)
        assert torch.equal(run(x, t), functional.lif(x, tau=t)[0])
    assert counter.frame_count == 1


def test_errors_name_the_parameter(device: str) -> None:
    x = torch.zeros(3, 2, 4, device=device)
    with pytest.raises(
        RuntimeError,
        match=r"v_threshold must broadcast against x_seq\[0\], \[2, 4\], or with time against x_seq, .*; got shape \[3\] \(v_threshold_tensor\)",
    ):
        functional.lif(x, v_threshold=torch.ones(3, device=device))
    with pytest.raises(RuntimeError, match=r"v_threshold must broadcast .* got shape \[1, 1, 1, 4\]"):
        functional.lif(x, v_threshold=torch.ones(1, 1, 1, 4, device=device))
    with pytest.raises(TypeError, match=r"v_threshold must be float32, float64, float16 or bfloat16, got torch\.int64"):
        functional.lif(x, v_threshold=torch.ones(4, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match="v_reset_tensor needs a hard reset: v_reset must be a number, got None"):
        operator("lif")(x, v_reset=None, v_reset_tensor=torch.zeros(4, device=device))
    with pytest.raises(
        RuntimeError,
        match=r"decay must broadcast against x_seq\[0\], \[2, 4\], or with time against x_seq, .*; got shape \[3\]",
    ):
        functional.plif(x, torch.full((3,), 0.5, device=device))


def test_values_out_of_range_are_refused_on_the_cpu() -> None:
    x = torch.zeros(3, 2, 4)
    with pytest.raises(ValueError, match=r"tau must be a finite number >= 1 or inf, got 0\.5"):
        functional.lif(x, tau=torch.tensor([0.5, 2.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="decay must be a finite number > 0 and <= 1, got -1"):
        functional.plif(x, torch.tensor([0.5, 0.5, -1.0, 0.5]))
