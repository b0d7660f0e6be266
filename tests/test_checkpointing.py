"""Memory savers: activation checkpointing of both kinds, saved-tensor hooks, and tensors offloaded to the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from snnkern import functional

from support import KINDS, function, inputs, neuron_class, noise

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", KINDS)
each_kind = pytest.mark.parametrize("use_reentrant", [False, True], ids=["non_reentrant", "reentrant"])


def run(neuron: str) -> Callable[..., tuple[Tensor, ...]]:
    def layer(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = function(functional, neuron)(x * 1.5, *others)
        return outputs

    return layer


def grads(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    for t in leaves:
        t.grad = None
    torch.autograd.backward(outputs, [noise(tuple(o.shape), o.dtype, i, str(o.device)) for i, o in enumerate(outputs)])
    return [t.grad.clone() for t in leaves if t.grad is not None]


@each_neuron
@each_kind
def test_checkpoint(neuron: str, use_reentrant: bool, device: str) -> None:
    leaves = list(inputs(neuron, (20, 5), torch.float32, device).values())
    calls = []

    def layer(*tensors: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return run(neuron)(*tensors)

    expected = grads(run(neuron)(*leaves), leaves)
    got = grads(checkpoint(layer, *leaves, use_reentrant=use_reentrant), leaves)
    assert len(calls) == 2 and len(got) == len(leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@each_neuron
@each_kind
def test_checkpoint_sequential(neuron: str, use_reentrant: bool, device: str) -> None:
    learned = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]
    layers = [lambda x: function(functional, neuron)(x * 3, *learned)[0] for _ in range(4)]
    x = noise((20, 5), torch.float32, 0, device).requires_grad_()
    out = x
    for layer in layers:
        out = layer(out)
    expected = grads((out,), [x])
    (got,) = grads((checkpoint_sequential(layers, 2, x, use_reentrant=use_reentrant),), [x])
    assert torch.equal(got, expected[0]) and got.abs().max() > 0


@each_neuron
def test_compiled_checkpoint(neuron: str, device: str, fresh_dynamo: None) -> None:
    leaves = list(inputs(neuron, (20, 5), torch.float32, device).values())
    expected = grads(run(neuron)(*leaves), leaves)
    compiled = torch.compile(
        lambda *tensors: checkpoint(run(neuron), *tensors, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(grads(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


@each_neuron
def test_saved_tensors_hooks(neuron: str, device: str) -> None:
    """A hook sees x, not a copy of it, and what it gives back is what the backward uses."""
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    leaves = list(tensors.values())
    expected = grads(function(functional, neuron)(**tensors), leaves)
    packed: list[Tensor] = []

    def pack(t: Tensor) -> bytes:
        packed.append(t)
        return t.detach().cpu().numpy().tobytes(), t.shape, t.dtype  # type: ignore[return-value]

    def unpack(data: tuple[bytes, torch.Size, torch.dtype]) -> Tensor:
        blob, shape, dtype = data
        values = torch.frombuffer(bytearray(blob), dtype=dtype) if blob else torch.empty(0, dtype=dtype)
        return values.reshape(shape).to(device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        outputs = function(functional, neuron)(**tensors)
    assert any(t.data_ptr() == tensors["x_seq"].data_ptr() for t in packed)
    for a, b in zip(grads(outputs, leaves), expected, strict=True):
        assert torch.equal(a, b)


@each_neuron
def test_save_on_cpu(neuron: str, device: str) -> None:
    leaves = list(inputs(neuron, (40, 5), torch.float32, device).values())
    expected = grads(run(neuron)(*leaves), leaves)
    with torch.autograd.graph.save_on_cpu(pin_memory=device == "cuda"):
        outputs = run(neuron)(*leaves)
    for a, b in zip(grads(outputs, leaves), expected, strict=True):
        assert torch.equal(a, b)
