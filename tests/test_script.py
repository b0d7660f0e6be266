"""TorchScript: script, trace, freeze, save and load in a fresh process, with state and gradients."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import functional
from snnkern.codegen.specification.base import RESETS

from support import KINDS, eighths, fresh_process, function, inputs, network, noise, operator, options_of, reset_options

pytestmark = [pytest.mark.compatibility, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]
each_neuron = pytest.mark.parametrize("neuron", KINDS)


def saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@each_neuron
def test_scripted_operator(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 6), torch.float32, device)
    arguments = ", ".join(tensors)
    options = options_of(neuron, surrogate="atan")
    given = ", ".join([*tensors, *(f"{name}={value!r}" for name, value in options.items())])
    unit = torch.jit.CompilationUnit(f"def run({arguments}):\n    return torch.ops.snnkern.{neuron}_forward({given})\n")
    outputs, expected = unit.run(**tensors), operator(neuron)(*tensors.values(), **options)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    leaves = list(tensors.values())
    for a, b in zip(
        torch.autograd.grad(outputs[0].sum(), leaves), torch.autograd.grad(expected[0].sum(), leaves), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reset", RESETS)
@each_neuron
def test_scripted_modules_with_state_and_gradients(neuron: str, reset: str, device: str) -> None:
    net = network(neuron, device, **reset_options(neuron, reset, 0.0))
    scripted = torch.jit.script(net)
    for other in (scripted, saved_and_loaded(scripted)):
        snnkern.nn.reset(net)
        for chunk in (5, 20):
            x = noise((chunk, 3, 5), torch.float32, chunk, device).requires_grad_()
            leaves, others = [x, *net.parameters()], [x, *other.parameters()]
            for a, b in zip(
                torch.autograd.grad(other(x).sum(), others), torch.autograd.grad(net(x).sum(), leaves), strict=True
            ):
                assert torch.equal(a, b)
            for layer, its in zip(net, other.children(), strict=True):
                if isinstance(layer, snnkern.nn.MultiStep):
                    assert torch.equal(its.v, layer.v)
            snnkern.nn.detach([net, other])
        snnkern.nn.reset(other)
        assert all(its.v is None for its in other.children() if hasattr(its, "reset"))


@each_neuron
def test_scripted_module_checks_its_state(neuron: str) -> None:
    scripted = torch.jit.script(network(neuron))
    scripted(torch.ones(2, 3, 5))
    with pytest.raises(torch.jit.Error, match=r"the kept state has shape \[3, 6\], but x_seq\[0\] has shape \[4, 6\]"):
        scripted(torch.ones(2, 4, 5))


@each_neuron
def test_trace(neuron: str, device: str) -> None:
    """A trace serves other lengths and sizes than those it was made with."""
    tensors = inputs(neuron, (4, 3), torch.float32, device)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = function(functional, neuron)(*values, store_v_seq=True)
        return outputs

    traced = saved_and_loaded(torch.jit.trace(run, tuple(tensors.values())))
    tensors = inputs(neuron, (40, 7), torch.float32, device, seed=1)
    leaves = list(tensors.values())
    outputs, expected = traced(*leaves), run(*leaves)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        torch.autograd.grad(outputs[1].sum(), leaves), torch.autograd.grad(expected[1].sum(), leaves), strict=True
    ):
        assert torch.equal(a, b)


@each_neuron
def test_freeze_keeps_the_state_apart(neuron: str, device: str) -> None:
    net = network(neuron, device).eval()
    frozen = saved_and_loaded(torch.jit.freeze(torch.jit.script(net)))
    assert not list(frozen.parameters())
    for chunk in (5, 20):
        x = noise((chunk, 3, 5), torch.float32, chunk, device)
        torch.testing.assert_close(frozen(x), net(x))


@each_neuron
@pytest.mark.parametrize("way", ["scripted", "loaded", "a_part", "frozen", "frozen_loaded", "optimized", "copied"])
def test_reset_and_detach_reach_every_neuron(neuron: str, way: str, device: str) -> None:
    def wrapped(net: torch.nn.Sequential) -> torch.nn.Module:
        if way == "a_part":
            return torch.nn.Sequential(torch.jit.script(net[:2]), net[2:])
        scripted = torch.jit.script(net)
        if way.startswith("frozen"):
            scripted = torch.jit.freeze(scripted)
        elif way == "optimized":
            scripted = torch.jit.optimize_for_inference(scripted)
        elif way == "copied":
            return copy.deepcopy(scripted)
        return saved_and_loaded(scripted) if way.endswith("loaded") else scripted

    net = network(neuron, device, store_v_seq=True).eval()
    x = eighths(noise((4, 3, 5), torch.float32, 0, device, 2.0))
    other = wrapped(copy.deepcopy(net))
    # An optimized network sums products in another order, which potentials show and spikes do not.
    same = (
        torch.testing.assert_close
        if way == "optimized"
        else functools.partial(torch.testing.assert_close, rtol=0, atol=0)
    )
    with torch.no_grad():
        expected, then = net(x), net(x)
        same(other(x), expected)
        snnkern.nn.detach(other)
        same(other(x), then)
        snnkern.nn.reset(other)
        same(other(x), expected)
    snnkern.nn.reset({"both": (net, other)})
    for n in (net, other):
        x = x.detach().requires_grad_()
        n(x)
        snnkern.nn.detach(n)
        y = x.detach().requires_grad_()
        assert torch.autograd.grad(n(y).sum(), [x, y], allow_unused=True)[0] is None


@each_neuron
def test_load_and_train_in_a_fresh_process(neuron: str, device: str, tmp_path: Path) -> None:
    """The library is all that the process needs: no snnkern package, no Python of ours."""
    net = network(neuron, device)
    x = noise((20, 3, 5), torch.float32, 0, device).requires_grad_()
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    torch.save(x.detach(), tmp_path / "x.pt")
    (expected,) = torch.autograd.grad(net(x).sum(), x)
    code = """
import sys, torch
torch.ops.load_library(sys.argv[1])
net, x = torch.jit.load(sys.argv[2] + "/net.pt"), torch.load(sys.argv[2] + "/x.pt").requires_grad_()
net(x).sum().backward()
assert "snnkern" not in sys.modules and all(p.grad is not None for p in net.parameters())
torch.save(x.grad, sys.argv[2] + "/grad.pt")
"""
    fresh_process(code, str(snnkern._library.HOST), str(tmp_path))
    assert torch.equal(torch.load(tmp_path / "grad.pt"), expected)
