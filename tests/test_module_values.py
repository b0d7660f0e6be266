"""A layer shows what it computes: attributes give the value in use and take a new one; print, state_dict and v_init."""

from __future__ import annotations

import copy
import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from snnkern import functional, nn, surrogate
from snnkern.codegen.specification.neurons import NEURONS, Float

from support import NEURON_NAMES, calm, function, neuron_class, noise

each_neuron = pytest.mark.parametrize("neuron", NEURON_NAMES)
STEP = (2, 3, 4)  # [N, C, L]


def module(neuron: str) -> Any:
    return getattr(nn, neuron_class(neuron).module)


def parameters(neuron: str) -> list[Float]:
    return list(neuron_class(neuron).numbers())


def another(p: Float) -> float:
    """A legal value that is not the default, and not at a limit."""
    if p.default is None:
        return -0.5
    value = p.default + (1.0 if p.range.integer else 0.25)
    return value if p.range.holds(value) else p.default - 0.25


def x_of(neuron: str, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return noise((6, *STEP), dtype, 3, device, calm(neuron, "hard"))


def expected(neuron: str, layer: Any, x: Tensor, **given: Any) -> Tensor:
    """What the function computes with these values, and else with the defaults."""
    learned = [1 / layer.tau.reshape(-1, 1) for _ in neuron_class(neuron).learned]
    out: Tensor = function(functional, neuron)(x, *learned, **given)[0]
    return out


@each_neuron
def test_a_number_that_is_assigned_is_used_from_the_next_call_on(neuron: str, device: str) -> None:
    """Whatever it was before: a number, a tensor, learned, or a parameter of the user's."""
    x = x_of(neuron, device)
    for p in parameters(neuron):
        start = p.number if math.isfinite(p.number) else -1.0
        forms: list[dict[str, Any]] = [
            {},
            {p.name: torch.tensor(start)},
            {p.name: torch.nn.Parameter(torch.tensor(start))},
        ]
        if not p.range.integer:
            forms.append({p.name: another(p), f"learn_{p.name}": True})
        for form in forms:
            layer = module(neuron)(**form).to(device).double()
            layer(x)
            layer.reset()
            kind = type(getattr(layer, p.name))
            setattr(layer, p.name, another(p))
            assert float(torch.as_tensor(getattr(layer, p.name)).detach()) == pytest.approx(another(p), rel=1e-6)
            assert isinstance(getattr(layer, p.name), Tensor) == issubclass(kind, Tensor)
            used = getattr(layer, p.name)
            assert torch.equal(layer(x), expected(neuron, layer, x, **{p.name: used})), (p.name, form)


@each_neuron
def test_a_tensor_that_is_assigned_is_used(neuron: str, device: str) -> None:
    x = x_of(neuron, device)
    for p in parameters(neuron):
        layer = module(neuron)().to(device).double()
        given = torch.full((3, 1), another(p), dtype=torch.float64, device=device)
        setattr(layer, p.name, given)
        assert torch.equal(getattr(layer, p.name), given)
        given += 100  # the layer has its own
        assert torch.equal(layer(x), expected(neuron, layer, x, **{p.name: another(p)}))


@each_neuron
def test_a_parameter_of_the_users_is_used_as_it_is(neuron: str, device: str) -> None:
    x = x_of(neuron, device)
    names = [p.name for p in parameters(neuron)] + [t.argument.name for t in neuron_class(neuron).learned]
    for name in names:
        value = next((another(p) for p in parameters(neuron) if p.name == name), 2.5)
        for assign in (False, True):
            own = torch.nn.Parameter(torch.full((3, 1), value, dtype=torch.float64, device=device))
            layer = module(neuron)() if assign else module(neuron)(**{name: own})
            if assign:
                setattr(layer, name, own)
            assert getattr(layer, name) is own and any(q is own for q in layer.parameters())
            net = torch.nn.Sequential(layer.to(device).double())
            out = net(x)
            (out.sum() + sum(getattr(layer, s.name).sum() for s in neuron_class(neuron).states)).backward()
            assert own.grad is not None and own.grad.shape == own.shape
            with torch.no_grad():
                own += 1.0 if value == int(value) else 0.125  # what is an integer stays one
            layer.reset()
            if name in {p.name for p in parameters(neuron)}:
                assert torch.equal(net(x), expected(neuron, layer, x, **{name: own}))
            assert f"{name.removeprefix('init_')}=" in repr(layer) and "learned" in repr(layer)


def test_a_tensor_that_wants_a_gradient_is_used_as_it_is(device: str) -> None:
    """As that of a network which makes the parameters of another."""
    source = torch.tensor([2.0, 3.0, 4.0], device=device, requires_grad=True)
    layer = nn.LIF(tau=source * 1.5, channels=3).to(device)
    layer(noise((4, 2, 3), torch.float32, 0, device))
    layer.v.sum().backward()
    assert source.grad is not None and source.grad.abs().min() > 0
    assert torch.equal(copy.deepcopy(layer).tau, layer.tau)


@each_neuron
def test_what_is_learned_shows_its_present_value(neuron: str) -> None:
    layer = module(neuron)(
        **{
            f"learn_{p.name}": True
            for p in parameters(neuron)
            if p.default is not None and not p.range.integer and p.range.holds(p.default) and p.default != p.range.low
        }
    )
    for name, q in layer.named_parameters():
        with torch.no_grad():
            q.fill_(0.625)
        found = [p for p in parameters(neuron) if p.weight_key == name]
        if not found:
            assert name == "w" and layer.tau.item() == pytest.approx(1 + math.exp(-0.625)) and "tau=1.53" in repr(layer)
            continue
        (p,) = found
        value = {"sigmoid": 1 / (1 + math.exp(-0.625)), "exp": math.exp(0.625), "identity": 0.625}[
            p.tensor_range.transform
        ]
        value = 1 / value if p.inverse else value
        assert getattr(layer, p.name).item() == pytest.approx(value, rel=1e-6)
        assert f"{p.name}={value:.5g} (learned)" in repr(layer)
        assert getattr(layer, p.name).requires_grad and getattr(layer, f"learn_{p.name}") is True


def test_print() -> None:
    assert "tau=3.0, " in repr(nn.LIF(tau=3))
    assert "tau=2 (learned), " in repr(nn.ParametricLIF())
    assert "tau=2 (learned, [8]), " in repr(nn.LIF(learn_tau=True, channels=8)) and "channels=8" in repr(
        nn.LIF(learn_tau=True, channels=8)
    )
    assert "tau=2 to 5 (a tensor, [2]), " in repr(nn.LIF(tau=torch.tensor([2.0, 5.0])))
    assert "v_init=0.5" in repr(nn.LIF(v_init=0.5)) and "v_init" not in repr(nn.LIF())
    layer = nn.LIF()
    layer.surrogate = surrogate.ATan(3.0)
    assert "surrogate=ATan(" in repr(layer)
    assert "v_threshold=..." in repr(nn.LIF(v_threshold=torch.ones(3)).to("meta"))


def test_a_surrogate_that_is_assigned_is_used() -> None:
    layer, x = nn.LIF(), noise((6, 5), torch.float64, 0).requires_grad_()
    for used in (
        surrogate.ATan(3.0),
        surrogate.ATan(4.0),
        surrogate.Sigmoid(spiking=False),
        surrogate.StraightThrough(),
    ):
        layer.surrogate = used
        layer.reset()
        assert layer.surrogate is used
        (grad,) = torch.autograd.grad(layer(x).sum(), x)
        (wanted,) = torch.autograd.grad(functional.lif(x, surrogate=used)[0].sum(), x)
        assert torch.equal(grad, wanted)


def test_values_that_cannot_be_assigned_say_so() -> None:
    layer = nn.LIF(learn_tau=True, channels=3)
    for name, value, error, message in (
        ("tau", 0.5, ValueError, "snnkern.nn.LIF: tau must be a finite number >= 1 or inf, got 0.5"),
        ("tau", "2", TypeError, "snnkern.nn.LIF: tau must be a number or a tensor, got '2'"),
        ("tau", True, TypeError, "snnkern.nn.LIF: tau must be a number or a tensor, got True"),
        ("tau", None, TypeError, "snnkern.nn.LIF: tau must be a number or a tensor, got None"),
        ("tau", 1.0, ValueError, "snnkern.nn.LIF: tau is learned, and must be within its limits, not at one, got 1.0"),
        ("tau", torch.full((2,), 3.0), ValueError, "snnkern.nn.LIF: tau is learned with shape [3], got shape [2]"),
        (
            "tau",
            torch.full((3,), 3.0, requires_grad=True),
            TypeError,
            "a tensor without a gradient, or a torch.nn.Parameter",
        ),
        ("surrogate", "atan", TypeError, "snnkern.nn.LIF: surrogate must be a surrogate of snnkern.surrogate, such as"),
        (
            "channels",
            4,
            AttributeError,
            "snnkern.nn.LIF: channels is settled when the layer is made: snnkern.nn.LIF(channels=4)",
        ),
        (
            "learn_tau",
            False,
            AttributeError,
            "learn_tau is settled when the layer is made: snnkern.nn.LIF(learn_tau=False)",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            setattr(layer, name, value)
    assert torch.allclose(layer.tau, torch.full((3,), 2.0))  # as it was
    learned = nn.LIF(learn_v_reset=True)
    with pytest.raises(ValueError, match="v_reset is learned, and cannot become None"):
        learned.v_reset = None


def test_numpy_numbers() -> None:
    x = noise((6, 5), torch.float32, 0)
    layer = nn.ILIF(tau=np.float32(3.0), v_threshold=np.float64(0.5), max_spike_count=np.int64(3))
    assert torch.equal(layer(x), functional.ilif(x, tau=3.0, v_threshold=0.5, max_spike_count=3.0)[0])
    assert layer.tau == 3.0 and type(layer.tau) is float


# ---- state_dict


@each_neuron
def test_a_key_has_one_meaning(neuron: str) -> None:
    """Fixed into learned and back gives the same value, and no key contains weight or bias."""
    for p in parameters(neuron):
        if p.range.integer:
            continue
        for shape, options in (((), {}), ((3,), {"channels": 3}), ((3, 1), {"channels": 3})):
            values = torch.full(shape, another(p)) * (1 + 0.01 * torch.arange(3.0).reshape(shape) if shape else 1)
            others = (
                options if shape == (3,) or neuron_class(neuron).learned else {}
            )  # what else is learned has one shape
            fixed = module(neuron)(**{p.name: values}, **others)
            learned = module(neuron)(**{p.name: another(p), f"learn_{p.name}": True}, **options)
            back = module(neuron)(**{p.name: torch.full_like(values, another(p))}, **others)
            saved = fixed.state_dict()
            learned.load_state_dict(saved)
            torch.testing.assert_close(getattr(learned, p.name).reshape(shape), values)
            back.load_state_dict(learned.state_dict())
            torch.testing.assert_close(getattr(back, p.name), values)
            assert saved.keys() == fixed.state_dict().keys()  # loading changes no state_dict
            assert not any("weight" in key or "bias" in key for key in (*saved, *learned.state_dict()))


def test_parametric_lif_and_learned_lif_load_each_other() -> None:
    one, two, fixed = nn.ParametricLIF(3.0), nn.LIF(learn_tau=True), nn.LIF(tau=torch.tensor(7.0))
    assert list(one.state_dict()) == ["w"]
    one.load_state_dict(fixed.state_dict())
    assert one.tau.item() == pytest.approx(7.0)
    fixed.load_state_dict(two.state_dict())
    assert fixed.tau.item() == pytest.approx(2.0)


def test_older_files_load() -> None:
    """They had `tau_weight` for both: the decay of a fixed tau, and the logit of a learned one."""
    learned = nn.LIF(learn_tau=True, learn_v_threshold=True)
    learned.load_state_dict({"tau_weight": torch.tensor([-1.0]), "v_threshold_weight": torch.tensor([0.5])})
    assert learned.decay_logit.item() == -1.0 and learned.v_threshold.item() == 0.5
    fixed = nn.LIF(tau=torch.ones(3), v_threshold=torch.ones(3))
    fixed.load_state_dict({"tau_weight": torch.full((3,), 0.25), "v_threshold_weight": torch.full((3,), 0.5)})
    assert fixed.tau.tolist() == [4.0] * 3 and fixed.v_threshold.tolist() == [0.5] * 3


def test_a_key_that_a_layer_has_no_place_for_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Unexpected key.*tau_value"):
        nn.LIF().load_state_dict(nn.LIF(tau=torch.tensor(3.0)).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for decay_logit"):
        nn.LIF(learn_tau=True, channels=3).load_state_dict(nn.LIF(tau=torch.full((4,), 2.0)).state_dict())


# ---- v_init


@each_neuron
def test_the_state_to_which_reset_goes_back(neuron: str, device: str) -> None:
    x = x_of(neuron, device)
    for s in neuron_class(neuron).states:
        values = noise((3, 1), torch.float64, 5, device, 0.25)
        own = torch.nn.Parameter(values.clone())
        for given, options in (
            (0.25, {}),
            (values, {}),
            (values[:, 0], {"channels": 3}),
            (own, {}),
            (values[:, 0], {"channels": 3, f"learn_{s.name}_init": True}),
        ):
            layer = module(neuron)(**{f"{s.name}_init": given}, **options).to(device).double()
            start = (
                torch.full((3, 1), given, dtype=torch.float64, device=device) if isinstance(given, float) else values
            )
            if options.get(f"learn_{s.name}_init"):
                start = start.float().double()
            wanted = expected(neuron, layer, x, **{f"{s.name}_init": start.expand(STEP)})
            for _ in range(2):
                assert torch.equal(layer(x), wanted)
                layer.reset()
            if f"{s.name}_init_value" in dict(layer.named_parameters()):
                layer(x)
                getattr(layer, s.name).sum().backward()
                assert getattr(layer, f"{s.name}_init_value").grad is not None


@each_neuron
def test_a_number_sets_a_state(neuron: str, device: str) -> None:
    x = x_of(neuron, device)
    for s in neuron_class(neuron).states:
        layer = module(neuron)().to(device).double()
        setattr(layer, s.name, 0.5)
        layer.detach()
        copied = copy.deepcopy(layer)
        wanted = expected(
            neuron, layer, x, **{f"{s.name}_init": torch.full(STEP, 0.5, dtype=torch.float64, device=device)}
        )
        assert torch.equal(layer(x), wanted) and torch.equal(copied(x), wanted)
        assert getattr(layer, s.name).shape == STEP


def test_a_state_of_half_precision_input_is_not_rounded(device: str) -> None:
    layer = nn.IF(v_init=0.1)
    layer(torch.zeros(2, 3, dtype=torch.bfloat16, device=device))
    assert layer.v.dtype == torch.float32 and torch.equal(layer.v, torch.full((3,), 0.1, device=device))


# ---- torch.compile


def test_values_that_change_do_not_compile_again(device: str, fresh_dynamo: None) -> None:
    """An annealed surrogate, a threshold and a time constant that change, and where the potential starts: once more, then never."""
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 6), nn.LIF(surrogate=surrogate.ATan()), torch.nn.Linear(6, 4), nn.ParametricLIF()
    ).to(device)
    x = noise((4, 3, 5), torch.float32, 0, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)

    def run(f: Any) -> tuple[Tensor, list[Tensor]]:
        nn.reset(net)
        net.zero_grad()
        out = f(x)
        out.sum().backward()
        return out.detach(), [p.grad.clone() for p in net.parameters()]

    for epoch in range(12):
        net[1].surrogate = surrogate.ATan(alpha=2.0 + epoch)
        net[1].tau, net[1].v_threshold, net[1].v_reset, net[1].v_init = (
            2.0 + epoch,
            0.1 + 0.02 * epoch,
            -0.01 * epoch,
            0.02 * epoch,
        )
        net[3].surrogate = surrogate.Sigmoid(alpha=1.0 + epoch)
        net[3].tau = 2.0 + epoch
        out, grads = run(compiled)
        expected_out, expected_grads = run(net)
        assert torch.equal(out, expected_out)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, b)
        if epoch == 2:
            settled = counter.frame_count
    assert counter.frame_count == settled


def test_parameters_of_a_surrogate_as_tensors() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    run = torch.ops.snnkern.if_forward
    three = torch.tensor(3.0, dtype=torch.float64)
    for name, given, message in (
        (
            "surrogate_param0_tensor",
            three.float(),
            "surrogate_param0_tensor must be 0-dim float64, got 0 dimensions of",
        ),
        (
            "surrogate_param0_tensor",
            three.reshape(1),
            "surrogate_param0_tensor must be 0-dim float64, got 1 dimensions",
        ),
        ("surrogate_param0_tensor", -three, "surrogate_param0_tensor: alpha of surrogate 'atan' must be"),
        (
            "surrogate_param1_tensor",
            three,
            "surrogate_param1_tensor must be None for surrogate 'atan', which has 1 par",
        ),
    ):
        with pytest.raises((RuntimeError, ValueError), match=re.escape(message)):
            run(x, surrogate="atan", **{name: given})
    for used in (surrogate.ATan(3.0), surrogate.Gaussian(0.7, 1.5)):
        tensors = {
            f"surrogate_param{i}_tensor": torch.tensor(p, dtype=torch.float64) for i, p in enumerate(used.params)
        }
        got, wanted = (
            run(x, surrogate=used.name, **given)[0] for given in (tensors, {"surrogate_params": used.params})
        )
        assert torch.equal(*(torch.autograd.grad(out.sum(), x)[0] for out in (got, wanted)))
    out = run(x, surrogate="atan", surrogate_param0_tensor=three)[0]
    three += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_every_argument_is_an_attribute() -> None:
    for n in NEURONS:
        layer = getattr(nn, n.module)()
        for name, p in inspect.signature(type(layer)).parameters.items():
            value = getattr(layer, name)
            if isinstance(value, Tensor):
                assert value.item() == pytest.approx(p.default)
            else:
                assert value == p.default, name
