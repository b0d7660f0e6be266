"""snnkern.convert: networks of SpikingJelly, snnTorch, Norse and Sinabs give the same outputs and gradients as before.

What belongs to a library that is not installed is skipped; `pip install .[peers]` installs all of them.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnkern
from snnkern.compat.spikingjelly._fused import Fused

from support import double_precision, error, fresh_process, library, noise

EXACT = 1e-9  # relative, in float64
T, N, C = 12, 3, 8
Run = Callable[[nn.Module, Tensor], Tensor]


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    with double_precision():
        torch.manual_seed(0)
        yield


def results(net: nn.Module, run: Run, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients in the input and in all parameters."""
    x = x.clone().requires_grad_()
    out = run(net, x)
    net.zero_grad()
    (out * noise(tuple(out.shape), out.dtype, 100)).sum().backward()
    found = {"output": out.detach(), "input": x.grad}
    # A parameter without a gradient, as of a fixed threshold, has none in either.
    return found | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_same(net: nn.Module, run: Run, x: Tensor | None = None, **options: Any) -> nn.Module:
    """Converts, and compares two passes, the second from the state that the first has left."""
    x = 2 * noise((T, N, C), torch.float64, 1) if x is None else x
    converted = snnkern.convert(net, **options)
    assert list(converted.state_dict()) == list(net.state_dict())
    assert all(not isinstance(m, snnkern.compat.convert.Converted) for m in net.modules())  # it was a copy
    for _ in range(2):
        expected, found = results(net, run, x), results(converted, run, x)
        assert (expected["output"] != 0).double().mean() > 0.01
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert error(found[name], value) <= EXACT, name
        detach(net), detach(converted)
    return converted


def detach(net: nn.Module) -> None:
    """Cuts the graph of the states that a library keeps."""
    for module in net.modules():
        for kept in (module._buffers, vars(module).get("_memories", {})):
            for name, value in kept.items():
                if isinstance(value, Tensor):
                    kept[name] = value.detach()


# ---- SpikingJelly -------------------------------------------------------------------------------------------------------


