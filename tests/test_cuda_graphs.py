"""CUDA graphs and streams: capture and replay of forward and backward, side streams, two devices in one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import functional

from support import KINDS, function, inputs, network, neuron_class, noise

pytestmark = [pytest.mark.compatibility, pytest.mark.gpu]
each_neuron = pytest.mark.parametrize("neuron", KINDS)
SHAPE = (20, 70)


def step(neuron: str, tensors: dict[str, Tensor], incoming: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients."""
    outputs = function(functional, neuron)(**tensors)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, list(tensors.values()), incoming)]


def incoming(neuron: str, device: str) -> list[Tensor]:
    states = neuron_class(neuron).states
    return [noise(SHAPE, torch.float32, 8, device), *(noise(SHAPE[1:], torch.float32, 9, device) for _ in states)]


def refill(tensors: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, t in tensors.items():
            t.copy_(other[name])


def warm_up(neuron: str, tensors: dict[str, Tensor]) -> None:
    """On a side stream, as PyTorch asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(neuron, tensors, incoming(neuron, "cuda"))
    torch.cuda.current_stream().wait_stream(stream)


@each_neuron
def test_capture_of_forward_and_backward(neuron: str) -> None:
    tensors, grads = inputs(neuron, SHAPE, torch.float32, "cuda"), incoming(neuron, "cuda")
    warm_up(neuron, tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(neuron, tensors, grads)
    for seed in (1, 2):  # values that the capture has not seen
        other = inputs(neuron, SHAPE, torch.float32, "cuda", seed=seed)
        if seed == 2:
            other = {n: (t.detach() * 0.9).requires_grad_() if t.dim() == 0 else t for n, t in other.items()}
        refill(tensors, other)
        graph.replay()
        for a, b in zip(captured, step(neuron, other, grads), strict=True):
            assert torch.equal(a, b)


@each_neuron
def test_capture_of_inference(neuron: str) -> None:
    tensors = {n: t.detach() for n, t in inputs(neuron, SHAPE, torch.float32, "cuda").items()}
    function(functional, neuron)(**tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(functional, neuron)(**tensors)
    other = inputs(neuron, SHAPE, torch.float32, "cuda", seed=1)
    refill(tensors, other)
    graph.replay()
    for a, b in zip(captured, function(functional, neuron)(**other), strict=True):
        assert torch.equal(a, b)


@each_neuron
def test_side_streams(neuron: str) -> None:
    """Work goes to the current stream: behind a long wait there, results are those of the input after the wait."""
    tensors, grads = inputs(neuron, SHAPE, torch.float32, "cuda"), incoming(neuron, "cuda")
    other = inputs(neuron, SHAPE, torch.float32, "cuda", seed=1)
    expected = step(neuron, other, grads)
    step(neuron, tensors, grads)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s; a launch on another stream would not wait for it
        refill(tensors, other)
        got = step(neuron, tensors, grads)
    stream.synchronize()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@each_neuron
def test_backward_runs_on_the_stream_of_its_forward(neuron: str) -> None:
    tensors, grads = inputs(neuron, SHAPE, torch.float32, "cuda"), incoming(neuron, "cuda")
    leaves = list(tensors.values())
    expected = torch.autograd.grad(function(functional, neuron)(**tensors), leaves, grads)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        outputs = function(functional, neuron)(**tensors)
    got = torch.autograd.grad(outputs, leaves, grads)
    torch.cuda.synchronize()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@each_neuron
def test_make_graphed_callables(neuron: str) -> None:
    """A small network, trained for some steps as a CUDA graph and without one."""
    module = getattr(snnkern.nn, neuron_class(neuron).module)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(neuron, "cuda")
            self.readout = torch.nn.Linear(4, 2)
            self.readout.weight.data = noise((2, 4), torch.float32, 1)
            self.readout.bias.data = noise((2,), torch.float32, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if isinstance(layer, module):
                    layer.reset()  # a graph keeps no state from call to call
            out: Tensor = self.readout(self.layers(x)).mean(0)
            return out

    plain, net = Net().cuda(), Net().cuda()
    sample = noise((20, 8, 5), torch.float32, 0, "cuda")
    snnkern.nn.reset(net)
    graphed = torch.cuda.make_graphed_callables(net, (sample,))
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-3) for n in (plain, net)]
    for i in range(4):
        x = noise((20, 8, 5), torch.float32, i, "cuda")
        for call, optimizer in zip((plain, graphed), optimizers, strict=True):
            optimizer.zero_grad()
            call(
                x
            ).square().mean().log1p().backward()  # whose gradient stays small where an integrator's output is large
            optimizer.step()
        for a, b in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b)


@each_neuron
def test_two_devices_in_one_process(neuron: str) -> None:
    """The current device is another one than that of the tensors."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    tensors = {d: inputs(neuron, SHAPE, torch.float32, d) for d in ("cuda:0", "cuda:1")}
    outputs = {}
    for current in (0, 1):
        with torch.cuda.device(current):
            for device, own in tensors.items():
                outputs[current, device] = step(neuron, own, incoming(neuron, device))
                assert all(t.device == torch.device(device) for t in outputs[current, device])
    first = outputs[0, "cuda:0"]
    for got in outputs.values():
        for a, b in zip(got, first, strict=True):
            assert torch.equal(a.cpu(), b.cpu())
