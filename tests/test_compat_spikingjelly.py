"""snnkern.compat.spikingjelly: model files written for SpikingJelly, old and new, run unchanged.

The files in tests/spikingjelly_models are in the style of published ones, with their imports and calls. What is compared
with SpikingJelly's own code is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern.compat import spikingjelly as compat
from snnkern.compat.spikingjelly import encoding, functional, layer, neuron, surrogate
from snnkern.compat.spikingjelly._fused import NODES
from snnkern.compat.spikingjelly.cext import neuron as cext_neuron

from support import double_precision, error, fresh_process, library, noise

EXACT = 1e-9
FILES = sorted((Path(__file__).parent / "spikingjelly_models").glob("*.py"))


@pytest.fixture
def installed() -> Iterator[None]:
    compat.install(replace=True)
    yield
    compat.uninstall()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(path: Path, steps: int = 3) -> tuple[list[float], torch.nn.Module]:
    """The loss of each step."""
    torch.manual_seed(0)
    net, x = load(path).make()
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.05), []
    target = torch.arange(x.shape[0])
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sys.modules["spikingjelly.activation_based.functional"].reset_net(net)
        losses.append(loss.item())
    return losses, net


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_model_file_trains_unchanged(path: Path, installed: None) -> None:
    losses, net = train(path)
    assert losses[2] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    found = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert len(found) >= 2
    assert all(m.v == (m.v_reset or 0.0) for m in found)  # reset


def test_a_model_file_gives_what_spikingjelly_gives() -> None:
    library("spikingjelly.activation_based.layer")
    path = next(path for path in FILES if path.stem == "snn_delays")
    with double_precision():
        expected, net = train(path)
        compat.install(replace=True)
        try:
            losses, ours = train(path)
        finally:
            compat.uninstall()
    assert losses == pytest.approx(expected, rel=EXACT)
    assert list(ours.state_dict()) == list(net.state_dict())
    assert type(ours.model[2]).__module__ == "snnkern.compat.spikingjelly.neuron"
    assert type(net.model[2]).__module__.startswith("spikingjelly.")


# ---- where the names are found ------------------------------------------------------------------------------------------

IMPORTS = """
import spikingjelly.clock_driven.neuron, spikingjelly.cext.neuron
from spikingjelly.clock_driven import encoding, functional, layer, neuron, surrogate
from spikingjelly.activation_based import base
from spikingjelly.activation_based.neuron import LIFNode
from spikingjelly import clock_driven
assert clock_driven.neuron is neuron
print(LIFNode.__module__, neuron.MultiStepLIFNode.__module__)
"""


@pytest.mark.parametrize("there", [False, True], ids=["not installed", "installed"])
@pytest.mark.parametrize("replace", [False, True])
def test_install_makes_the_names_importable(there: bool, replace: bool) -> None:
    if there:
        library("spikingjelly.activation_based.layer")
    hide = "" if there else "import sys\nsys.modules['spikingjelly'] = None\n"
    code = f"{hide}import snnkern\nsnnkern.compat.spikingjelly.install(replace={replace})\n{IMPORTS}"
    new, old = fresh_process(code).split()
    assert old == "snnkern.compat.spikingjelly.neuron"
    assert new == ("spikingjelly.activation_based.neuron.lif" if there and not replace else old)


def test_uninstall_brings_back_what_was_there() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("spikingjelly")}
    for replace in (False, True, True):
        compat.install(replace=replace)
    assert sys.modules["spikingjelly.clock_driven.neuron"] is neuron
    compat.uninstall()
    compat.uninstall()  # nothing more to do
    after = {name: module for name, module in sys.modules.items() if name.startswith("spikingjelly")}
    assert {name for name in after.keys() - before.keys() if "clock_driven" in name or "cext" in name} == set()
    assert all(after[name] is module for name, module in before.items())


# ---- neurons ------------------------------------------------------------------------------------------------------------

SOME = [name for name in NODES if hasattr(neuron, name)]


def outputs(node: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    spikes = node(x)
    (spikes * noise(tuple(spikes.shape), x.dtype, 3)).sum().backward()
    gradients = {name: p.grad for name, p in node.named_parameters()}
    return {"spikes": spikes.detach(), "v": node.v.detach(), "x": x.grad, **gradients}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SOME)
def test_a_neuron_is_spikingjellys_with_the_same_defaults(name: str) -> None:
    theirs = getattr(library("spikingjelly.activation_based.neuron"), name)
    with double_precision():
        nodes = [theirs(), getattr(neuron, name)()]
        assert list(nodes[0].state_dict()) == list(nodes[1].state_dict())
        nodes[1].load_state_dict(nodes[0].state_dict())
        x = 2 * noise((8, 64), torch.float64, 0)
        for node in nodes:
            node.step_mode = "m"
        for _ in range(2):  # the second from the state that is left
            expected, found = (outputs(node, x) for node in nodes)
            assert (expected["spikes"] > 0).any()
            assert all(error(found[key], value) <= EXACT for key, value in expected.items())
            for node in nodes:
                for memory in NODES[name].states.values():
                    setattr(node, memory, getattr(node, memory).detach())


def test_arguments_come_in_the_order_of_every_version() -> None:
    atan = surrogate.ATan(3.0)
    full = {"tau": 3.0, "decay_input": False, "v_threshold": 0.5, "v_reset": None, "detach_reset": True}
    for node in (
        neuron.LIFNode(3.0, False, 0.5, None, atan, True),
        neuron.LIFNode(3.0, False, 0.5, None, atan, True, "m", "cupy", True),  # 0.0.0.0.14
        neuron.LIFNode(3.0, False, 0.5, None, atan, True, "m", True),  # 2.0
        neuron.MultiStepLIFNode(3.0, False, 0.5, None, atan, True, "cupy"),  # 0.0.0.0.12
    ):
        assert {name: getattr(node, name) for name in full} == full
        assert node.surrogate_function is atan
    assert neuron.LIFNode(3.0, 0.5, None).v_threshold == 0.5  # before decay_input
    assert neuron.LIFNode(3.0, False, 0.5, None, atan, True, "m", True).store_v_seq
    assert neuron.MultiStepIFNode(backend="cupy", lava_s_cale=64).step_mode == "m"
    named = cext_neuron.MultiStepIFNode(0.5, 0.0, "Sigmoid", 2.0, True)
    assert repr(named.surrogate_function) == "Sigmoid(alpha=2.0, spiking=True)"
    assert (named.detach_reset, named.step_mode) == (True, "m")
    with pytest.raises(TypeError, match="LIFNode has no argument taux"):
        neuron.LIFNode(taux=2.0)
    with pytest.raises(TypeError, match="IFNode: 'x' is one argument too many, or in the wrong place"):
        neuron.IFNode(1.0, 0.0, atan, False, "s", "torch", True, "x")
    with pytest.raises(TypeError, match="IFNode: v_threshold is given twice"):
        neuron.IFNode(1.0, v_threshold=1.0)


def test_state_and_step_modes() -> None:
    node = neuron.LIFNode(store_v_seq=True)
    x = 3 * noise((5, 4), torch.float32, 0)
    assert node.v == 0.0
    single = torch.stack([node(step) for step in x])
    assert node.v_seq is not None
    v, v_seq = node.v, node.v_seq
    functional.reset_net(node)
    assert (node.v, node.v_seq) == (0.0, None)
    functional.set_step_mode(node, "m")
    assert torch.equal(node(x), single)
    assert torch.equal(node.v, v)
    assert torch.equal(node.v_seq, v_seq)
    node.v = 9.0
    assert not torch.equal(node(x), single)
    x.requires_grad_()
    node(x)
    assert node.v.grad_fn is not None
    functional.detach_net(node)
    assert node.v.grad_fn is None
    snnkern.nn.reset(torch.nn.Sequential(node))
    assert node.v == 0.0
    with pytest.raises(ValueError, match="step_mode must be in"):
        node.step_mode = "q"


def test_a_neuron_of_ones_own() -> None:
    """From BaseNode; a class that would change the equation of another neuron is refused."""

    class Leak(neuron.BaseNode):
        def neuronal_charge(self, x: Tensor) -> None:
            self.v = self.v + (x - (self.v - self.v_reset)) / 3.0

    x = 4 * noise((6, 5), torch.float64, 0)
    own, usual = Leak(step_mode="m", store_v_seq=True), neuron.LIFNode(tau=3.0, step_mode="m", store_v_seq=True)
    expected, found = outputs(usual, x), outputs(own, x)
    assert all(error(found[key], value) <= EXACT for key, value in expected.items())
    assert error(own.v_seq.detach(), usual.v_seq.detach()) <= EXACT
    with pytest.raises(TypeError, match="derive a neuron with its own neuronal_charge from BaseNode"):
        type("Own", (neuron.LIFNode,), {"neuronal_charge": None})


def test_old_checkpoints_hold_the_parameters_of_surrogates() -> None:
    net = torch.nn.Sequential(neuron.MultiStepParametricLIFNode(surrogate_function=surrogate.ATan()))
    net.load_state_dict({"0.w": torch.tensor(0.5), "0.surrogate_function.alpha": torch.tensor(3.0)})
    assert net[0].surrogate_function.alpha == 3.0
    assert net[0].w.item() == 0.5


def test_surrogates_are_spikingjellys() -> None:
    theirs = library("spikingjelly.activation_based.surrogate")
    x = torch.arange(-24, 25, dtype=torch.float64) / 8 + 0.01  # not where a primitive has an edge
    for name in surrogate._NAMES:
        function, other = getattr(surrogate, name)(), getattr(theirs, name)()
        for spiking in (True, False):
            function.spiking = other.spiking = spiking
            if not spiking and name in ("DeterministicPass", "FakeNumericalGradient", "SuperSpike"):
                continue  # they have no primitive here
            results = []
            for f in (function, other):
                leaf = x.clone().requires_grad_()
                y = f(leaf)
                results.append((y.detach(), torch.autograd.grad(y.sum(), leaf)[0]))
            # The derivative of S2NN's primitive differs from its gradient by 1e-5.
            tolerance = 1e-4 if (name, spiking) == ("S2NN", False) else EXACT
            for ours, expected in zip(*results, strict=True):
                torch.testing.assert_close(ours, expected, rtol=tolerance, atol=1e-12, msg=name)
    assert torch.equal(surrogate.atan.apply(x, 2.0), (x >= 0).double())
    assert repr(surrogate.Sigmoid(2.0, False)) == "Sigmoid(alpha=2.0, spiking=False)"
    with pytest.raises(TypeError, match=r"surrogate\.Sigmoid takes alpha, spiking"):
        surrogate.Sigmoid(beta=1.0)


# ---- layers, functions, encoders ----------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "Conv1d": ((2, 3, 3), (2, 8)), "Conv2d": ((2, 3, 3), (2, 8, 8)), "BatchNorm1d": ((2,), (2, 8)),
    "BatchNorm2d": ((2,), (2, 8, 8)), "Linear": ((8, 4), (8,)), "Flatten": ((), (2, 4, 4)), "MaxPool2d": ((2,), (2, 8, 8)),
    "AvgPool2d": ((2,), (2, 8, 8)), "AdaptiveAvgPool2d": ((1,), (2, 8, 8)), "GroupNorm": ((1, 2), (2, 8)),
    "SynapseFilter": ((2.0, True), (8,)), "VotingLayer": ((2,), (8,)),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_spikingjellys(name: str, mode: str) -> None:
    arguments, shape = LAYERS[name]
    theirs = getattr(library("spikingjelly.activation_based.layer"), name)(*arguments, step_mode=mode)
    ours = getattr(layer, name)(*arguments, step_mode=mode)
    ours.load_state_dict(theirs.state_dict())
    x = noise((3, 2, *shape) if mode == "m" else (2, *shape), torch.float32, 0)
    assert torch.equal(ours(x), theirs(x))


def test_containers_dropout_and_encoders() -> None:
    x = noise((3, 2, 4), torch.float32, 0)
    linear, node = torch.nn.Linear(4, 4), neuron.IFNode()
    inside = torch.nn.Sequential(linear, node)
    expected = torch.stack([inside(step) for step in x])
    functional.reset_net(node)
    assert torch.equal(layer.MultiStepContainer(linear, node)(x), expected)
    assert torch.equal(layer.SeqToANNContainer(linear)(x), linear(x))
    functional.reset_net(node)
    whole = torch.nn.Sequential(layer.SeqToANNContainer(linear), neuron.IFNode())
    functional.set_step_mode(whole, "m")
    functional.set_backend(whole, "cupy", neuron.IFNode)
    assert torch.equal(whole(x), expected)
    recurrent = layer.LinearRecurrentContainer(neuron.IFNode(), 4, 4, step_mode="m")
    assert recurrent(x).shape == x.shape
    mask = layer.MultiStepDropout(0.5)(torch.ones(3, 100))
    assert torch.equal(mask[0], mask[2])
    assert 0.2 < (mask == 0).float().mean() < 0.8
    value = torch.tensor([0.25, 0.625])
    assert torch.equal(
        torch.stack([e(value) for e in [encoding.WeightedPhaseEncoder(3)] for _ in range(3)]),
        torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
    )
    latency = encoding.LatencyEncoder(5)
    assert torch.stack([latency(value) for _ in range(5)]).argmax(0).tolist() == [3, 2]
    periodic = encoding.PeriodicEncoder(torch.eye(2))
    assert [periodic(None).tolist() for _ in range(3)] == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert encoding.PoissonEncoder()(torch.ones(9)).sum() == 9


def test_the_neurons_are_those_of_snnkern() -> None:
    """To the bit, in single precision, on channels last."""
    x = noise((4, 2, 3, 5, 5), torch.float32, 0, scale=2.0).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    expected, v = snnkern.functional.lif(x, tau=3.0, detach_reset=True)
    node = neuron.MultiStepLIFNode(tau=3.0, detach_reset=True, backend="cupy")
    assert torch.equal(node(x), expected)
    assert torch.equal(node.v, v)
