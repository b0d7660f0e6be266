"""The modules: state between calls, reset, copies, devices and dtypes, state_dict, arguments."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import pytest
import torch

import snnkern
from snnkern import functional, nn, surrogate
from snnkern.codegen.specification.neurons import NEURONS

from support import noise

MODULES = [getattr(nn, n.module) for n in NEURONS]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)


def test_a_module_is_its_function(device: str) -> None:
    x = noise((6, 5), torch.float32, 0, device, 2.0)
    options: dict[str, Any] = {"v_threshold": 0.7, "v_reset": None, "surrogate": surrogate.ATan(), "detach_reset": True}
    assert torch.equal(nn.IF(**options)(x), functional.if_(x, **options)[0])
    assert torch.equal(nn.LIF(3.0, False, **options)(x), functional.lif(x, tau=3.0, decay_input=False, **options)[0])
    plif = nn.ParametricLIF(4.0, **options).to(device)
    assert torch.equal(plif(x), functional.plif(x, plif.w.sigmoid(), **options)[0])


@each_module
def test_state_is_kept_until_reset(module: Any, device: str) -> None:
    x = noise((8, 5), torch.float32, 0, device, 2.0)
    whole, neuron = module().to(device), module().to(device)
    assert neuron.v is None
    expected = whole(x)
    assert torch.equal(torch.cat([neuron(x[:3]), neuron(x[3:])]), expected)
    assert torch.equal(neuron.v, whole.v)
    neuron.reset()
    assert neuron.v is None
    assert torch.equal(neuron(x), expected)


@each_module
def test_another_batch_size_needs_a_reset(module: Any) -> None:
    neuron = module()
    neuron(torch.zeros(2, 3, 4))
    with pytest.raises(
        RuntimeError, match=re.escape("the kept state has shape [3, 4], but x_seq[0] has shape [5, 4]: call reset()")
    ):
        neuron(torch.zeros(2, 5, 4))
    neuron.reset()
    assert neuron(torch.zeros(2, 5, 4)).shape == (2, 5, 4)


@each_module
def test_detach_cuts_the_gradient_and_keeps_the_state(module: Any) -> None:
    neuron = module(store_v_seq=True)
    x = noise((4, 5), torch.float32, 0).requires_grad_()
    neuron(x)
    assert neuron.v.requires_grad and neuron.v_seq.requires_grad
    before = neuron.v.clone()
    neuron.detach()
    assert not neuron.v.requires_grad and not neuron.v_seq.requires_grad
    assert torch.equal(neuron.v, before)


@each_module
def test_store_v_seq(module: Any) -> None:
    x = noise((6, 5), torch.float32, 0, scale=2.0)
    plain, storing = module(), module(store_v_seq=True)
    assert torch.equal(plain(x), storing(x))
    assert plain.v_seq is None and storing.v_seq.shape == x.shape
    assert torch.equal(storing.v_seq[-1], storing.v) and torch.equal(storing.v, plain.v)


@each_module
def test_state_dict_round_trip(module: Any) -> None:
    neuron, other = module(), module()
    neuron(torch.ones(3, 2))
    state = neuron.state_dict()
    assert "v" not in state
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(neuron.parameters(), other.parameters(), strict=True))
    assert torch.equal(other(torch.ones(3, 2)), module()(torch.ones(3, 2)))


def test_a_scalar_weight_of_another_library_loads() -> None:
    net = torch.nn.Sequential(nn.ParametricLIF())
    net.load_state_dict({"0.w": torch.tensor(0.25)})
    assert net[0].w.shape == (1,) and net[0].w.item() == 0.25


@each_module
def test_copy_and_pickle_keep_values_and_drop_the_graph(module: Any) -> None:
    neuron = module()
    x = noise((4, 5), torch.float32, 0).requires_grad_()
    neuron(x)
    for other in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(other.v, neuron.v) and not other.v.requires_grad
        assert torch.equal(other(x), copy.deepcopy(neuron)(x))


@each_module
def test_double_modules(module: Any, device: str) -> None:
    neuron = module().to(device).double()
    assert neuron(torch.ones(2, 3, dtype=torch.float64, device=device)).dtype == torch.float64
    assert neuron.v.dtype == torch.float64


@pytest.mark.gpu
@each_module
def test_state_moves_with_the_module(module: Any) -> None:
    neuron = module().cuda()
    neuron(torch.ones(2, 3, device="cuda"))
    neuron.cpu()
    assert neuron.v.device.type == "cpu"
    neuron(torch.ones(2, 3))


def test_reset_of_a_network() -> None:
    net = torch.nn.Sequential(nn.LIF(), torch.nn.Sequential(nn.IF()))
    net(torch.ones(2, 3))
    nn.reset(net)
    assert net[0].v is None and net[1][0].v is None


def test_detach_of_a_network_of_networks() -> None:
    modules = [nn.LIF(), nn.IF(), nn.ParametricLIF()]
    nets = [modules[0], {"a": torch.nn.Sequential(modules[1])}, (modules[2],)]
    for m in modules:
        m(torch.ones(2, 3, requires_grad=True))
    nn.detach(nets)
    assert all(m.v is not None and not m.v.requires_grad for m in modules)
    nn.reset(nets)
    assert all(m.v is None for m in modules)


@pytest.mark.parametrize("change", [nn.reset, nn.detach])
def test_what_is_no_network_is_named(change: Any) -> None:
    message = (
        f"snnkern.nn.{change.__name__}: net must be a torch.nn.Module, or a list, tuple or dict of such, got function"
    )
    for net in (lambda x: x, [torch.nn.Linear(2, 2), lambda x: x]):
        with pytest.raises(TypeError, match=re.escape(message)):
            change(net)
    change(torch.nn.Linear(2, 2))


def test_a_replica_of_data_parallel_says_that_it_keeps_no_state() -> None:
    net = torch.nn.Sequential(nn.LIF())  # without parameters, replicas need no device
    with pytest.warns(UserWarning, match="DataParallel keeps no state, each of its calls starts afresh"):
        replicas = torch.nn.parallel.replicate(net, [0, 1])
    for replica in replicas:
        replica(torch.ones(2, 3))
        assert replica[0].v is not None and net[0].v is None
    nn.detach(replicas)
    nn.reset(replicas)
    assert all(replica[0].v is None for replica in replicas)
    net(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match=r"DataParallel cannot keep the state of this module: call reset\(\) before"):
        torch.nn.parallel.replicate(net, [0, 1])


def test_learned_decay_starts_at_one_over_tau_and_learns() -> None:
    neuron = nn.ParametricLIF(init_tau=4.0)
    assert neuron.w.item() == pytest.approx(-math.log(3.0))
    assert neuron.w.sigmoid().item() == pytest.approx(0.25)
    neuron(noise((10, 20), torch.float32, 0, scale=2.0)).sum().backward()
    assert neuron.w.grad is not None and neuron.w.grad.abs() > 0


def test_arguments_are_checked_by_name() -> None:
    for make, message in (
        (lambda: nn.LIF(tau=0.5), "snnkern.nn.LIF: tau must be a finite number >= 1 or inf, got 0.5"),
        (lambda: nn.LIF(tau=True), "snnkern.nn.LIF: tau must be a number or a tensor, got True"),
        (lambda: nn.LIF(decay_input="no"), "snnkern.nn.LIF: decay_input must be True or False, got 'no'"),  # type: ignore[arg-type]
        (
            lambda: nn.ParametricLIF(init_tau=0.5),
            "snnkern.nn.ParametricLIF: init_tau must be a finite number > 1, got 0.5",
        ),
        (lambda: nn.IF(v_threshold=math.nan), "snnkern.nn.IF: v_threshold must be a finite number or inf, got nan"),
        (lambda: nn.IF(v_reset="0"), "snnkern.nn.IF: v_reset must be a number, a tensor or None, got '0'"),  # type: ignore[arg-type]
        (lambda: nn.IF(surrogate="atan"), "snnkern.nn.IF: surrogate must be a surrogate of snnkern.surrogate, such as"),  # type: ignore[arg-type]
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            make()


def test_repr_shows_the_arguments() -> None:
    text = repr(nn.LIF(tau=3.0, v_reset=None, surrogate=surrogate.ATan(4.0)))
    assert "tau=3.0" in text and "v_reset=None" in text and "ATan(" in text and "alpha=4.0" in text
    assert "decay_input=True" in repr(nn.ParametricLIF())


def test_public_names() -> None:
    for n in NEURONS:
        assert getattr(nn, n.module).__doc__ and n.source in getattr(nn, n.module).__doc__
        name = "if_" if n.name == "if" else n.name
        doc = getattr(functional, name).__doc__
        assert all(word in doc for word in ("x_seq", "v_init", "Returns:", "Raises:", n.source, *n.equations))
        assert f"snnkern.functional.{name}" in getattr(snnkern.reference, name).__doc__
