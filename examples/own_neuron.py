"""A neuron and a surrogate typed in Python, checked against plain PyTorch, timed beside it, and trained.

    python examples/own_neuron.py [--device cpu]

It needs snnkern and, on the CPU, a C++ compiler. It runs on the GPU if there is one, and takes less than a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import snnkern
from snnkern.codegen.specification.neurons import POTENTIAL, Float, Neuron, Range, State


@snnkern.define_neuron
class Bursting(Neuron):
    """A leaky neuron whose threshold falls after a spike and comes back: spikes come in bursts."""

    states = (POTENTIAL, State("b", "how far the threshold is lowered"))
    parameters = (
        Float("leak", 0.75, "the part of the potential that stays", Range(0, 1)),
        Float("recovery", 0.75, "the part of b that stays", Range(0, 1)),
        Float("drop", 0.25, "what a spike takes off the threshold", Range(0)),
    )
    equations = ("h = leak * v + x", "s = 1 if h >= v_threshold - b else 0", "b = recovery * b + drop * s")

    @classmethod
    def step(cls, x: Any, states: Any, p: Any, step: Any) -> Any:
        v, b = states
        s, v = cls.fire(p.leak * v + x, p.v_threshold - b, p, step)
        return s, [v, p.recovery * b + p.drop * s]


@snnkern.define_surrogate
class Bell:
    """exp(-(alpha x)^2)"""

    parameters = (Float("alpha", 1.0, "steepness", Range(0, low_open=True)),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return (-(p.alpha * x) * (p.alpha * x)).exp()


def seconds(run: Callable[[], torch.Tensor], repeats: int = 5) -> float:
    """The quickest of a few runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run().ravel()[0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return best


def train(function: Any, x: torch.Tensor) -> torch.Tensor:
    (grad,) = torch.autograd.grad(function(x, surrogate=Bell(alpha=2.0))[0].sum(), x)
    return grad


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    torch.manual_seed(0)

    x = torch.rand(16, 64, 512, device=device, requires_grad=True)
    grad = train(snnkern.reference.bursting, x)  # PyTorch starts what it needs
    first = seconds(lambda: train(snnkern.functional.bursting, x), repeats=1)
    print(f"{device}: first use, forward and backward: {first:.2f} s")
    fused, plain = snnkern.functional.bursting(x)[0], snnkern.reference.bursting(x)[0]
    assert torch.equal(fused, plain)
    torch.testing.assert_close(train(snnkern.functional.bursting, x), grad)
    quick, slow = (
        seconds(lambda f=f: train(f, x))  # type: ignore[misc]
        for f in (snnkern.functional.bursting, snnkern.reference.bursting)
    )
    print(f"same spikes as plain PyTorch; {1000 * quick:.2f} ms a step of training, plain {1000 * slow:.2f} ms")

    net = torch.nn.Sequential(
        torch.nn.Linear(8, 128),
        snnkern.nn.Bursting(learn_leak=True, channels=128, surrogate=Bell(alpha=2.0)),
        torch.nn.Linear(128, 2),
        snnkern.nn.LI(),
    ).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for i in range(300):  # which half of the sequence is louder?
        label = torch.randint(2, (64,), device=device)
        loud = torch.stack([1.5 - label, 0.5 + label]).repeat_interleave(10, 0)
        sequence = torch.rand(20, 64, 8, device=device) * loud.unsqueeze(2)
        snnkern.nn.reset(net)
        out = net(sequence)[-1]
        loss = torch.nn.functional.cross_entropy(out, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 99:
            accuracy = (out.argmax(1) == label).float().mean().item()
            print(f"step {i + 1}: loss {loss.item():.3f}, accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
