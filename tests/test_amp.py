"""Mixed precision: autocast, GradScaler, and half-precision modules whose state stays in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import snnkern
from snnkern import functional

from support import KINDS, function, inputs, network, neuron_class, noise, results, state_dtype

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", KINDS)
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])


@each_neuron
@HALF
def test_autocast_keeps_the_dtype_of_x(neuron: str, dtype: torch.dtype, device: str) -> None:
    """The neuron computes what it computes without autocast, in float32, whatever comes out of the layer before."""
    for own in (torch.float32, dtype):
        tensors = inputs(neuron, (20, 6), own, device)
        expected, expected_grads = results(functional, neuron, tensors)
        with torch.autocast(device, dtype=dtype):
            outputs, grads = results(functional, neuron, tensors)
        assert [o.dtype for o in outputs] == [own] + [torch.float32] * (len(outputs) - 1)
        for a, b in zip([*outputs, *grads.values()], [*expected, *expected_grads.values()], strict=True):
            assert torch.equal(a, b)


@each_neuron
@HALF
def test_network_under_autocast(neuron: str, dtype: torch.dtype, device: str) -> None:
    net = network(neuron, device)
    x = noise((20, 3, 5), torch.float32, 0, device)
    with torch.autocast(device, dtype=dtype):
        first, second = net(x), net(x)  # the second with a state from before
    assert first.dtype == second.dtype == dtype
    assert net[1].v.dtype == torch.float32
    (first.mean() + second.mean()).backward()  # of the order of 1, so that float16 holds it
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    assert any(p.grad.abs().max() > 0 for p in net.parameters())


@each_neuron
def test_an_initial_state_of_another_precision(neuron: str, device: str) -> None:
    """A float32 state enters a bfloat16 call, and the other way round."""
    for own, other in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ):
        tensors = {n: t.detach() for n, t in inputs(neuron, (5, 4), own, device).items()}
        states = {f"{s.name}_init" for s in neuron_class(neuron).states}
        tensors = {n: (t.to(other) if n in states else t).requires_grad_() for n, t in tensors.items()}
        spikes, *after = function(functional, neuron)(**tensors)
        assert spikes.dtype == own and all(v.dtype == state_dtype(own) for v in after)
        spikes.sum().backward()
        assert all(t.grad.dtype == t.dtype for t in tensors.values())


@each_neuron
@HALF
def test_half_modules_keep_their_state_in_float32(neuron: str, dtype: torch.dtype, device: str) -> None:
    module: Any = getattr(snnkern.nn, neuron_class(neuron).module)()
    module.to(device)
    module(torch.ones(2, 3, device=device))
    converted = copy.deepcopy(module).half() if dtype == torch.float16 else copy.deepcopy(module).bfloat16()
    assert converted.v.dtype == torch.float32
    x = noise((20, 3), dtype, 0, device, 2.0)
    assert converted(x).dtype == dtype
    assert converted.v.dtype == torch.float32
    if not neuron_class(neuron).learned:  # which would be rounded
        module(x.float())
        assert torch.equal(converted.v, module.v)
        assert torch.equal(converted(x), module(x.float()).to(dtype))


@each_neuron
@HALF
def test_half_networks_train(neuron: str, dtype: torch.dtype, device: str) -> None:
    net = network(neuron, device, dtype)
    net(noise((20, 3, 5), dtype, 0, device)).mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in net.parameters())


@each_neuron
def test_grad_scaler(neuron: str, device: str) -> None:
    """A scaled step equals the plain one; a scale that overflows is noticed, and the step left out."""
    net = network(neuron, device)
    plain = copy.deepcopy(net)
    x = noise((20, 3, 5), torch.float32, 0, device)
    for scale, overflows in ((1024.0, False), (3e38, True)):
        scaler = torch.amp.GradScaler(device, init_scale=scale)
        optimizers = [torch.optim.SGD(n.parameters(), lr=1e-6) for n in (net, plain)]
        before = [p.detach().clone() for p in net.parameters()]
        for n in (net, plain):
            snnkern.nn.reset(n)
        scaler.scale(net(x).sum() * 64).backward()
        scaler.step(optimizers[0])
        scaler.update()
        if overflows:
            assert scaler.get_scale() < scale
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
        else:
            (plain(x).sum() * 64).backward()
            optimizers[1].step()
            torch.testing.assert_close(list(net.parameters()), list(plain.parameters()))
            assert not all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