def sequence(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


def spikingjelly() -> Any:
    library("spikingjelly.activation_based.layer")
    import spikingjelly.activation_based as found

    return found


def step_net(node: Callable[[], nn.Module], mode: str = "m") -> nn.Module:
    """Two layers of a neuron, the first behind a norm, in SpikingJelly's layers."""
    layer, functional = spikingjelly().layer, library("spikingjelly.activation_based.functional")
    net = nn.Sequential(layer.Linear(C, 10), layer.BatchNorm1d(10), node(), layer.Linear(10, 6), node())
    nn.init.uniform_(net[3].weight, -1, 3)  # spikes enough
    nn.init.constant_(net[1].weight, 2)
    functional.set_step_mode(net, mode)
    return net


def single_steps(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([net(step) for step in x])


FIRING = [
    {"v_threshold": 0.4, "v_reset": v_reset, "detach_reset": detach}
    for v_reset in (-0.25, None)
    for detach in (False, True)
]
NODES = [
    *(("IFNode", {}), ("LIFNode", {"tau": 3.0}), ("LIFNode", {"decay_input": False}), ("ParametricLIFNode", {})),
    *(("KLIFNode", {}), ("KLIFNode", {"scale_reset": True, "decay_input": False}), ("SimpleIFNode", {})),
]


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("firing", FIRING)
@pytest.mark.parametrize(("name", "arguments"), NODES)
def test_a_network_of_spikingjelly(name: str, arguments: dict[str, Any], firing: dict[str, Any], mode: str) -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    atan = library("spikingjelly.activation_based.surrogate").ATan(3.0)
    net = step_net(lambda: getattr(neuron, name)(**arguments, **firing, surrogate_function=atan), mode)
    converted = assert_same(net, single_steps if mode == "s" else sequence)
    assert f"snnkern.{name}(" in str(converted)


OTHERS = {
    "QIFNode": {"v_c": 0.75},
    "EIFNode": {"theta_rh": 0.75},
    "IzhikevichNode": {"a": 0.25, "b": 0.5, "w_rest": 0.125},
    "ILIFNode": {"tau": 1.5},
    "ComplementaryLIFNode": {"tau": 3.0},
    "CUBALIFNode": {"c_decay": 0.25, "v_threshold": 0.5},
    "SimpleLIFNode": {"tau": 2.0, "decay_input": True, "v_reset": -0.25},
    "HalfThresholdIFNode": {"v_threshold": 0.75},
    "TernaryLIFNode": {"v_threshold": 0.5, "v_reset": None},
}


def test_ternary_spikes_of_spikingjelly() -> None:
    made = library("spikingjelly.activation_based.neuron").TernaryLIFNode
    assert_same(step_net(lambda: made(v_threshold=0.5, v_reset=0.125, detach_reset=True)), sequence)
    with pytest.raises(ValueError, match="the gradient of its hard reset is another; nearest: detach_reset=True"):
        snnkern.convert(made())


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_neurons_of_spikingjelly(name: str, mode: str) -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    net = step_net(lambda: getattr(neuron, name)(**OTHERS[name]), mode)
    assert_same(net, single_steps if mode == "s" else sequence)


@pytest.mark.parametrize("spiking", [True, False])
def test_every_surrogate_of_spikingjelly(spiking: bool) -> None:
    theirs = library("spikingjelly.activation_based.surrogate")
    neuron = library("spikingjelly.activation_based.neuron")
    from snnkern.compat.spikingjelly._fused import SURROGATES

    for name in [*snnkern.surrogate.__all__, *SURROGATES]:
        if not hasattr(theirs, name):
            continue
        function = getattr(theirs, name)()
        function.spiking = spiking
        net = step_net(lambda function=function: neuron.LIFNode(surrogate_function=function))
        smooth = name != "S2NN" and getattr(snnkern.surrogate, SURROGATES.get(name, name)).equations.has_primitive()
        if spiking or smooth:
            assert_same(net, sequence)
        else:
            with pytest.raises(ValueError, match=r"spiking=True|spiking must be True"):
                snnkern.convert(net)


def test_spikingjellys_functions_work_on_a_converted_network() -> None:
    functional = library("spikingjelly.activation_based.functional")
    neuron = library("spikingjelly.activation_based.neuron")
    net = snnkern.convert(step_net(lambda: neuron.LIFNode(store_v_seq=True)))
    lif, x = net[2], noise((T, N, C), torch.float64, 1)
    assert lif.v == 0.0
    first = net(x)
    assert lif.v_seq.shape == (T, N, 10)
    assert torch.equal(lif.v_seq[-1], lif.v)
    assert not torch.equal(net(x), first)
    functional.reset_net(net)
    assert lif.v == 0.0
    assert lif.v_seq is None
    functional.set_step_mode(net, "s")
    net.eval()(x[0])
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    net.train()
    assert torch.equal(net(x), first)
    net(x[:, :1])  # another batch size starts afresh, as theirs
    net(x[:, :1]).sum()
    functional.detach_net(net)
    assert lif.v.grad_fn is None


class Fed(nn.Module):
    """A recurrent layer of SpikingJelly behind a linear one."""

    def __init__(self, node: nn.Module, bias: bool, mode: str) -> None:
        super().__init__()
        self.fc = nn.Linear(C, 10)
        self.loop = library("spikingjelly.activation_based.layer").LinearRecurrentContainer(node, 10, 10, bias, mode)
        nn.init.uniform_(self.fc.weight, -1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(self.fc(x))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode", "CUBALIFNode", "ILIFNode"])
def test_a_recurrent_container_of_spikingjelly(name: str, bias: bool, mode: str, monkeypatch: Any) -> None:
    node = getattr(library("spikingjelly.activation_based.neuron"), name)(**OTHERS.get(name, {"v_threshold": 0.4}))
    calls: list[int] = []
    step = Fused.single_step_forward
    monkeypatch.setattr(Fused, "single_step_forward", lambda self, x: (calls.append(1), step(self, x))[1])
    converted = assert_same(Fed(node, bias, mode), single_steps if mode == "s" else sequence)
    assert bool(calls) == (mode == "s")  # a sequence is one operator
    x = noise((T, N, C), torch.float64, 1)
    library("spikingjelly.activation_based.functional").reset_net(converted)
    assert converted.loop.y is None
    first = converted(x) if mode == "m" else single_steps(converted, x)
    assert torch.equal(converted.loop.y, first[-1])
    snnkern.nn.reset(converted)
    assert torch.equal(converted(x) if mode == "m" else single_steps(converted, x), first)


def test_a_recurrent_container_of_spikingjelly_around_more_than_a_neuron() -> None:
    """Goes step by step as before; so does one whose neuron has a hook."""
    neuron = library("spikingjelly.activation_based.neuron")
    assert_same(Fed(nn.Sequential(nn.Linear(10, 10), neuron.LIFNode(v_threshold=0.4)), True, "m"), sequence)
    net = Fed(neuron.LIFNode(v_threshold=0.4), True, "m")
    seen: list[Tensor] = []
    net.loop.sub_module.register_forward_hook(lambda *given: seen.append(given[2]))
    converted = snnkern.convert(net)
    converted(noise((T, N, C), torch.float64, 1))
    assert len(seen) == T


def test_a_recurrent_container_of_spikingjelly_and_another_batch() -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    converted = snnkern.convert(Fed(neuron.LIFNode(v_threshold=0.4), True, "m"))
    converted(noise((T, N, C), torch.float64, 1))
    with pytest.raises(ValueError, match="reset_net"):
        converted(noise((T, N + 1, C), torch.float64, 1))


def test_a_single_neuron() -> None:
    x = 2 * noise((T,), torch.float64, 0)
    for mode, run in (("m", sequence), ("s", single_steps)):
        assert_same(library("spikingjelly.activation_based.neuron").LIFNode(step_mode=mode), run, x)
    snntorch = library("snntorch")
    assert_same(snntorch.Leaky(0.5, init_hidden=True), single_steps, x)


def test_attributes_may_change_afterwards() -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    surrogate = library("spikingjelly.activation_based.surrogate")
    # Their default surrogate is one object for all neurons.
    net = step_net(lambda: neuron.LIFNode(surrogate_function=surrogate.Sigmoid()))
    converted = snnkern.convert(net)
    for n in (net, converted):
        n[2].v_threshold, n[2].detach_reset, n[2].tau, n[2].v = 0.5, True, 4.0, 0.25
        n[2].surrogate_function.alpha = 2.0
        n[4].surrogate_function = surrogate.Erf()
    x = noise((T, N, C), torch.float64, 1)
    expected, found = results(net, sequence, x), results(converted, sequence, x)
    assert all(error(found[name], value) <= EXACT for name, value in expected.items())


# ---- snnTorch: single steps, in a loop of the user's ----------------------------------------------------------------------


class Loop(nn.Module):
    """Two neurons with their states passed from step to step, as snnTorch's tutorials write it."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(C, 10), first, nn.Linear(10, 6), second
        nn.init.uniform_(self.fc2.weight, -0.5, 1)

    def forward(self, x_seq: Tensor) -> Tensor:
        one: Any = ()
        two: Any = ()
        outputs = []
        for x in x_seq:
            spk, *one = self.lif1(2 * self.fc1(x), *one)
            one = (spk, *one) if hasattr(self.lif1, "spk") else one
            spk, *two = self.lif2(self.fc2(spk), *two)
            two = (spk, *two) if hasattr(self.lif2, "spk") else two
            outputs += [spk, two[-1]]
        return torch.stack(outputs)


SNNTORCH: dict[str, list[Any]] = {
    "Leaky": [0.75],
    "Lapicque": [0.75],
    "Synaptic": [0.5, 0.75],
    "Alpha": [0.75, 0.5],
    "RLeaky": [0.75],
    "RSynaptic": [0.5, 0.75],
}


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("name", SNNTORCH)
def test_a_network_of_snntorch(name: str, reset: str, delay: bool, learn: bool) -> None:
    snntorch = library("snntorch")
    options: dict[str, Any] = {"reset_mechanism": reset, "threshold": 0.5, "learn_threshold": learn}
    options["spike_grad"] = snntorch.surrogate.fast_sigmoid(10)
    if not delay:
        if name in ("Lapicque", "Alpha", "RSynaptic"):
            pytest.skip("it has no reset_delay")
        options["reset_delay"] = False
    if learn and name != "Lapicque":  # whose learn_beta has no effect
        options["learn_beta"] = True
        options |= {"learn_alpha": True} if "Synaptic" in name else {}
    if name == "Leaky" and learn:
        options |= {"graded_spikes_factor": 1.5, "learn_graded_spikes_factor": True}
    made = getattr(snntorch, name)
    recurrent = [{"linear_features": 10}, {"all_to_all": False, "V": 0.5}] if name.startswith("R") else [{}, {}]
    first, second = (made(*SNNTORCH[name], **options, **more) for more in recurrent)
    assert_same(Loop(first, second), sequence)


def test_hidden_states_of_snntorch_are_reset_by_its_own_function() -> None:
    snntorch = library("snntorch")
    from snntorch import utils

    net = nn.Sequential(
        *(nn.Linear(C, 10), snntorch.Leaky(0.75, init_hidden=True), nn.Linear(10, 6)),
        snntorch.Synaptic(0.5, 0.75, init_hidden=True, output=True),
    )

    def run(net: nn.Module, x: Tensor) -> Tensor:
        utils.reset(net)
        outputs = [net(3 * step) for step in x]
        return torch.stack([spk + mem for spk, _, mem in outputs])

    converted = assert_same(net, run)
    with pytest.raises(TypeError, match="init_hidden"):
        converted[1](noise((N, 10), torch.float64, 1), torch.zeros(N, 10))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_membrane_of_snntorch_that_forgets_all_or_nothing(beta: float) -> None:
    assert_same(Loop(*(library("snntorch").Leaky(beta) for _ in range(2))), sequence)


@pytest.mark.parametrize("maker", ["atan", "fast_sigmoid", "sigmoid", "straight_through_estimator"])
def test_surrogates_of_snntorch(maker: str) -> None:
    snntorch = library("snntorch")
    for arguments in [[], [3.0]] if maker != "straight_through_estimator" else [[]]:
        function = getattr(snntorch.surrogate, maker)(*arguments)
        assert_same(Loop(*(snntorch.Leaky(0.75, spike_grad=function) for _ in range(2))), sequence)


# ---- Norse: (x, state) -> (output, state) -------------------------------------------------------------------------------


def with_state(net: nn.Module, x: Tensor) -> Tensor:
    """Two halves, the second from the state after the first; the states count as outputs."""
    half = len(x) // 2
    first, state = net(x[:half])
    second, state = net(x[half:], state)
    return torch.cat([t.flatten() for t in (first, second, *tensors_of(state))])


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for part in state or () for t in tensors_of(part)]


def cell_steps(net: nn.Module, x: Tensor) -> Tensor:
    state, outputs = None, []
    for step in x:
        out, state = net(step, state)
        outputs.append(out)
    return torch.cat([t.flatten() for t in (*outputs, *tensors_of(state))])


def norse_parameters(kind: str, **values: Any) -> Any:
    if kind == "lif_refrac":
        refractory = library("norse.torch.functional.lif_refrac")
        return refractory.LIFRefracParameters(norse_parameters("lif", **values), torch.tensor(2.0))
    found = getattr(library(f"norse.torch.functional.{kind}"), {
        "lif": "LIFParameters", "lif_box": "LIFBoxParameters", "iaf": "IAFParameters",
        "leaky_integrator": "LIParameters", "leaky_integrator_box": "LIBoxParameters",
    }[kind])  # fmt: skip
    tensors = {k: torch.tensor(v) if isinstance(v, float) else v for k, v in values.items()}
    return found(**{k: v for k, v in tensors.items() if k in found._fields})


RATES = {"tau_mem_inv": 250.0, "tau_syn_inv": 500.0, "v_leak": -0.125, "v_th": 0.5, "v_reset": -0.25}
NORSE = [
    *(("LIF", "lif", {}), ("LIFCell", "lif", {}), ("LIFBoxCell", "lif_box", {}), ("IAF", "iaf", {})),
    *(("IAFCell", "iaf", {}), ("LI", "leaky_integrator", {}), ("LICell", "leaky_integrator", {})),
    *(("LIBoxCell", "leaky_integrator_box", {}), ("LILinearCell", "leaky_integrator", {"hidden_size": 6})),
    *(("LIFRecurrentCell", "lif", {"hidden_size": 6}), ("LIFRecurrent", "lif", {"hidden_size": 6})),
    *(("LIFRefracCell", "lif_refrac", {}), ("LIFRefracRecurrentCell", "lif_refrac", {"hidden_size": 6})),
    ("LIFRefracRecurrent", "lif_refrac", {"hidden_size": 6}),
]


@pytest.mark.parametrize("method", ["super", "triangle"])
@pytest.mark.parametrize(("name", "kind", "sizes"), NORSE, ids=[name for name, _, _ in NORSE])
def test_a_network_of_norse(name: str, kind: str, sizes: dict[str, int], method: str) -> None:
    norse = library("norse.torch")
    neurons = [
        getattr(norse, name)(
            *([size] if sizes else []), p=norse_parameters(kind, method=method, alpha=0.5, **RATES), **sizes
        )
        for size in (10, 6)
    ]
    net = norse.SequentialState(nn.Linear(C, 10), neurons[0], nn.Linear(*(6, 6) if sizes else (10, 6)), neurons[1])
    nn.init.uniform_(net[0].weight, -1, 3)
    nn.init.uniform_(net[2].weight, -1, 3)
    assert_same(net, cell_steps if name.endswith("Cell") else with_state)


@pytest.mark.parametrize("shape", [(), (6,), (N, 1)])
@pytest.mark.parametrize("record", [False, True])
def test_a_recurrent_layer_of_norse(record: bool, shape: tuple[int, ...], monkeypatch: Any) -> None:
    """One operator for the sequence, but where time constants differ between samples, whose weights cannot have them."""
    calls: list[int] = []
    function = snnkern.functional.recurrent_cuba
    monkeypatch.setattr(
        snnkern.functional, "recurrent_cuba", lambda *given, **named: (calls.append(1), function(*given, **named))[1]
    )
    p = norse_parameters("lif", **RATES)
    rate = torch.full(shape, 250.0) * (1 + torch.rand(shape))
    net = library("norse.torch").LIFRecurrent(C, 6, p=p._replace(tau_mem_inv=rate), record_states=record)
    nn.init.uniform_(net.input_weights, -1, 3)

    def run(net: nn.Module, x: Tensor) -> Tensor:
        spikes, state = net(2 * x)
        assert all(len(part) == T for part in state) or not record
        return torch.cat([t.flatten() for t in (spikes, *state)])

    assert_same(net, run)
    assert len(calls) == (2 if len(shape) < 2 else 0)
    if len(shape) < 2:  # without a batch, step by step
        assert_same(net, run, 2 * noise((T, C), torch.float64, 1))
        assert len(calls) == 2


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["LIF", "LIFCell", "LIFBoxCell", "IAF", "LI", "LICell"])
def test_the_types_of_norse(name: str, kind: torch.dtype) -> None:
    net, x = getattr(library("norse.torch"), name)(), noise((T, N, C), kind, 1)
    converted = snnkern.convert(net)
    theirs, state = net(x)
    ours, kept = converted(x)
    assert ours.dtype == theirs.dtype
    assert converted(x, kept)[0].dtype == net(x, state)[0].dtype


def test_parameters_of_norse_are_learned() -> None:
    p = norse_parameters("lif", **RATES)
    learned = {name: nn.Parameter(getattr(p, name)) for name in RATES}
    net = library("norse.torch").LIF(p=p)
    net.p = p._replace(**learned)
    for name, parameter in learned.items():
        net.register_parameter(name, parameter)
    x = 4 * noise((T, N, C), torch.float64, 1)
    state = net.initial_state(x)._replace(v=torch.zeros(N, C))  # that of Norse is float32, and so is its first gradient

    def backward() -> None:
        spikes, last = net(x, state)
        sum(t.sum() for t in (spikes, last.v, last.i)).backward()

    backward()
    expected = {name: parameter.grad.clone() for name, parameter in learned.items()}
    net.zero_grad()
    snnkern.convert(net, inplace=True)
    backward()
    assert all(error(learned[name].grad, gradient) <= EXACT for name, gradient in expected.items())


def test_layers_of_norse_stay() -> None:
    norse = library("norse.torch")
    conv = norse.Lift(nn.Conv2d(1, 4, 3))
    net = norse.SequentialState(conv, norse.LIF(), norse.Lift(nn.Flatten()), nn.Linear(32, 5), norse.LI())
    converted = assert_same(net, lambda net, x: net(8 * x)[0], noise((T, N, 1, 4, 6), torch.float64, 1))
    assert str(converted).count("snnkern.") == 2


def test_norses_soft_reset_and_recorded_states() -> None:
    norse = library("norse.torch")
    soft = {"reset_method": library("norse.torch.functional.reset").reset_subtract, "v_th": 0.5}
    net = norse.SequentialState(nn.Linear(C, 10), norse.LIFBoxCell(p=norse_parameters("lif_box", **soft)))
    nn.init.uniform_(net[0].weight, -5, 15)
    assert_same(net, cell_steps)

    def recorded(net: nn.Module, x: Tensor) -> Tensor:
        out, (state,) = net(2 * x)
        assert state.v.shape == x.shape
        return torch.cat([out, state.v, state.i])

    for cls, kind in ((norse.LIF, "lif"), (norse.LI, "leaky_integrator")):
        assert_same(norse.SequentialState(cls(p=norse_parameters(kind, **RATES), record_states=True)), recorded)


# ---- Sinabs: [batch, time, ...], states are buffers, time constants are learned ----------------------------------------------


def batch_first(net: nn.Module, x: Tensor) -> Tensor:
    return net(x.transpose(0, 1))


def frames(net: nn.Module, x: Tensor) -> Tensor:
    """Batch and time in one dimension."""
    return net(x.transpose(0, 1).flatten(0, 1))


SINABS: dict[str, dict[str, Any]] = {
    "LIF": {"tau_mem": 4.0},
    "LIF-whole": {"tau_mem": 4.0, "norm_input": False, "min_v_mem": -0.5},
    "LIF-synaptic": {"tau_mem": 4.0, "tau_syn": 2.0},
    "LIF-whole_synaptic": {"tau_mem": 4.0, "tau_syn": 2.0, "norm_input": False},
    "LIF-alphas": {"tau_mem": 4.0, "tau_syn": 2.0, "train_alphas": True},
    "IAF": {},
    "IAF-synaptic": {"tau_syn": 2.0, "min_v_mem": -1.0},
    "ALIF": {"tau_mem": 4.0, "tau_adapt": 8.0, "adapt_scale": 0.5, "min_v_mem": -0.5},
    "ALIF-normalised": {"tau_mem": 4.0, "tau_adapt": 8.0, "tau_syn": 2.0},
    "ALIF-synaptic": {"tau_mem": 4.0, "tau_adapt": 8.0, "tau_syn": 2.0, "norm_input": False},
    "ExpLeak": {"tau_mem": 4.0},
}


def sinabs_net(kind: str, squeeze: bool = False, **options: Any) -> nn.Module:
    layers = library("sinabs.layers")
    arguments = {k: torch.tensor(v) if k.startswith("tau") else v for k, v in SINABS[kind].items()} | options
    if squeeze:
        arguments["batch_size"] = N
    name = kind.partition("-")[0]
    made = getattr(layers.alif if name == "ALIF" else layers, name + ("Squeeze" if squeeze else ""))
    net = nn.Sequential(nn.Linear(C, 10), made(**arguments), nn.Linear(10, 6), made(**arguments))
    nn.init.uniform_(net[0].weight, -2, 4)
    nn.init.uniform_(net[2].weight, -1, 3)
    return net.double()


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("kind", SINABS)
def test_a_network_of_sinabs(kind: str, squeeze: bool) -> None:
    options = {} if kind == "ExpLeak" else {"spike_threshold": torch.tensor(0.75)}
    converted = assert_same(sinabs_net(kind, squeeze, **options), frames if squeeze else batch_first)
    assert "snnkern." in str(converted)


@pytest.mark.parametrize("kind", ["LIF", "IAF-synaptic", "ALIF"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("most", [1, 2, None])
def test_resets_spikes_and_surrogates_of_sinabs(kind: str, hard: bool, most: int | None) -> None:
    activation = library("sinabs.activation")
    surrogates = [activation.Gaussian(0.0, 0.7, 2.0), activation.MultiGaussian(), activation.SingleExponential(0.75)]
    spike_fn = {1: activation.SingleSpike, 2: activation.MaxSpike(2), None: activation.MultiSpike}[most]
    if kind != "ALIF":
        surrogates.append(activation.PeriodicExponential(0.75, 2.0))
    for function in surrogates:
        options = {
            "spike_fn": spike_fn,
            "reset_fn": activation.MembraneReset() if hard else activation.MembraneSubtract(),
            "surrogate_grad_fn": function,
            "spike_threshold": torch.tensor(0.75),
        }
        assert_same(sinabs_net(kind, **options), batch_first)


def test_time_constants_of_sinabs_in_single_precision() -> None:
    """One for each channel, in a network for float64; their gradients are float32."""
    layers = library("sinabs.layers")
    tau = torch.rand(C, dtype=torch.float32) * 5 + 2
    for net in (layers.LIF(tau_mem=tau), layers.LIF(tau_mem=tau, tau_syn=tau), layers.ExpLeak(tau_mem=tau)):
        x = 6 * noise((N, T, C), torch.float64, 1)
        assert error(snnkern.convert(net)(x).detach(), net(x).detach()) <= EXACT


def test_sinabs_records_states() -> None:
    for kind in ("LIF-synaptic", "ALIF", "ExpLeak"):
        net = sinabs_net(kind, record_states=True)
        converted = assert_same(net, batch_first)
        theirs, ours = net[1].recordings, converted[1].recordings
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            # Sinabs's ALIF has the potential before the reset of the next step in all but the last place.
            last = slice(-1, None) if kind == "ALIF" else slice(None)
            assert error(ours[name].detach()[:, last], value.detach()[:, last]) <= EXACT, (kind, name)
        assert error(converted[1].firing_rate.detach(), net[1].firing_rate.detach()) <= EXACT


# ---- any library --------------------------------------------------------------------------------------------------------


def lif(**arguments: Any) -> nn.Module:
    """A neuron of SpikingJelly for whole sequences."""
    node: nn.Module = library("spikingjelly.activation_based.neuron").LIFNode(step_mode="m", **arguments)
    return node


class Mixed(nn.Module):
    """Neurons of all four libraries after one another."""

    def __init__(self) -> None:
        super().__init__()
        self.jelly = lif(v_threshold=0.25)
        self.leaky = library("snntorch").Leaky(0.5, threshold=0.25, init_hidden=True)
        self.norse = library("norse.torch").LIF(p=norse_parameters("lif", **RATES))
        self.sinabs = library("sinabs.layers").IAF(spike_threshold=torch.tensor(0.5))
        self.fc = nn.ModuleList(nn.Linear(C, C) for _ in range(4))
        for fc in self.fc:
            nn.init.uniform_(fc.weight, -1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.jelly(self.fc[0](x))
        x = torch.stack([self.leaky(step) for step in self.fc[1](x)])
        x, _ = self.norse(self.fc[2](x))
        x = self.sinabs(self.fc[3](x).transpose(0, 1)).transpose(0, 1)
        return x


def test_a_network_of_four_libraries() -> None:
    converted = assert_same(Mixed(), sequence)
    assert str(converted).count("snnkern.") == 4
    assert isinstance(snnkern.convert(converted), Mixed)  # there is nothing left to convert, and no complaint


def test_snnkerns_own_reset_and_detach_work_too() -> None:
    net = snnkern.convert(Mixed())
    x = noise((T, N, C), torch.float64, 1)
    first = net(x)
    assert not torch.equal(net(x), first)
    snnkern.nn.reset(net)
    assert torch.equal(net(x), first)
    assert net.jelly.v.requires_grad
    assert net.leaky.mem.requires_grad
    assert net.sinabs.v_mem.requires_grad
    snnkern.nn.detach(net)
    assert not any(state.requires_grad for state in (net.jelly.v, net.leaky.mem, net.sinabs.v_mem))


def keeping(name: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A converted neuron that keeps a state from call to call, and a call."""
    if name == "spikingjelly":
        return step_net(lambda: spikingjelly().neuron.LIFNode(v_threshold=0.4))[2:], sequence
    if name == "container":
        return nn.Sequential(Fed(spikingjelly().neuron.LIFNode(v_threshold=0.4), True, "m").loop), sequence
    if name == "snntorch":
        return nn.Sequential(library("snntorch").RLeaky(0.75, linear_features=10, init_hidden=True)), single_steps
    return sinabs_net("LIF")[1:2], batch_first


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["spikingjelly", "container", "snntorch", "sinabs"])
def test_a_checkpoint_advances_the_state_once(name: str, use_reentrant: bool) -> None:
    """Two calls: the second starts from the state that the first has left, in its recomputation as well."""
    net, run = keeping(name)
    found = []
    for through in (lambda f, x: f(x), functools.partial(checkpoint, use_reentrant=use_reentrant)):
        converted = snnkern.convert(net)
        leaves = [noise((T, N, 10), torch.float64, seed, scale=3.0).requires_grad_() for seed in (1, 2)]
        outputs = []
        for x in leaves:
            outputs.append(through(functools.partial(run, converted), x))
            if use_reentrant:
                detach(converted)
        sum((out * noise(tuple(out.shape), out.dtype, 7)).sum() for out in outputs).backward()
        grads = [x.grad for x in leaves] + [p.grad for p in converted.parameters() if p.grad is not None]
        found.append([*outputs, *grads, *(s for s in converted[-1]._kept.values() if isinstance(s, Tensor))])
    assert any(out.any() for out in found[0])
    for a, b in zip(*found, strict=True):
        assert error(b, a) <= EXACT  # gradients are summed in another order


def test_a_reentrant_checkpoint_does_not_lose_the_gradient_of_a_state() -> None:
    net = snnkern.convert(keeping("spikingjelly")[0])
    x = noise((T, N, 10), torch.float64, 1).requires_grad_()
    checkpoint(net, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="has no gradient through a state that is kept"):
        checkpoint(net, x, use_reentrant=True)


def test_in_single_precision_the_spikes_are_the_same() -> None:
    """On eighths and a decay of a half, where no order of a sum changes it."""
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        net = nn.Sequential(lif(decay_input=False)).to(kind)
        x = (noise((T, N, C), torch.float64, 1) * 8).round().div(8).to(kind)
        spikes = snnkern.convert(net)(x)
        assert spikes.dtype == kind
        assert torch.equal(spikes, net(x))


def test_what_a_network_is_stays() -> None:
    """Shared modules, hooks on modules and on parameters, training mode, requires_grad, state with a graph."""
    net = nn.Sequential(nn.Linear(C, C), lif(), nn.Linear(C, C), nn.Identity())
    net[3] = net[1]
    calls: list[str] = []
    net[1].register_forward_hook(lambda *_: calls.append("forward"))
    net[0].weight.register_hook(lambda grad: grad * 0)
    net[2].weight.requires_grad_(False)
    net[0].eval()
    net(noise((T, N, C), torch.float64, 1))
    assert net[1].v.grad_fn is not None
    calls.clear()
    converted = snnkern.convert(net)
    assert converted[1] is converted[3]
    assert torch.equal(converted[1].v, net[1].v)
    assert converted[1].v is not net[1].v
    assert [m.training for m in converted.modules()] == [m.training for m in net.modules()]
    converted(noise((T, N, C), torch.float64, 1)).sum().backward()
    assert calls == ["forward"] * 2
    assert not converted[0].weight.grad.any()
    assert converted[0].bias.grad.any()
    assert converted[2].weight.grad is None


def test_inplace_changes_the_network_itself() -> None:
    net = nn.Sequential(nn.Linear(C, C), lif())
    parameters, neuron = list(net.parameters()), net[1]
    assert snnkern.convert(net, inplace=True) is net
    assert net[1] is neuron
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert type(net[1]).__module__ == "snnkern.compat.from_spikingjelly"
    alone = snnkern.convert(lif())
    assert isinstance(alone, library("spikingjelly.activation_based.neuron").LIFNode)


def test_a_converted_network_is_copied_saved_and_compiled() -> None:
    net = snnkern.convert(nn.Sequential(nn.Linear(C, C), lif(v_threshold=0.25)))
    x = 3 * noise((T, N, C), torch.float64, 1)
    net(x)
    assert copy.deepcopy(net)[1].v.grad_fn is None  # the value of its state
    net[1].reset()
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), compiled):
        net[1].reset()
        assert torch.equal(other(x), net(x))
        assert torch.equal(other(x), net(x))  # from the state


