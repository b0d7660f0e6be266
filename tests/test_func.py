"""torch.func: grad, vjp, vmap, per-sample gradients and jacrev; jvp and double backward say that they are not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import functional, reference

from support import KINDS, function, inputs, neuron_class, noise, options_of

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", KINDS)
BATCH = 3


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    """PyTorch's own loop over samples would hide a missing rule."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


def detached(neuron: str, shape: tuple[int, ...], device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in inputs(neuron, shape, torch.float64, device, seed).items()}


def loss(neuron: str, names: list[str], **options: Any) -> Callable[..., Tensor]:
    """A loss of spikes and states, whose gradient differs from neuron to neuron."""

    def total(*tensors: Tensor) -> Tensor:
        outputs = function(functional, neuron)(**dict(zip(names, tensors, strict=True)), **options)
        return torch.stack([(o * torch.arange(o.shape[-1], device=o.device)).square().sum() for o in outputs]).sum()

    return total


def samples(neuron: str, device: str, batched: set[str]) -> tuple[list[Tensor], list[int | None]]:
    """The tensors of a neuron with a batch of three in different places, and where it is."""
    parts = [detached(neuron, (20, 4, 5), device, seed=i) for i in range(BATCH)]
    tensors: list[Tensor] = []
    dims: list[int | None] = []
    for name, t in parts[0].items():
        dim = (1 if t.dim() > 1 else 0) if name in batched else None
        dims.append(dim)
        tensors.append(t if dim is None else torch.stack([p[name] for p in parts], dim))
    return tensors, dims


def one(tensors: list[Tensor], dims: list[int | None], i: int) -> list[Tensor]:
    return [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)]


def choices(neuron: str) -> list[set[str]]:
    """Which tensors may have a batch: each alone, and all."""
    names = list(detached(neuron, (1, 1)))
    return [*({name} for name in names), set(names)]


