"""The operators under autograd: what is retained, partial gradients, and clear errors for what is not supported."""

from __future__ import annotations

import re

import pytest
import torch

from snnkern import functional, reference

from support import NEURON_NAMES, function, inputs, noise


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_a_missing_gradient_counts_as_zero(neuron: str, store_v_seq: bool, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    grads = []
    for module in (functional, reference):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        spikes, v = function(module, neuron)(**leaves, store_v_seq=store_v_seq)
        grads.append(
            [torch.autograd.grad(o.square().sum(), list(leaves.values()), retain_graph=True) for o in (spikes, v)]
        )
    for got, expected in zip(*grads, strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_only_the_wanted_gradients(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    everything = torch.autograd.grad(function(functional, neuron)(**tensors)[0].sum(), list(tensors.values()))
    for name, expected in zip(tensors, everything, strict=True):
        alone = {n: t if n == name else t.detach() for n, t in tensors.items()}
        (grad,) = torch.autograd.grad(function(functional, neuron)(**alone)[0].sum(), alone[name])
        assert torch.equal(grad, expected)


def saved_tensors(x: torch.Tensor) -> list[torch.Tensor]:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        functional.lif(x)
    return saved


def test_training_retains_x_and_one_sixteenth_of_it(device: str) -> None:
    for steps in (1, 16, 17, 128):
        x = noise((steps, 50), torch.float32, 0, device).requires_grad_()
        own = [t for t in saved_tensors(x) if t.data_ptr() != x.data_ptr()]
        assert sum(t.numel() for t in own) == (steps - 1) // 16 * 50


def test_inference_makes_no_checkpoints(device: str) -> None:
    x = noise((128, 50), torch.float32, 0, device)
    spikes, v = functional.lif(x)
    assert not spikes.requires_grad and not v.requires_grad
    with torch.no_grad():
        assert not functional.lif(x.requires_grad_())[0].requires_grad


def test_in_place_change_of_x_is_noticed(device: str) -> None:
    x = noise((4, 5), torch.float32, 0, device).requires_grad_()
    y = x * 1
    spikes, _ = functional.lif(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_backward_twice(device: str) -> None:
    x = noise((4, 5), torch.float32, 0, device).requires_grad_()
    spikes, _ = functional.lif(x)
    spikes.sum().backward(retain_graph=True)
    first = x.grad.clone()
    spikes.sum().backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        spikes.sum().backward()
