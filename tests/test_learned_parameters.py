"""Modules learn any of their parameters: for a layer, a channel or a neuron, always within its limits."""

from __future__ import annotations

import io
import math

import pytest
import torch

from snnkern import functional, nn, surrogate
from snnkern.codegen.specification.neurons import Float

from support import NEURON_NAMES, calm, function, neuron_class, noise

each_neuron = pytest.mark.parametrize("neuron", NEURON_NAMES)


def learnable(neuron: str) -> list[Float]:
    """A whole number is not learned by small steps."""
    return [p for p in neuron_class(neuron).numbers() if not p.range.integer]


def start(p: Float) -> float:
    """From where it is learned: v_min has no default that is a number."""
    return -0.5 if p.default is None else p.default


def module(neuron: str) -> type[torch.nn.Module]:
    made: type[torch.nn.Module] = getattr(nn, neuron_class(neuron).module)
    return made


@each_neuron
def test_each_parameter_is_learned(neuron: str, device: str) -> None:
    x = noise((12, 2, 3, 4, 5), torch.float32, 0, device, calm(neuron, "hard"))
    for p in learnable(neuron):
        for channels in (None, 3):
            given = {p.name: start(p)}
            layer = module(neuron)(**given, **{f"learn_{p.name}": True}, channels=channels).to(device)
            weight = getattr(layer, p.weight_key)
            assert weight.shape == ((1,) if channels is None else (3,))
            out = layer(x)
            out.sum().backward()
            assert weight.grad is not None and weight.grad.shape == weight.shape
            value = weight.detach()
            if p.tensor_range.low == 0 and p.tensor_range.high in (1, math.inf):
                value = value.sigmoid() if p.tensor_range.high == 1 else value.exp()
            value = 1 / value if p.inverse else value
            torch.testing.assert_close(value, torch.full_like(value, start(p)))
            torch.testing.assert_close(getattr(layer, p.name), value)
            learned = [layer.w.sigmoid()[:1].reshape(())] if neuron_class(neuron).learned else []
            assert torch.equal(out, function(functional, neuron)(x, *learned, **given)[0])


@pytest.mark.parametrize("size", [1e-3, 3.0, 40.0])
def test_a_time_constant_stays_above_1(size: float) -> None:
    layer = nn.LIF(learn_tau=True, channels=50)
    with torch.no_grad():
        layer.decay_logit.copy_(noise((50,), torch.float32, 0, scale=size).clamp(-15, 15))
        assert ((1 / layer.decay_logit.sigmoid()) > 1).all()
        layer(torch.ones(3, 2, 50))


def test_a_network_with_a_value_for_each_channel_learns() -> None:
    torch.manual_seed(0)
    x, target = torch.rand(8, 4, 6, 5, 5), torch.rand(4, 6)
    layer = nn.LIF(learn_tau=True, learn_v_threshold=True, channels=6, surrogate=surrogate.ATan())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        nn.reset(layer)
        loss = (layer(x).mean((0, 3, 4)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert layer.decay_logit.unique().numel() == 6


@each_neuron
def test_a_tensor_is_a_buffer_or_where_learning_starts(neuron: str) -> None:
    x = noise((6, 2, 3, 4, 5), torch.float32, 0, scale=calm(neuron, "hard"))
    for p in learnable(neuron):
        given = torch.full((3, 1, 1), start(p))
        fixed, learned = module(neuron)(**{p.name: given}), module(neuron)(**{p.name: given, f"learn_{p.name}": True})
        assert p.value_key in dict(fixed.named_buffers()) and p.weight_key in dict(learned.named_parameters())
        assert getattr(learned, p.weight_key).shape == (3, 1, 1)
        assert torch.equal(fixed(x), module(neuron)(**{p.name: start(p)})(x))
        learned(x)


@each_neuron
def test_scripted_and_loaded(neuron: str) -> None:
    x = noise((6, 2, 3, 4, 5), torch.float32, 0, scale=calm(neuron, "hard"))
    names = [f"learn_{p.name}" for p in learnable(neuron)]
    arguments = {**dict.fromkeys(names, True), **{p.name: start(p) for p in learnable(neuron)}, "channels": 3}
    layer = module(neuron)(**arguments)
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), stream)
    loaded = torch.jit.load(io.BytesIO(stream.getvalue()))
    assert torch.equal(loaded(x), layer(x))
    state = layer.state_dict()
    fresh = module(neuron)(**arguments)
    fresh.load_state_dict(state)
    assert len(state) == len(names) + len(neuron_class(neuron).learned)


def test_errors() -> None:
    with pytest.raises(ValueError, match="LIF: channels must be a positive integer or None, got 0"):
        nn.LIF(channels=0)
    with pytest.raises(ValueError, match="LIF: learn_v_reset needs a value of v_reset to start from, got None"):
        nn.LIF(v_reset=None, learn_v_reset=True)
    with pytest.raises(ValueError, match=r"LIF: each value of tau must be a finite number >= 1 or inf, got 0\.5"):
        nn.LIF(tau=torch.tensor([2.0, 0.5]))
    with pytest.raises(TypeError, match=r"LIF: tau must be a tensor of floating-point values, got torch\.int64"):
        nn.LIF(tau=torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"channels=3, but x_seq \[T, N, C, ...\] has shape \[5, 2, 4\]"):
        nn.LIF(learn_tau=True, channels=3)(torch.ones(5, 2, 4))
    with pytest.raises(
        ValueError, match=r"LIF: v_min must be one value or have shape \[3\] for channels=3, got shape \[4\]"
    ):
        nn.LIF(v_min=torch.zeros(4), learn_v_min=True, channels=3)
    with pytest.raises(
        ValueError, match=r"LIF: channels=3 needs a number that has a value for each channel: learn_tau=True"
    ):
        nn.LIF(channels=3)
