"""torch.compile: one graph for training and inference, for any T and N, and compiled autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.backends.common
import torch._dynamo.compiled_autograd
import torch._dynamo.testing
from torch import Tensor

import snnkern
from snnkern import functional
from snnkern.codegen.specification.neurons import Float

from support import KINDS, function, gradients, inputs, network, neuron_class, noise, operator
from test_layouts import channels_last

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("fresh_dynamo")]
each_neuron = pytest.mark.parametrize("neuron", KINDS)


def run(neuron: str, tensors: dict[str, Tensor]) -> Tensor:
    """Something before the neuron and something after it, for a compiler to fuse."""
    x, *others = tensors.values()
    spikes, *states = operator(neuron)(x * 1.5, *others)
    total: Tensor = spikes.sum(0) + sum(states)
    return total


def same(neuron: str, out: Tensor, expected: Tensor) -> None:
    """To the bit, unless what a compiler sums up in an order of its own are no whole numbers."""
    if neuron_class(neuron).firing:
        assert torch.equal(out, expected)
    else:
        torch.testing.assert_close(out, expected)


def check_training(compiled: Callable[..., Tensor], neuron: str, tensors: dict[str, Tensor]) -> None:
    expected, out = run(neuron, tensors), compiled(neuron, tensors)
    same(neuron, out, expected)
    leaves = list(tensors.values())
    for a, b in zip(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@each_neuron
@pytest.mark.parametrize("dynamic", [None, True], ids=["as_it_comes", "dynamic"])
def test_training_and_inference_without_a_graph_break(neuron: str, dynamic: bool | None, device: str) -> None:
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    for shape in ((20, 6), (33, 6), (40, 9), (1, 6)):
        tensors = inputs(neuron, shape, torch.float32, device)
        check_training(compiled, neuron, tensors)
        with torch.no_grad():
            same(neuron, compiled(neuron, tensors), run(neuron, tensors))


@each_neuron
def test_one_graph_for_any_T_and_N(neuron: str, device: str) -> None:
    """One graph serves any T > 32 and any N. Shorter sequences have two more, for no and for one checkpoint."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    frames = []
    for shape in ((40, 7), (100, 3), (33, 9), (5, 7), (16, 4), (17, 4), (32, 9), (200, 2)):
        tensors = inputs(neuron, shape, torch.float32, device)
        for name, t in tensors.items():
            if name == "x_seq":
                torch._dynamo.mark_dynamic(t, 0)
                torch._dynamo.mark_dynamic(t, 1)
            elif t.dim():
                torch._dynamo.mark_dynamic(t, 0)
        check_training(compiled, neuron, tensors)
        frames.append(counter.frame_count)
    several = len(neuron_class(neuron).states) > 1  # and then as many rows for one checkpoint
    assert frames == ([1, 1, 1, 2, 2, 2, 2, 2] if several else [1, 1, 1, 2, 2, 3, 3, 3])


@each_neuron
def test_channels_last_stays(neuron: str, device: str) -> None:
    """The layout of a channels_last convolution goes through the neuron and back."""
    conv = torch.nn.Conv2d(3, 8, 3, padding=1).to(device, memory_format=torch.channels_last)

    def net(x_seq: Tensor, *others: Tensor) -> Tensor:
        current = conv(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
        spikes: Tensor = operator(neuron)(current, *others)[0]
        return spikes

    x = channels_last(noise((4, 2, 3, 6, 7), torch.float32, 0, device, 3.0)).requires_grad_()
    others = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]
    out = torch.compile(net, fullgraph=True)(x, *others)
    expected = net(x, *others)
    assert out.stride() == expected.stride() == channels_last(torch.empty(4, 2, 8, 6, 7)).stride()
    torch.testing.assert_close(out, expected)
    incoming = channels_last(noise(tuple(out.shape), out.dtype, 1, device))
    (grad,), (wanted,) = torch.autograd.grad(out, x, incoming), torch.autograd.grad(expected, x, incoming)
    torch.testing.assert_close(grad, wanted)
    assert grad.stride() == wanted.stride()