@each_neuron
def test_grad_and_vjp(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    total, leaves = loss(neuron, list(tensors)), list(tensors.values())
    expected = torch.autograd.grad(total(*leaves), leaves)
    values = [t.detach() for t in leaves]
    for a, b in zip(torch.func.grad(total, tuple(range(len(values))))(*values), expected, strict=True):
        assert torch.equal(a, b)
    out, pull = torch.func.vjp(total, *values)
    for a, b in zip(pull(torch.ones_like(out)), expected, strict=True):
        assert torch.equal(a, b)


@each_neuron
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_vmap(neuron: str, store_v_seq: bool, device: str) -> None:
    for batched in choices(neuron):
        tensors, dims = samples(neuron, device, batched)
        names = list(detached(neuron, (1, 1)))

        def run(*values: Tensor, names: list[str] = names) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = function(functional, neuron)(
                **dict(zip(names, values, strict=True)), store_v_seq=store_v_seq
            )
            return outputs

        outputs = torch.func.vmap(run, in_dims=tuple(dims))(*tensors)
        for i in range(BATCH):
            for a, b in zip(outputs, run(*one(tensors, dims, i)), strict=True):
                assert torch.equal(a[i], b)


@each_neuron
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_per_sample_gradients(neuron: str, store_v_seq: bool, device: str) -> None:
    for batched in choices(neuron):
        tensors, dims = samples(neuron, device, batched)
        total = loss(neuron, list(detached(neuron, (1, 1))), store_v_seq=store_v_seq)
        grad = torch.func.grad(total, tuple(range(len(tensors))))
        grads = torch.func.vmap(grad, in_dims=tuple(dims))(*tensors)
        for i in range(BATCH):
            for a, b in zip(grads, grad(*one(tensors, dims, i)), strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@each_neuron
def test_per_sample_gradients_of_a_network(neuron: str, device: str) -> None:
    """The recipe of PyTorch's documentation: functional_call under vmap and grad."""
    module = getattr(snnkern.nn, neuron_class(neuron).module)
    layers = (torch.nn.Linear(5, 6), module(**options_of(neuron, v_threshold=0.5)), torch.nn.Linear(6, 4))
    net = torch.nn.Sequential(*layers).to(device, torch.float64)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        snnkern.nn.reset(net)
        out: Tensor = torch.func.functional_call(net, parameters, (x.unsqueeze(1),)).square().sum()
        snnkern.nn.reset(net)
        return out

    x = noise((8, BATCH, 5), torch.float64, 0, device, 2.0)
    grads = torch.func.vmap(torch.func.grad(total), in_dims=(None, 1))(parameters, x)
    for i in range(BATCH):
        for name, expected in torch.func.grad(total)(parameters, x[:, i]).items():
            torch.testing.assert_close(grads[name][i], expected)


@each_neuron
def test_jacrev(neuron: str, device: str) -> None:
    tensors = detached(neuron, (6, 4), device)
    x = tensors.pop("x_seq")

    def run(x: Tensor) -> Tensor:
        v: Tensor = function(functional, neuron)(x, **tensors)[1]
        return v

    jacobian = torch.func.jacrev(run)(x)
    leaf = x.clone().requires_grad_()
    v = run(leaf)
    for i in range(4):
        (row,) = torch.autograd.grad(v[i], leaf, retain_graph=True)
        assert torch.equal(jacobian[i], row)
    assert torch.equal(torch.autograd.functional.jacobian(run, x, vectorize=True), jacobian)


def test_nested_vmap(device: str) -> None:
    x = noise((6, 2, 3, 5), torch.float64, 0, device, 2.0)
    total = loss("lif", ["x_seq"])
    grads = torch.func.vmap(torch.func.vmap(torch.func.grad(total), in_dims=1), in_dims=1)(x.unsqueeze(-1))
    for i in range(2):
        for j in range(3):
            assert torch.equal(grads[i, j], torch.func.grad(total)(x[:, i, j].unsqueeze(-1)))


@pytest.mark.usefixtures("fresh_dynamo")
@each_neuron
def test_compiled_per_sample_gradients(neuron: str, device: str) -> None:
    tensors, dims = samples(neuron, device, {"x_seq"})
    grad = torch.func.vmap(torch.func.grad(loss(neuron, list(detached(neuron, (1, 1))))), in_dims=tuple(dims))
    compiled = torch.compile(grad, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), grad(*tensors))


@each_neuron
def test_a_batch_does_not_make_up_for_a_missing_dimension(neuron: str) -> None:
    learned = [torch.tensor(0.4) for _ in neuron_class(neuron).learned]
    with pytest.raises(RuntimeError, match=r"x_seq must be .* with at least 2 dimensions, got 1 dimension"):
        torch.func.vmap(lambda x: function(functional, neuron)(x, *learned)[0])(torch.ones(4, 5))
    with pytest.raises(RuntimeError, match="v_init must have the shape of x_seq"):
        torch.func.vmap(lambda v: function(functional, neuron)(torch.ones(4, 3), *learned, v_init=v)[0])(torch.ones(3))


@each_neuron
def test_double_backward_is_an_error_and_the_reference_does_it(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (4, 5), torch.float64, device)
    x = tensors["x_seq"]
    spikes = function(functional, neuron)(**tensors)[0]
    (grad,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    message = f"snnkern.{neuron}_forward: double backward (create_graph=True) is not supported; snnkern.reference"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        grad.square().sum().backward()

    def total(x: Tensor) -> Tensor:
        out: Tensor = function(functional, neuron)(**{**tensors, "x_seq": x})[0].sum()
        return out

    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.func.grad(lambda x: torch.func.grad(total)(x).sum())(x.detach())
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.func.jacrev(torch.func.grad(total))(x.detach())
    spikes = function(reference, neuron)(**tensors)[0]
    (grad,) = torch.autograd.grad(spikes.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert second.abs().max() > 0


@each_neuron
def test_forward_mode_is_an_error_and_the_reference_does_it(neuron: str, device: str) -> None:
    tensors = detached(neuron, (4, 5), device)
    message = f"snnkern.{neuron}_forward: forward-mode AD (jvp) is not supported; snnkern.reference"
    for name, t in tensors.items():

        def run(t: Tensor, module: Any = functional, name: str = name) -> Tensor:
            v: Tensor = function(module, neuron)(**{**tensors, name: t})[1]
            return v

        with pytest.raises(NotImplementedError, match=re.escape(message)):
            torch.func.jvp(run, (t,), (torch.ones_like(t),))
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            torch.func.jacfwd(run)(t)
        with pytest.raises(NotImplementedError, match=re.escape(message)), torch.autograd.forward_ad.dual_level():
            run(torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)))
        assert torch.func.jvp(lambda t: run(t, reference), (t,), (torch.ones_like(t),))[1].abs().max() > 0
