"""NIR: networks out and in give the same outputs, by NIR's own equations, and as the other libraries read and write them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import nn, surrogate
from snnkern.compat import nir as exchange

from support import noise

nir = pytest.importorskip("nir")
DT = 1e-4


@pytest.fixture(autouse=True)
def double() -> Any:
    """Time constants in seconds and back are exact to the last bits only in double precision."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def x_seq(*shape: int, seed: int = 0) -> Tensor:
    return noise((30, 2, *shape), torch.float64, seed, scale=1.5)


def back(net: torch.nn.Module, sample: Tensor, path: Path | None = None) -> torch.nn.Module:
    """Out and in again, by way of a file."""
    graph = exchange.export(net, sample)
    if path is None:
        return exchange.load(graph)
    nir.write(path / "net.nir", graph)
    return exchange.load(path / "net.nir")


def same(net: torch.nn.Module, other: torch.nn.Module, x: Tensor) -> None:
    nn.reset(net)
    nn.reset(other)
    for part in x.chunk(2):  # the state is kept
        expected, found = net(part), other(part)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.any()


NEURONS = {
    "if": lambda: nn.IF(v_threshold=1.5),
    "if, reset elsewhere": lambda: nn.IF(v_reset=-0.25),
    "lif": lambda: nn.LIF(tau=3.0, surrogate=surrogate.ATan(alpha=3.0)),
    "lif, whole input": lambda: nn.LIF(tau=3.0, decay_input=False, v_reset=0.1),
    "lif, a value for each neuron": lambda: nn.LIF(tau=torch.linspace(2, 5, 6), v_threshold=torch.linspace(0.5, 1, 6)),
    "lif, tau=1": lambda: nn.LIF(tau=1.0, decay_input=False),
    "lif as in snnTorch": lambda: nn.LIF(strict=True, delay_reset=True),
    "lif as in Sinabs": lambda: nn.LIF(v_min=-1.0, max_spikes=3.0),
    "parametric lif": lambda: nn.ParametricLIF(init_tau=3.0),
    "cuba": lambda: nn.CuBaLIF(alpha=0.7, beta=0.8),
    "li": lambda: nn.LI(tau=4.0),
    "li, whole input": lambda: nn.LI(tau=4.0, decay_input=False),
    "cuba li": lambda: nn.CuBaLI(alpha=0.7, beta=0.8),
    "driven": lambda: exchange.Driven(exchange.Drive(2.0, 0.125), nn.LIF(tau=3.0, v_reset=-0.1)),
}


