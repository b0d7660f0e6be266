"""A BatchNorm in front of a neuron, as one operator, gives what torch's BatchNorm and the neuron give one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, reference, surrogate

from support import DTYPES, NEURON_NAMES, calm, function, neuron_class, noise, operator, options_of, state_dtype

# Relative to the largest value; 16-bit gradients in y are rounded before they are summed.
TOLERANCE = {"f32": 5e-5, "f64": 1e-10, "f16": 1e-2, "bf16": 5e-2}
SHAPES = {
    "contiguous": (4, 3, 5, 6, 7),
    "channels_last": (20, 2, 8, 4, 4),
    "no space": (3, 16, 6),
    "one channel": (5, 4, 1, 3),
    "checkpoints": (33, 5, 3, 2),
    "blocks": (2, 40, 33, 4),
    "batch first": (4, 3, 16, 4, 4),
}


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return t.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, t.shape[:2])
    return t.transpose(0, 1).contiguous().transpose(0, 1) if layout == "batch first" else t


class Case:
    def __init__(self, neuron: str, dtype: str, layout: str, device: str, residual: bool, affine: bool) -> None:
        shape, state = SHAPES[layout], state_dtype(DTYPES[dtype])
        C = shape[2]
        self.neuron = neuron
        self.x = laid_out(noise(shape, DTYPES[dtype], 1, device, 2.0) + 1, layout)
        self.weight = (noise((C,), state, 2, device) * 0.2 + 1) * calm(neuron, "hard") if affine else None
        self.bias = noise((C,), state, 3, device, 0.3 * calm(neuron, "hard")) if affine else None
        self.mean, self.var = noise((C,), state, 4, device), noise((C,), state, 5, device) ** 2 + 0.5
        self.residual = laid_out(noise(shape, DTYPES[dtype], 6, device), layout) if residual else None
        self.grad = noise(shape, DTYPES[dtype], 7, device)
        self.options: dict[str, Any] = options_of(neuron, surrogate=surrogate.ATan())
        self.leaves = [t for t in (self.x, self.weight, self.bias, self.residual) if t is not None]

    def fused(self, training: bool, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Results, and gradients of the leaves."""
        leaves = [t.detach().requires_grad_() for t in self.leaves]
        given = iter(leaves)
        x, weight, bias, residual = (
            None if t is None else next(given) for t in (self.x, self.weight, self.bias, self.residual)
        )
        if "surrogate" in self.options:
            options["surrogate"] = "atan"
        out = operator(self.neuron, "{}_norm_forward")(
            x,
            weight=weight,
            bias=bias,
            mean=None if training else self.mean,
            var=None if training else self.var,
            residual_seq=residual,
            with_sum=residual is not None,
            **options,
        )
        results = [out[0], *([out[-2]] if residual is not None else [])]
        return list(out), list(torch.autograd.grad(results, leaves, [self.grad] * len(results)))

    def apart(self, training: bool) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [t.detach().double().requires_grad_() for t in self.leaves]
        given = iter(leaves)
        x, weight, bias, residual = (
            None if t is None else next(given) for t in (self.x, self.weight, self.bias, self.residual)
        )
        assert x is not None
        y = torch.nn.functional.batch_norm(
            x.flatten(0, 1), self.mean.double(), self.var.double(), weight, bias, training, 0.0, 1e-5
        ).unflatten(0, x.shape[:2])
        if residual is not None:
            y = y + residual
        out = function(reference, self.neuron)(y, **self.options)
        results = [out[0], *([y] if residual is not None else [])]
        grads = torch.autograd.grad(results, leaves, [self.grad.double()] * len(results))
        return list(out), list(grads)