@each_neuron
def test_inference_holds_no_checkpoints(neuron: str, device: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def operators() -> set[str]:
        return {str(n.target) for g in graphs for n in g.graph.nodes if str(n.target).startswith("snnkern")}

    compiled = torch.compile(
        run, fullgraph=True, backend=torch._dynamo.backends.common.aot_autograd(fw_compiler=record)
    )
    tensors = inputs(neuron, (40, 6), torch.float32, device)
    with torch.no_grad():
        compiled(neuron, tensors)
    assert operators() == {f"snnkern.{neuron}_forward.default"}
    graphs.clear()
    compiled(neuron, tensors).sum().backward()
    assert operators() == {f"snnkern._{neuron}_train.default", f"snnkern.{neuron}_backward.default"}


def changed_by(p: Float, amount: float) -> float:
    """The default, and an amount more; or less, where more is out of range."""
    return p.default + amount if p.range.holds(p.default + amount) else p.default - amount


@each_neuron
def test_twelve_neurons_of_different_parameters_are_one_frame(neuron: str, device: str) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    numbers = [p for p in neuron_class(neuron).all_parameters() if isinstance(p, Float) and p.name != "v_reset"]
    layers = [{p.name: changed_by(p, (1 if p.range.integer else 0.05) * i) for p in numbers} for i in range(12)]
    learned = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]

    def net(x: Tensor) -> Tensor:
        for layer in layers:
            x = function(functional, neuron)(x * 3, *learned, **layer)[0]
        return x

    x = noise((5, 6), torch.float32, 0, device, 2.0)
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for _ in range(3):
        assert torch.equal(compiled(x), net(x))
    assert counter.frame_count == 1


@each_neuron
def test_modules_keep_their_state(neuron: str, device: str) -> None:
    net, plain = network(neuron, device), network(neuron, device)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for _ in range(2):
        for chunk in range(3):
            x = noise((4, 3, 5), torch.float32, chunk, device)
            torch.testing.assert_close(compiled(x), plain(x))
            torch.testing.assert_close(net[1].v, plain[1].v)
        snnkern.nn.reset(net)
        snnkern.nn.reset(plain)
    assert counter.frame_count == 2  # without a state, and with one


@each_neuron
@pytest.mark.gpu
def test_reduce_overhead_runs_as_a_cuda_graph(neuron: str) -> None:
    """Forward and backward are replayed: nothing in them makes torch.compile skip CUDA graphs."""
    counters = torch._dynamo.utils.counters["inductor"]
    counters.clear()
    compiled = torch.compile(run, fullgraph=True, mode="reduce-overhead")
    tensors = inputs(neuron, (20, 64), torch.float32, "cuda")
    leaves = list(tensors.values())
    expected = run(neuron, tensors)
    grads = torch.autograd.grad(expected.sum(), leaves)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(neuron, tensors)
        # A sum of whole numbers has no last bits, one of potentials does.
        assert torch.equal(out, expected) if neuron_class(neuron).firing else torch.allclose(out, expected)
        for a, b in zip(torch.autograd.grad(out.sum(), leaves), grads, strict=True):
            torch.testing.assert_close(a, b)
    assert counters["cudagraph_skips"] == 0


@each_neuron
def test_compiled_autograd_of_an_eager_forward(neuron: str, device: str) -> None:
    """One compiled backward serves any T; a parameter, the wanted gradients and the neuron tell it from others."""
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule) -> Any:
        graphs.append(graph)
        return torch.compile(graph, backend="aot_eager", fullgraph=True, dynamic=True)

    def check(steps: int, changed: float, name: str = neuron, only_x: bool = False) -> int:
        tensors = inputs(name, (steps, 4), torch.float64, device)
        if only_x:
            tensors = {n: t.detach().requires_grad_(n == "x_seq") for n, t in tensors.items()}
        first = next(p for p in neuron_class(name).all_parameters() if isinstance(p, Float))
        outputs = function(functional, name)(**tensors, **{first.name: changed_by(first, changed)})
        total = sum((o * noise(tuple(o.shape), o.dtype, 9, device)).sum() for o in outputs)
        leaves = [t for t in tensors.values() if t.requires_grad]
        expected = torch.autograd.grad(total, leaves, retain_graph=True)
        with torch._dynamo.compiled_autograd._enable(compiler):
            total.backward()
        for t, grad in zip(leaves, expected, strict=True):
            torch.testing.assert_close(t.grad, grad)
        return len(graphs)

    first = check(20, 0.0)
    check(33, 0.0)
    assert check(50, 0.0) <= first + 1  # at most once more, for sizes that now vary
    before = len(graphs)
    assert check(33, 0.25) > before
    assert check(33, 0.0) == before + 1
    check(33, 0.0, only_x=True)
    for other in KINDS:
        check(33, 0.0, other)


def test_compiled_autograd_of_a_compiled_step(device: str) -> None:
    net = network("lif", device)
    x = noise((8, 3, 5), torch.float32, 0, device).requires_grad_()
    expected = gradients(net, x)

    @torch.compile
    def step() -> None:
        snnkern.nn.reset(net)
        out = net(x)
        (out * noise(tuple(out.shape), out.dtype, 77, device)).sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        step()
    for t, grad in zip([*net.parameters(), x], expected, strict=True):
        torch.testing.assert_close(t.grad, grad)