def same_gradients(net: torch.nn.Module, other: torch.nn.Module, x: torch.Tensor) -> None:
    for layer in (net, other):
        nn.reset(layer)
    grads = [
        torch.autograd.grad(layer(leaf).square().sum(), leaf)[0]
        for layer in (net, other)
        for leaf in [x.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NEURONS)
def test_round_trip_of_each_neuron(name: str, tmp_path: Path) -> None:
    """And what NIR has no word for: the surrogate and the conventions."""
    net, x = torch.nn.Sequential(NEURONS[name]()).double(), x_seq(6)
    other = back(net, x, tmp_path)
    same(net, other, x)
    same_gradients(net, other, x)


def test_a_soft_reset_is_kept_and_warned_of(tmp_path: Path) -> None:
    net, x = torch.nn.Sequential(nn.LIF(v_reset=None), nn.CuBaLIF(v_reset=None)), x_seq(6)
    with pytest.warns(UserWarning, match="0: NIR has no word for a soft reset"):
        other = back(net, x, tmp_path)
    same(net, other, x)


def euler(node: Any, x: Tensor, dt: float) -> Tensor:
    """NIR's equations, step by step of Euler's method."""
    p = {key: torch.as_tensor(value) for key, value in vars(node).items() if hasattr(value, "dtype")}
    start = p.get("v_reset", torch.zeros(()))
    v, i, out = start.expand(x[0].shape).clone(), torch.zeros_like(x[0]), []
    leak = p.get("v_leak", torch.zeros(()))
    for s in x:
        if "tau_syn" in p:
            i = i + dt / p["tau_syn"] * (p["w_in"] * s - i)
            v = v + dt / p["tau_mem"] * (leak - v + p["r"] * i)
        elif "tau" in p:
            v = v + dt / p["tau"] * (leak - v + p["r"] * s)
        else:
            v = v + dt * p["r"] * s
        if "v_threshold" in p:
            z = v > p["v_threshold"]
            v = torch.where(z, p["v_reset"], v)
            out.append(z.to(x.dtype))
        else:
            out.append(v)
    return torch.stack(out)


def values(*numbers: float, scale: float = 1.0) -> Any:
    return (torch.tensor(numbers) * scale).numpy()


NODES = {
    "IF": lambda: nir.IF(values(8e3, 1e4, 2e4), values(1.0, 0.5, 1.0), values(0.0, -0.5, 0.1)),
    "I": lambda: nir.I(values(8e3, 1e4, 2e4)),
    "LIF": lambda: nir.LIF(
        values(2e-4, 3e-4, 5e-4),
        values(1.0, 2.0, 3.0),
        values(0.1, 0.2, 0.0),
        values(0.7, 1.0, 0.5),
        values(0.0, -0.5, 0.1),
    ),
    "LIF, whole input": lambda: nir.LIF(
        values(2e-4, 4e-4), values(2.0, 4.0), values(0.0, 0.0), values(1.0, 1.0), values(0.0, 0.0)
    ),
    "LI": lambda: nir.LI(values(2e-4, 3e-4, 5e-4), values(1.0, 2.0, 3.0), values(0.1, 0.2, 0.0)),
    "CubaLIF": lambda: nir.CubaLIF(
        values(2e-4, 3e-4),
        values(5e-4, 4e-4),
        values(5.0, 9.0),
        values(0.0, 0.0),
        values(0.3, 0.5),
        values(0.0, -0.1),
        values(2.0, 3.0),
    ),
    "CubaLI": lambda: nir.CubaLI(
        values(2e-4, 3e-4), values(5e-4, 4e-4), values(5.0, 9.0), values(0.0, 0.0), values(2.0, 3.0)
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_means_what_nir_says(name: str) -> None:
    """One that others wrote, and what is written of it."""
    node = NODES[name]()
    shape = tuple(int(d) for d in node.input_type["input"])
    x = x_seq(*shape)
    net = exchange.load(nir.NIRGraph.from_list(node))
    expected = euler(node, x, DT)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    assert expected.any()
    (again,) = [n for n in exchange.export(net, x).nodes.values() if type(n) is type(node)]
    torch.testing.assert_close(euler(again, x, DT), expected, rtol=1e-9, atol=1e-9)


class Residual(torch.nn.Module):
    """Branches that are added, layers inside and outside of PerStep."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.PerStep(torch.nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.nn.AvgPool2d(2))
        self.spikes = nn.LIF(v_threshold=0.3)
        self.block = torch.nn.Sequential(
            nn.PerStep(torch.nn.Conv2d(4, 4, 3, padding="same", groups=2)), nn.IF(v_threshold=0.5)
        )
        self.flat, self.drop = nn.PerStep(torch.nn.Flatten()), torch.nn.Dropout(0.5)
        self.head = torch.nn.Sequential(torch.nn.Linear(64, 5), nn.LI())

    def forward(self, x: Tensor) -> Tensor:
        x = self.spikes(self.first(x))
        return self.head(self.flat(self.drop(x + self.block(x))))  # type: ignore[no-any-return]


def test_round_trip_of_a_network(tmp_path: Path) -> None:
    """Its states, its training mode and its dropout are as before."""
    net, x = Residual(), x_seq(2, 8, 8)
    net.eval()(x[:3])
    kept = net.spikes.v
    net.train()
    other = back(net, x, tmp_path)
    assert net.training and net.drop.training and net.spikes.v is kept
    assert isinstance(other, exchange.Network)
    same(net.eval(), other, x)
    assert "drop" not in dict(other.named_modules())


def test_round_trip_of_layers(tmp_path: Path) -> None:
    net = torch.nn.Sequential(
        nn.PerStep(torch.nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2)),
        nn.LIF(v_threshold=0.2),
        torch.nn.Flatten(2),
        torch.nn.Linear(16, 5),
    )
    x = x_seq(3, 9)
    assert isinstance(back(net, x, tmp_path), torch.nn.Sequential)
    same(net, back(net, x), x)
    net = torch.nn.Sequential(nn.PerStep(torch.nn.AvgPool2d((2, 1), (1, 2), divisor_override=1)), exchange.Drive(3.0))
    same(net, back(net, x_seq(2, 6, 6), tmp_path), x_seq(2, 6, 6))


def recurrent(kind: str = "lif") -> Any:
    """As snnTorch writes RLeaky: a graph within a graph, whose neuron is in a cycle."""
    w = noise((3, 3), torch.float64, 5)
    neuron = {
        "lif": NODES["LIF"],
        "cuba": lambda: nir.CubaLIF(
            *[values(*[v] * 3) for v in (2e-4, 5e-4, 5.0, 0.0, 0.3)], w_in=values(2.0, 2.0, 2.0)
        ),
    }[kind]()
    inner = nir.NIRGraph(
        {
            "input": nir.Input({"input": values(3).astype(int)}),
            "lif": neuron,
            "w_rec": nir.Affine(w.numpy(), values(0.1, 0.2, -0.1)),
            "output": nir.Output({"output": values(3).astype(int)}),
        },
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )
    first = nir.Affine(noise((3, 4), torch.float64, 6).numpy(), values(0.0, 0.1, 0.2))
    return nir.NIRGraph(
        {
            "input": nir.Input({"input": values(4).astype(int)}),
            "first": first,
            "cell": inner,
            "output": nir.Output({"output": values(3).astype(int)}),
        },
        [("input", "first"), ("first", "cell"), ("cell", "output")],
    )


@pytest.mark.parametrize("kind", ["lif", "cuba"])
def test_a_cycle_of_a_neuron_and_weights_is_a_recurrent_layer(kind: str, tmp_path: Path) -> None:
    graph, x = recurrent(kind), x_seq(4)
    net = exchange.load(graph)
    cell, first = graph.nodes["cell"], graph.nodes["first"]
    w, bias = (torch.as_tensor(getattr(cell.nodes["w_rec"], key)) for key in ("weight", "bias"))
    current = x @ torch.as_tensor(first.weight).T + torch.as_tensor(first.bias)
    # The same loop: the whole past again for each step, with what came out of it.
    spikes = torch.zeros(0, 2, 3)
    for t in range(len(x)):
        before = torch.cat([torch.zeros(1, 2, 3), spikes])
        spikes = euler(cell.nodes["lif"], current[: t + 1] + before @ w.T + bias, DT)
    same_as: Tensor = net(x)
    assert torch.equal(same_as, spikes) and spikes.any()
    assert f"Recurrent{'LIF' if kind == 'lif' else 'CuBaLIF'}(size=3" in str(net)
    again = back(net, x, tmp_path)
    same(net, again, x)
    nn.detach(net)
    assert torch.equal(again(x), net(x))


RECURRENT = {
    "if": lambda: nn.RecurrentIF(4, v_threshold=0.6),
    "lif": lambda: nn.RecurrentLIF(4, tau=3.0, v_threshold=0.3, surrogate=surrogate.ATan(alpha=3.0)),
    "without a bias": lambda: nn.RecurrentLIF(4, bias=False, v_threshold=torch.linspace(0.3, 0.6, 4)),
    "cuba": lambda: nn.RecurrentCuBaLIF(4, alpha=0.7, beta=0.8, detach_recurrent=True),
    "diagonal": lambda: nn.RecurrentLIF(4, diagonal=True, v_threshold=0.3),
    "diagonal without a bias": lambda: nn.RecurrentLIF(4, diagonal=True, bias=False, v_threshold=0.3),
    "driven": lambda: exchange.Driven(
        exchange.Drive(torch.linspace(1, 2, 4), 0.125), nn.RecurrentLIF(4, v_threshold=0.3)
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_round_trip_of_a_recurrent_layer(name: str, tmp_path: Path) -> None:
    """Its edge in NIR is the weights; it comes back as a recurrent layer, and its gradients are the same."""
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 4), RECURRENT[name]()).double(), x_seq(3)
    torch.nn.init.uniform_(net[0].weight, -1, 2)
    graph = exchange.export(net, x)
    assert ("lif", "w_rec") in graph.nodes["1"].edges and ("w_rec", "lif") in graph.nodes["1"].edges
    other = back(net, x, tmp_path)
    assert "Recurrence" not in str(other) and "Recurrent" in str(other)
    same(net, other, x)
    same_gradients(net, other, x)


def test_a_recurrent_layer_that_nir_cannot_say() -> None:
    net = torch.nn.Sequential(nn.RecurrentLIF(4))
    with pytest.raises(ValueError, match=r"its input must be \[T, N, 4\]"):
        exchange.export(net, torch.zeros(2, 1, 3, 4))
    net = torch.nn.Sequential(exchange.Driven(exchange.Drive(0.0), nn.RecurrentLIF(4)))
    with pytest.raises(ValueError, match="its Drive has a scale of 0"):
        exchange.export(net, torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="NIR has no neuron like ALIF"):
        exchange.export(torch.nn.Sequential(nn.RecurrentALIF(4)), torch.zeros(2, 1, 4))


def test_a_longer_cycle_runs_step_by_step() -> None:
    """And so does one whose weights feed another node as well."""
    graph, x = recurrent(), x_seq(4)
    cell = graph.nodes["cell"]
    cell.nodes["scale"] = nir.Scale(values(1.0, 1.0, 1.0))
    cell.edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "scale"), ("scale", "lif"), ("lif", "output")]
    net = exchange.load(graph)
    assert "Recurrence" in str(net)
    assert torch.equal(net(x), exchange.load(recurrent())(x))
    same(net, back(net, x), x)


def test_an_edge_from_a_neuron_to_itself() -> None:
    node = NODES["LIF"]()
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": values(3).astype(int)}),
            "n": node,
            "output": nir.Output({"output": values(3).astype(int)}),
        },
        [("input", "n"), ("n", "n"), ("n", "output")],
    )
    x, spikes = x_seq(3), torch.zeros(0, 2, 3)
    for t in range(len(x)):
        spikes = euler(node, x[: t + 1] + torch.cat([torch.zeros(1, 2, 3), spikes]), DT)
    assert torch.equal(exchange.load(graph)(x), spikes)


# ---- other libraries -----------------------------------------------------------------------------------------------------


def steps(net: Any, x: Tensor) -> Tensor:
    """A network that takes a step and its state."""
    state, out = None, []
    for s in x:
        y, state = net(s, state)
        out.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(out)


@pytest.mark.filterwarnings("ignore")
def test_norse_reads_what_is_written() -> None:
    norse = pytest.importorskip("norse.torch")
    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        nn.LIF(tau=3.0, v_threshold=0.4, strict=True),
        torch.nn.Linear(6, 3),
        nn.LIF(strict=True, v_threshold=0.1),
    )
    theirs = norse.from_nir(exchange.export(net, x, dt=1e-3), dt=1e-3)
    assert torch.equal(steps(theirs, x), net(x)) and net(x).any()


@pytest.mark.filterwarnings("ignore")
def test_norse_writes_what_is_read() -> None:
    norse = pytest.importorskip("norse.torch")
    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.4))
    theirs = norse.SequentialState(torch.nn.Linear(4, 6), norse.LIFBoxCell(p), torch.nn.Linear(6, 3))
    graph = norse.to_nir(theirs, x[0])
    # Norse 1.1 writes dt / tau_mem_inv for a time constant, so that a step is dt * dt long.
    torch.testing.assert_close(exchange.load(graph, dt=1e-6)(x), steps(theirs, x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_spikingjelly_reads_and_writes() -> None:
    library = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6), nn.LIF(tau=3.0, v_threshold=0.4), torch.nn.Linear(6, 3), nn.IF(v_threshold=0.7)
    )
    theirs = library.import_from_nir(exchange.export(net, x), dt=DT, step_mode="s")
    assert torch.equal(steps(theirs, x), net(x)) and net(x).any()
    from spikingjelly.activation_based import layer, neuron

    one = torch.nn.Sequential(
        layer.Linear(4, 6), neuron.LIFNode(tau=3.0, v_threshold=0.4, decay_input=False), layer.Linear(6, 3)
    )
    graph = library.export_to_nir(one, x[0], dt=DT)
    expected = torch.stack([one(s) for s in x])
    torch.testing.assert_close(exchange.load(graph, strict=False)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_snntorch_reads_and_writes() -> None:
    snntorch = pytest.importorskip("snntorch")
    from snntorch import export_nir, import_nir

    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), nn.LIF(tau=3.0, v_threshold=0.4, decay_input=False, strict=True))
    theirs = import_nir.import_from_nir(exchange.export(net, x))
    assert torch.equal(steps(theirs, x), net(x)) and net(x).any()
    leaky = snntorch.Leaky(
        beta=torch.full((6,), 0.7),
        threshold=torch.full((6,), 0.4),
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), leaky)
    graph = export_nir.export_to_nir(theirs, x[0], ignore_dims=[0])
    leaky.reset_hidden()
    expected = torch.stack([theirs(s) for s in x])
    assert torch.equal(exchange.load(graph)(x), expected) and expected.any()


@pytest.mark.filterwarnings("ignore")
def test_snntorch_and_norse_read_a_recurrent_layer() -> None:
    """Without a bias, which their readers leave out in the first step; snnTorch's own RLeaky has it."""
    snntorch = pytest.importorskip("snntorch")
    from snntorch import export_nir, import_nir

    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    whole = nn.RecurrentLIF(6, tau=5.0, bias=False, strict=True, v_threshold=0.4, decay_input=False)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), whole)
    assert torch.equal(steps(import_nir.import_from_nir(exchange.export(net, x)), x), net(x)) and net(x).any()
    leaky = snntorch.RLeaky(
        beta=torch.full((6,), 0.8),
        threshold=torch.full((6,), 0.4),
        linear_features=6,
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), leaky)
    graph = export_nir.export_to_nir(theirs, x[0], ignore_dims=[0])
    leaky.reset_mem()
    expected = torch.stack([theirs(s) for s in x])
    read = exchange.load(graph)
    assert "RecurrentLIF" in str(read)
    assert torch.equal(read(x), expected) and expected.any()
    norse = pytest.importorskip("norse.torch")
    whole = nn.RecurrentLIF(6, tau=3.0, bias=False, strict=True, v_threshold=0.2)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), whole)
    theirs = norse.from_nir(exchange.export(net, x, dt=1e-3), dt=1e-3)
    assert torch.equal(steps(theirs, x), net(x)) and net(x).any()