def check(case: Case, dtype: str, training: bool) -> None:
    out, grads = case.fused(training)
    expected, expected_grads = case.apart(training)
    away = (out[0].double() - expected[0]).abs()
    agree = (away == 0 if neuron_class(case.neuron).spikes() else away <= TOLERANCE[dtype]).all(0)
    assert agree.double().mean() > 0.98  # near the threshold, rounding decides
    for i, (found, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
        assert found.shape == wanted.shape
        if not agree.all() and i > 0:
            continue
        difference = (found.double() - wanted).abs() * (agree if found.dim() > 1 else 1)
        scale = wanted.abs().max().clamp(min=1.0)
        assert float(difference.max() / scale) <= TOLERANCE[dtype] * (10 if not agree.all() else 1)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", SHAPES)
def test_like_one_after_the_other(layout: str, dtype: str, training: bool, residual: bool, device: str) -> None:
    check(Case("lif", dtype, layout, device, residual, True), dtype, training)


@pytest.mark.parametrize("neuron", [n for n in NEURON_NAMES if n != "plif"])
def test_every_neuron(neuron: str, device: str) -> None:
    check(Case(neuron, "f64", "contiguous", device, False, True), "f64", True)
    check(Case(neuron, "f32", "channels_last", device, False, False), "f32", True)


def test_statistics(device: str) -> None:
    x = noise((4, 64, 8, 9), torch.float32, 1, device) + 1000 * torch.arange(8, device=device)[:, None]
    statistics = operator("lif", "{}_norm_forward")(x)[-1].double()
    of = x.double().transpose(1, 2).transpose(0, 1).flatten(1)
    assert torch.allclose(statistics[0], of.mean(1), rtol=1e-6)
    assert torch.allclose(statistics[1], of.var(1, unbiased=False), rtol=2e-6)
    assert torch.allclose(statistics[2], of.var(1), rtol=2e-6)


def test_same_bits_on_every_run(device: str) -> None:
    case = Case("lif", "f32", "blocks", device, False, True)
    first, grads = case.fused(True)
    for _ in range(3):
        again, again_grads = case.fused(True)
        assert all(map(torch.equal, [*first, *grads], [*again, *again_grads]))


def test_a_chunk_goes_on_where_the_last_one_ended(device: str) -> None:
    x = noise((8, 3, 5, 2), torch.float32, 1, device, 2.0)
    mean, var = noise((5,), torch.float32, 2, device), noise((5,), torch.float32, 3, device) ** 2 + 1
    forward = operator("lif", "{}_norm_forward")
    whole = forward(x, mean=mean, var=var, store_v_seq=True)
    first = forward(x[:3], mean=mean, var=var, store_v_seq=True)
    second = forward(x[3:], first[1][-1], mean=mean, var=var, store_v_seq=True)
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([first[i], second[i]]))


def test_a_parameter_that_is_a_tensor(device: str) -> None:
    x = noise((5, 3, 4, 2), torch.float64, 1, device, 2.0)
    threshold = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, None, None, True, 0.0, 1e-5).unflatten(0, (5, 3))
    expected = functional.lif(y, v_threshold=threshold)[0]
    found = operator("lif", "{}_norm_forward")(x, v_threshold_tensor=threshold)[0]
    assert torch.equal(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.sum(), threshold), torch.autograd.grad(expected.sum(), threshold), strict=True
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("dim", [3, 4])
def test_channels_in_another_dimension(dim: int, device: str) -> None:
    x, residual = (noise((4, 3, 6, 5, 7), torch.float64, i, device, 2.0).requires_grad_() for i in (1, 2))
    weight = noise((x.shape[dim],), torch.float64, 3, device).requires_grad_()
    forward, leaves = operator("lif", "{}_norm_forward"), [x, residual, weight]
    found = forward(x, weight=weight, residual_seq=residual, with_sum=True, channel_dim=dim)
    swapped = [t.transpose(2, dim) for t in (x, residual)]
    expected = forward(swapped[0].contiguous(), weight=weight, residual_seq=swapped[1], with_sum=True)
    for i in (0, 2):
        assert torch.allclose(found[i], expected[i].transpose(2, dim), rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((found[0] + found[2]).square().sum(), leaves),
        torch.autograd.grad((expected[0] + expected[2]).square().sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_opcheck() -> None:
    x = noise((4, 3, 5, 2), torch.float32, 1).requires_grad_()
    weight = noise((5,), torch.float32, 2).requires_grad_()
    torch.library.opcheck(operator("lif", "{}_norm_forward").default, (x,), {"weight": weight})


def test_errors() -> None:
    forward = operator("lif", "{}_norm_forward")
    with pytest.raises(RuntimeError, match="at least 3 dimensions"):
        forward(torch.zeros(4, 3))
    with pytest.raises(RuntimeError, match=r"weight must have a value for each channel of x_seq, \[5\], got \[4\]"):
        forward(torch.zeros(4, 3, 5), weight=torch.ones(4))
    with pytest.raises(ValueError, match="mean and var must be given together"):
        forward(torch.zeros(4, 3, 5), mean=torch.zeros(5))
    with pytest.raises(ValueError, match="more than one value a channel"):
        forward(torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="no parameter may have a value for each neuron in each step"):
        forward(torch.zeros(4, 3, 5), v_threshold_tensor=torch.ones(4, 3, 5))
    for dim in (1, 3, -1):
        with pytest.raises(ValueError, match=f"channel_dim must be from 2 to 2, got {dim}"):
            forward(torch.zeros(4, 3, 5), channel_dim=dim)
    with pytest.raises(ValueError, match="eps must be > 0"):
        forward(torch.zeros(4, 3, 5), eps=0.0)