class Own:
    """A surrogate function of a user's own."""

    spiking = True

    def __call__(self, x: Tensor) -> Tensor:
        return (x >= 0).to(x)


class Spike(torch.autograd.Function):
    """The step, with the gradient 1 / (1 + |u|)^2."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad / (1 + u.abs()) ** 2


class OwnSuperSpike:
    """Of SpikingJelly."""

    spiking = True

    def __call__(self, x: Tensor) -> Tensor:
        return Spike.apply(x)


class OwnWidth:
    """Of Sinabs."""

    def __call__(self, v_mem: Tensor, spike_threshold: Tensor) -> Tensor:
        return 1 / (1 + (v_mem - spike_threshold).abs()) ** 2


def test_surrogate_functions_of_a_users_own() -> None:
    """Given by the class of the function, or by the function itself."""
    ours = snnkern.surrogate.SuperSpike()
    neuron = library("spikingjelly.activation_based.neuron")
    of_spikingjelly = step_net(lambda: neuron.LIFNode(v_threshold=0.4, surrogate_function=OwnSuperSpike()))
    of_snntorch = Loop(*(library("snntorch").Leaky(0.75, spike_grad=Spike.apply) for _ in range(2)))
    of_sinabs = sinabs_net("LIF", surrogate_grad_fn=OwnWidth())
    for net, run, key in (
        (of_spikingjelly, sequence, OwnSuperSpike),
        (of_snntorch, sequence, of_snntorch.lif1.spike_grad),
        (of_sinabs, batch_first, OwnWidth),
    ):
        with pytest.raises(
            ValueError, match=r"nearest: one of snnkern.surrogate, by convert\(net, surrogates=\{...\}\)"
        ):
            snnkern.convert(net)
        converted = assert_same(net, run, surrogates={key: ours})
        x = noise((T, N, C), torch.float64, 1)
        assert torch.equal(run(copy.deepcopy(converted), x), run(converted, x))  # a copy knows it, too
    with pytest.raises(TypeError, match=r"surrogates\[OwnWidth\] must be one of snnkern.surrogate, got 2"):
        snnkern.convert(of_sinabs, surrogates={OwnWidth: 2})


def test_all_that_cannot_be_converted_is_one_error() -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    snntorch, norse, sinabs = library("snntorch"), library("norse.torch"), library("sinabs.layers")
    own = type("MyNode", (neuron.LIFNode,), {})
    net = nn.ModuleDict(
        {
            "fine": lif(),
            "psn": neuron.PSN(4),
            "own": own(),
            "surrogate": neuron.IFNode(surrogate_function=Own()),
            "inhibition": snntorch.Leaky(0.5, inhibition=True),
            "custom": snntorch.Leaky(0.5, spike_grad=snntorch.surrogate.heaviside()),
            "adaptive": norse.LSNNCell(8, 8) if hasattr(norse, "LSNNCell") else norse.LSNN(8, 8),
            "fast": norse.LICell(dt=0.1),
            "adjoint": norse.LIFCell(p=norse_parameters("lif", method="adjoint")),
            "recurrent": sinabs.LIFRecurrent(tau_mem=4.0, rec_connect=nn.Identity()),
            "value": sinabs.IAF(reset_fn=library("sinabs.activation").MembraneSubtract(0.5)),
        }
    )
    with pytest.raises(ValueError, match="10 of the network's neurons cannot be converted") as caught:
        snnkern.convert(net, inplace=True)
    lines = str(caught.value).splitlines()
    reasons = {
        "psn": "PSN: snnkern has no such neuron",
        "own": "MyNode: a class of your own, derived from LIFNode",
        "surrogate": "IFNode: its surrogate function Own is not one of snnkern's; nearest: one of snnkern.surrogate",
        "inhibition": "Leaky: inhibition=True",
        "custom": "Leaky: its surrogate function heaviside is not one of snnkern's; nearest: one of snnkern.surrogate",
        "adaptive": "LSNNCell: snnkern has no such neuron; nearest: snnkern.nn.ALIF",
        "fast": "LICell: dt * tau_mem_inv is not above 0 and at most 1; nearest: a smaller dt",
        "adjoint": "LIFCell: its method 'adjoint'",
        "recurrent": "LIFRecurrent: snnkern has no such neuron; nearest: its connection around sinabs.layers.LIF",
        "value": "IAF: MembraneSubtract of another value than the threshold",
    }
    for line, (name, reason) in zip(lines[1:-1], reasons.items(), strict=True):
        assert line.startswith(f"  {name}: {reason}")
    assert type(net["fine"]) is neuron.LIFNode  # nothing has changed
    with pytest.warns(UserWarning, match="10 of the network's neurons"):
        converted = snnkern.convert(net, strict=False)
    assert [str(m).startswith("snnkern.") for m in converted.values()] == [name == "fine" for name in net]


def test_arguments_are_checked_and_nothing_to_do_is_said() -> None:
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got Tensor"):
        snnkern.convert(torch.zeros(1))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="no neuron of SpikingJelly, snnTorch, Norse or Sinabs"):
        snnkern.convert(nn.Linear(2, 2))


def test_importing_snnkern_imports_no_other_library() -> None:
    code = "import sys, snnkern; print({'spikingjelly', 'snntorch', 'norse', 'sinabs'} & sys.modules.keys())"
    assert fresh_process(code).strip() == "set()"