@pytest.mark.filterwarnings("ignore")
def test_sinabs_writes_what_is_read() -> None:
    sinabs = pytest.importorskip("sinabs.layers")
    from sinabs.nir import to_nir

    torch.set_default_dtype(torch.float32)
    x = x_seq(4).float()
    layer = sinabs.IAFSqueeze(
        batch_size=2, spike_threshold=torch.tensor(1.0), min_v_mem=None, spike_fn=_single_spike(), reset_fn=_to_zero()
    )
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), layer)
    flat = x.transpose(0, 1).flatten(0, 1)  # Sinabs has the batch first
    graph = to_nir(theirs, flat)
    layer.reset_states()
    expected = theirs(flat).unflatten(0, (2, -1)).transpose(0, 1)
    assert torch.equal(exchange.load(graph, dt=1.0, strict=False)(x), expected) and expected.any()


def _single_spike() -> Any:
    from sinabs.activation import SingleSpike

    return SingleSpike


def _to_zero() -> Any:
    from sinabs.activation import MembraneReset

    return MembraneReset()


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_named_all_at_once() -> None:
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        nn.PerStep(torch.nn.BatchNorm1d(4)),
        nn.ALIF(),
        torch.nn.Linear(4, 4),
        nn.LIF(tau=math.inf),
        nn.CuBaLIF(alpha=1.0),
        nn.IF(v_init=0.5),
    )
    with pytest.raises(ValueError) as error:
        exchange.export(net, torch.zeros(1, 1, 4))
    for text in (
        "1.0: NIR has no node like BatchNorm1d; fold it into the layer before it",
        "2: NIR has no neuron like ALIF; it has IF, LIF, CubaLIF, LI and CubaLI",
        "4: an infinite tau has no word in NIR",
        "5: alpha=1 is an infinite time constant",
        "6: NIR has no word for v_init",
    ):
        assert text in str(error.value), text


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: exchange.export(nn.LIF(), torch.zeros(3, 4)),
            ValueError,
            r"sample must be a tensor \[T, N, ...\], got \[3, 4\]",
        ),
        (
            lambda: exchange.export(nn.LIF(), torch.zeros(1, 1, 4), dt=0),
            ValueError,
            "dt must be a finite number > 0, got 0",
        ),
        (lambda: exchange.load(3), TypeError, "graph must be a nir.NIRGraph or a path, got int"),
        (
            lambda: exchange.load(nir.NIRGraph.from_list(NODES["LIF"]()), dt=1.0),
            ValueError,
            r"lif: tau must be at least dt, 1, got 0\.0002",
        ),
        (
            lambda: exchange.load(nir.NIRGraph.from_list(nir.Delay(values(1.0)))),
            ValueError,
            "delay: there is no layer here for NIR's Delay",
        ),
        (
            lambda: exchange.load(
                nir.NIRGraph.from_list(nir.CubaLIF(*[values(v) for v in (2e-4, 5e-4, 5.0, 0.3, 0.3)]))
            ),
            ValueError,
            "v_leak of a neuron with a synapse must be 0",
        ),
    ],
)
def test_errors(call: Any, kind: type[Exception], text: str) -> None:
    with warnings.catch_warnings(), pytest.raises(kind, match=text):
        call()
