"""torch.fx, make_fx and torch.jit.trace: a graph that keeps the state, or says that it does not; the module stays as it was."""

from __future__ import annotations

import pytest
import torch
import torch.fx
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from torch.fx.experimental.proxy_tensor import make_fx

from snnkern import nn

from support import KINDS, network, noise

pytestmark = [pytest.mark.compatibility, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]
each_neuron = pytest.mark.parametrize("neuron", KINDS)
NO_STATE = pytest.mark.filterwarnings("ignore:.*a trace keeps no state:torch.jit.TracerWarning")


def states(net: torch.nn.Module) -> list[Tensor | None]:
    return [getattr(m, key) for m in net.modules() if isinstance(m, nn.MultiStep) for key in m._kept_names()]


@each_neuron
def test_symbolic_trace_keeps_the_state(neuron: str, device: str) -> None:
    """Neurons are calls of their modules, which the graph holds, so that it keeps and resets their states."""
    net, whole = network(neuron, device), network(neuron, device)
    net(torch.ones(2, 3, 5, device=device))
    before = states(net)
    graph = torch.fx.symbolic_trace(net)
    assert all(a is b for a, b in zip(states(net), before, strict=True))
    calls = [n for n in graph.graph.nodes if n.op == "call_module"]
    assert [type(graph.get_submodule(n.target)) for n in calls] == [type(layer) for layer in net]
    nn.reset(graph)
    for seed in range(3):
        x = noise((4, 3, 5), torch.float32, seed, device).requires_grad_()
        got, expected = (torch.autograd.grad(n(x).sum(), [x, *n.parameters()]) for n in (graph, whole))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert all(a is None or torch.equal(a, b) for a, b in zip(states(graph), states(whole), strict=True))
        nn.detach([graph, whole])


def test_symbolic_trace_says_what_it_cannot_record() -> None:
    class Twice(nn.LIF):
        def forward(self, x_seq: Tensor) -> Tensor:
            return super().forward(x_seq * 2)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, nn.MultiStep) or super().is_leaf_module(m, module_qualified_name)

    twice = torch.nn.Sequential(Twice())
    for net, name in ((nn.LIF(), "LIF"), (twice, "Twice")):
        with pytest.raises(RuntimeError, match=f"torch.fx cannot look into {name}: trace a network that contains it"):
            torch.fx.symbolic_trace(net)
        assert states(net) == [None, None]
    x = noise((4, 3), torch.float32, 0)
    graph = torch.fx.GraphModule(twice, Tracer().trace(twice))
    assert torch.equal(graph(x), nn.LIF()(x * 2))


@each_neuron
def test_a_fused_network_keeps_the_state(neuron: str) -> None:
    """torch.fx fuses a convolution with its batch norm, and leaves the neuron a neuron."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)
            self.neuron = network(neuron)[1]

        def forward(self, x_seq: Tensor) -> Tensor:
            out: Tensor = self.neuron(self.norm(self.conv(x_seq)).unsqueeze(1))
            return out

    net = Net().eval()
    fused = fuse(net)
    x = noise((4, 2, 6, 6), torch.float32, 0)
    first, then = net(x), net(x)
    torch.testing.assert_close(fused(x), first)
    torch.testing.assert_close(fused(x), then)
    nn.reset(fused)
    torch.testing.assert_close(fused(x), first)


@each_neuron
def test_a_trace_says_that_it_keeps_no_state(neuron: str, device: str) -> None:
    options = {"learn_tau": True} if neuron == "lif" else {}
    net, x = network(neuron, device, **options), noise((4, 3, 5), torch.float32, 0, device, 2.0)
    with pytest.warns(torch.jit.TracerWarning, match="a trace keeps no state, each of its calls starts afresh"):
        traced = torch.jit.trace(net, x)
    assert all(v is None for v in states(net))
    expected = net(x)
    assert torch.equal(traced(x), expected) and torch.equal(traced(x), expected)
    assert any(v is not None for v in states(net))


@NO_STATE
@each_neuron
def test_a_module_with_a_state_says_to_reset_it(neuron: str) -> None:
    net, x = network(neuron), torch.ones(2, 3, 5)
    net(x)
    before = states(net)
    for trace, name in ((lambda: torch.jit.trace(net, x), "torch.jit.trace"), (lambda: make_fx(net)(x), "make_fx")):
        with pytest.raises(RuntimeError, match=rf"{name} cannot keep the state of this module: call reset\(\) before"):
            trace()
        assert all(a is b for a, b in zip(states(net), before, strict=True))
    net(x)


@NO_STATE
def test_a_failed_trace_leaves_the_module_alone() -> None:
    net = torch.nn.Sequential(*network("lif"), torch.nn.Flatten(0), torch.nn.Linear(7, 7))  # does not fit
    x = torch.ones(2, 3, 5)
    for trace in (lambda: torch.jit.trace(net, x), lambda: make_fx(net)(x)):
        with pytest.raises(RuntimeError, match=r"cannot be multiplied|size mismatch"):
            trace()
        assert states(net) == [None] * 4
    assert torch.equal(net[:4](x), network("lif")(x))


@each_neuron
def test_make_fx_leaves_the_module_alone(neuron: str, device: str) -> None:
    net, x = network(neuron, device), noise((4, 3, 5), torch.float32, 0, device, 2.0)
    graph = make_fx(net)(x)
    assert all(v is None for v in states(net))
    expected = net(x)
    assert torch.equal(graph(x), expected) and torch.equal(graph(x), expected)
