"""ONNX: a network of neurons, exported with any T and N, gives the same spikes in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import compat, functional, nn, surrogate
from snnkern.codegen.emit.step import is_exact, trace
from snnkern.codegen.graph.expr import FUNCTIONS, clamp, maximum, minimum, series, softplus, topological
from snnkern.codegen.specification.base import Float, Neuron

from support import (
    DTYPES,
    NEURON_NAMES,
    SURROGATE_CLASSES,
    TOLERANCE,
    eighths,
    error,
    flag_settings,
    fresh_process,
    function,
    inputs,
    neuron_class,
    noise,
    resets,
    twin,
)

needs = "is what torch.onnx.export needs (pip install .[test])"
pytest.importorskip("onnx", reason=f"onnx {needs}")
pytest.importorskip("onnxscript", reason=f"onnxscript {needs}")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install .[test])")

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("fresh_dynamo")]
T, N = torch.export.Dim("T"), torch.export.Dim("N")
SHAPES = ((5, 3), (1, 1), (33, 4))
"""The first is that of the example; time and neurons are dynamic."""


class Calls(torch.nn.Module):
    """Calls of functions with the same tensors, as one module."""

    def __init__(self, calls: Sequence[Any]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        outputs = [out for call in self.calls for out in call(*tensors)]
        return [out.float() if out.dtype == torch.bfloat16 else out for out in outputs]  # NumPy has no bfloat16


def export(net: torch.nn.Module, tensors: Sequence[Tensor], dynamic: Any = ({0: T, 1: N},), **options: Any) -> Any:
    shapes = (tuple(dynamic),) if isinstance(net, Calls) else tuple(dynamic)
    return torch.onnx.export(net, tuple(tensors), dynamo=True, dynamic_shapes=shapes, verbose=False, **options)


class Session:
    """A network in onnxruntime, from a file."""

    def __init__(self, program: Any, folder: Path) -> None:
        program.save(folder / "net.onnx")
        self.session = runtime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = {i.name: t.detach().numpy() for i, t in zip(self.session.get_inputs(), tensors, strict=True)}
        return [torch.from_numpy(out) for out in self.session.run(None, given)]


def check(outputs: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
    """Equal to the bit, or states within rounding; spikes are equal always."""
    assert len(outputs) == len(expected)
    for out, want in zip(outputs, expected, strict=True):
        assert out.shape == want.shape
        assert out.dtype == want.dtype
        is_state = not exact and bool((want != want.round()).any())
        if is_state:
            assert error(out, want.detach()) <= TOLERANCE[want.dtype]
        else:
            assert torch.equal(out, want)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_every_neuron(neuron: str, tmp_path: Path) -> None:
    """All resets, flags and dtypes, from given states and without; states in the end and in each step; tensor parameters."""
    n, run = neuron_class(neuron), function(functional, neuron)
    state_names = [f"{s.name}_init" for s in n.states]
    numbers = [p for p in n.all_parameters() if isinstance(p, Float) and p.name != "v_reset"]
    calls = []

    def call(dtype: torch.dtype, starts: bool, tensors: bool, options: dict[str, Any]) -> None:
        def run_it(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            learned, states = rest[: len(n.learned)], rest[len(n.learned) :]
            given = {t.name: value for t, value in zip(n.learned, learned, strict=True)}
            if starts:
                given.update(zip(state_names, states, strict=True))
            if tensors:
                for p in numbers:
                    given[p.name] = torch.full(x.shape[1:], p.number * (1.0 if p.range.integer else 0.75))
            return run(x.to(dtype), **given, **options)

        calls.append(run_it)

    for reset in resets(neuron):
        for flags in flag_settings(neuron):
            call(torch.float32, False, False, {**reset, **flags})
        call(torch.float32, True, False, {**reset, "store_v_seq": True})
        call(torch.float32, False, True, reset)
    for dtype in DTYPES.values():
        if dtype != torch.float32:
            call(dtype, True, False, {})
    example = list(inputs(neuron, SHAPES[0], torch.float32, reset="soft").values())
    dynamic = [{0: T, 1: N}, *({} for _ in n.learned), *({0: N} for _ in n.states)]
    with torch.no_grad():
        net = Calls(calls)
        session = Session(export(net, example, dynamic), tmp_path)
        for seed, shape in enumerate(SHAPES):
            tensors = list(inputs(neuron, shape, torch.float32, seed=seed, reset="soft").values())
            check(session(*tensors), net(*tensors), is_exact(n))


def test_network(tmp_path: Path) -> None:
    """Convolutions over all steps, batch first, learned values for each channel; the exporter needs no table."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False)
    conv.weight.data = eighths(conv.weight.data * 4)
    net = torch.nn.Sequential(
        nn.PerStep(conv, torch.nn.BatchNorm2d(4), batch_first=True),
        nn.LIF(learn_tau=True, channels=4, batch_first=True, surrogate=surrogate.ATan()),
        nn.PerStep(torch.nn.AvgPool2d(2), torch.nn.Flatten(), batch_first=True),
        nn.ParametricLIF(v_threshold=0.5, v_reset=None, batch_first=True, v_init=0.25),
    ).eval()
    session = Session(export(net, [eighths(noise((3, 5, 2, 4, 4), torch.float32, 0))], ({0: N, 1: T},)), tmp_path)
    for seed, shape in enumerate(((3, 5, 2, 4, 4), (1, 1, 2, 4, 4), (2, 33, 2, 4, 4))):
        x = eighths(noise(shape, torch.float32, seed, scale=2.0))
        nn.reset(net)
        assert torch.equal(session(x)[0], net(x))
        assert 0 < net(x).mean() < 1


def test_fused_network(tmp_path: Path) -> None:
    """A BatchNorm and a residual in front of a neuron, as one operator; in training there is an error."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.PerStep(torch.nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4))
            self.lif, self.norm = nn.LIF(surrogate=surrogate.ATan()), nn.BatchNormNeuron(4, nn.IF(v_reset=None))

        def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(self.lif(self.conv(x)), residual, with_sum=True)

    net = Net()
    x, residual = (eighths(noise((5, 3, c, 4, 4), torch.float32, 1, scale=2.0)) for c in (2, 4))
    net(x, residual), nn.reset(net)  # moves the running statistics
    net = snnkern.fuse(net)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"a BatchNorm in training .* call net.eval\(\)"):
        export(net, [x, residual], ({0: T, 1: N},) * 2)
    net.eval()
    session = Session(export(net, [x, residual], ({0: T, 1: N},) * 2), tmp_path)
    for seed, (steps, samples) in enumerate(SHAPES):
        given = [eighths(noise((steps, samples, c, 4, 4), torch.float32, seed, scale=2.0)) for c in (2, 4)]
        nn.reset(net)
        spikes, y = net(*given)
        assert 0 < spikes.mean() < 1
        same = session(*given)[0] == spikes
        assert same.double().mean() > 0.99  # convolutions are summed in another order
        assert error(torch.where(same, session(*given)[1], 0.0), torch.where(same, y, 0.0).detach()) <= 1e-4


def test_recurrent_layers(tmp_path: Path) -> None:
    """Weights between all neurons, and of each to itself; a bias, spikes from before, states of every step; in halves as well."""
    H = 6
    weight, own, bias = (eighths(noise(shape, torch.float32, 10 + i)) for i, shape in enumerate([(H, H), (H,), (H,)]))

    def call(x: Tensor, v: Tensor, spike: Tensor) -> tuple[Tensor, ...]:
        return (
            *functional.recurrent_lif(x, weight, v_reset=None),
            *functional.recurrent_cuba(x, own, bias, v, spike_init=spike, alpha=0.5, beta=0.75, store_v_seq=True),
            *functional.recurrent_if(x.half(), weight, bias, strict=True),
        )

    def tensors(steps: int, samples: int, seed: int) -> list[Tensor]:
        x, v, spike = (
            eighths(noise((n, H), torch.float32, seed + i)) for i, n in enumerate([steps * samples, samples, samples])
        )
        return [x.view(steps, samples, H), v, (spike > 0).float()]

    net = Calls([call])
    session = Session(export(net, tensors(*SHAPES[0], 0), [{0: T, 1: N}, {0: N}, {0: N}]), tmp_path)
    for seed, shape in enumerate(SHAPES):
        given = tensors(*shape, seed)
        check(session(*given), net(*given), exact=True)


def test_sequence_in_parts(tmp_path: Path) -> None:
    """The state that a part ends with starts the next."""

    def step(x: Tensor, v: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return functional.cuba(x, v, i, alpha=0.75, beta=0.5)

    x = eighths(noise((12, 6), torch.float32, 0))
    start = [torch.zeros(6), torch.zeros(6)]
    session = Session(export(Calls([step]), [x[:4], *start], [{0: T, 1: N}, {0: N}, {0: N}]), tmp_path)
    states, spikes = start, []
    for part in x.split([4, 1, 7]):
        spike_seq, *states = session(part, *states)
        spikes.append(spike_seq)
    check([torch.cat(spikes), *states], step(x, *start), exact=True)


def test_parameters_in_time(tmp_path: Path) -> None:
    """A decay for each step, for each step and neuron, and one for all; a potential that starts where the first step resets to."""

    def call(x: Tensor, tau: Tensor, v_reset: Tensor) -> tuple[Tensor, ...]:
        return (
            *functional.lif(x, tau=tau[:, :1], v_reset=v_reset, store_v_seq=True),
            *functional.lif(x.double(), tau=tau, v_threshold=v_reset.double()[:1] + 1),
        )

    def tensors(shape: tuple[int, int], seed: int) -> list[Tensor]:
        x, tau, v_reset = (noise(shape, torch.float32, 3 * seed + i) for i in range(3))
        return [x * 2, 1 + tau.abs(), v_reset / 4]

    net = Calls([call])
    session = Session(export(net, tensors(SHAPES[0], 0), [{0: T, 1: N}] * 3), tmp_path)
    for seed, shape in enumerate(SHAPES):
        given = tensors(shape, seed)
        check(session(*given), net(*given), exact=True)


def test_conventions(tmp_path: Path) -> None:
    """Those of other libraries, alone and together; none is written that is not used."""
    several = [
        {"strict": True},
        {"delay_reset": True},
        {"max_spikes": 3.0},
        {"max_spikes": None, "v_min": -0.5},
        {"strict": True, "delay_reset": True, "max_spikes": None},
    ]
    calls = [
        lambda x, options=options, v_reset=v_reset: functional.lif(x, v_reset=v_reset, **options)
        for options in several
        for v_reset in (0.0, None)
    ]
    calls.append(lambda x: functional.if_(x, v_min=torch.full(x.shape[1:], -0.5)))
    net = Calls(calls)
    session = Session(export(net, [noise(SHAPES[0], torch.float32, 0)], [{0: T, 1: N}]), tmp_path)
    for seed, shape in enumerate(SHAPES):
        x = noise(shape, torch.float32, seed, scale=3.0)
        x = torch.where(x > 1, x.round(), x)  # some potentials lie at the threshold
        check(session(x), net(x), exact=True)


def test_infinite_values(tmp_path: Path) -> None:
    """A threshold at infinity; inputs that are infinite or no number."""
    calls = [
        lambda x: functional.lif(x, v_threshold=float("inf"), v_reset=None),
        lambda x: functional.lif(x, v_threshold=torch.tensor([1.0, float("inf"), 0.5]), v_reset=None),
        functional.ilif,
        functional.klif,
    ]
    x = noise((6, 3), torch.float32, 0)
    x[2, 0], x[3, 1], x[4, 2] = float("nan"), float("inf"), -float("inf")
    session = Session(export(Calls(calls), [x], [{0: T}]), tmp_path)
    for out, want in zip(session(x), Calls(calls)(x), strict=True):
        assert torch.equal(out.nan_to_num(7.0), want.nan_to_num(7.0))


def test_smooth_mode(tmp_path: Path) -> None:
    """The primitive of every surrogate that has one stands for the spike."""
    smooth = [c(spiking=False) for c in SURROGATE_CLASSES.values() if c.equations.has_primitive()]
    calls = [lambda x, s=s: functional.lif(x, surrogate=s) for s in smooth]
    x = noise((5, 40), torch.float32, 0, scale=2.0)
    session = Session(export(Calls(calls), [x], [{0: T}]), tmp_path)
    for out, want in zip(session(x), Calls(calls)(x), strict=True):
        assert error(out, want) <= TOLERANCE[torch.float32]


def test_neuron_of_ones_own(tmp_path: Path) -> None:
    """Defined at run time, before the exporter is imported or after."""
    run = getattr(functional, twin("izhikevich"))
    x = eighths(noise((5, 3), torch.float32, 0))
    session = Session(export(Calls([run]), [x], [{0: T, 1: N}]), tmp_path)
    check(session(x), functional.izhikevich(x), exact=True)


def test_functions_of_equations(tmp_path: Path) -> None:
    """Every function that an equation may call."""

    class Wordy(Neuron):
        """A step that calls every function."""

        @staticmethod
        def charge(x: Any, v: Any, p: Any) -> Any:
            smooth = x.exp() + (x * x + 1.0).log() + x.sigmoid() + x.tanh() + x.sin() + x.cos() + x.atan() + x.erfc()
            steps = abs(x).sqrt() + x.relu() + x.floor() + x.round() + (x * x + 1.0) ** 1.5 + softplus(x * 20.0)
            words = maximum(x, 0.25) - minimum(x, v) + clamp(x, -0.5, 0.5) + series(4.0, lambda i: x * i)
            return v * 0.5 + (smooth + steps * words) * 0.125

    neuron = snnkern.define_neuron(Wordy)
    assert {e.op for e in topological([trace(neuron, "hard", "").spike])} >= FUNCTIONS.keys()
    x = noise((5, 50), torch.float32, 0)
    session = Session(export(Calls([neuron.functional]), [x], [{0: T, 1: N}]), tmp_path)
    for out, want in zip(session(x), neuron.reference(x), strict=True):
        assert error(out, want) <= TOLERANCE[torch.float32]


def test_what_exports_of_itself() -> None:
    """In a new process, which imports the exporter when it is first called; and neurons that are defined before and after."""
    fresh_process(
        """
import sys, torch, snnkern
from snnkern.codegen.specification.neurons import Neuron
def define(name):
    made = type(name, (Neuron,), {"charge": staticmethod(lambda x, v, p: v * 0.5 + x)})
    return snnkern.define_neuron(made).functional
def operators(f):
    class Net(torch.nn.Module):
        def forward(self, x):
            return f(x)
    program = torch.onnx.export(Net(), (torch.ones(3, 2),), dynamo=True, verbose=False)
    return [node.op_type for node in program.model.graph]
before = define("Before")
assert not {"onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._torchlib.ops"} & set(sys.modules)
assert "Scan" in operators(snnkern.functional.lif)
assert "Scan" in operators(before)
assert "Scan" in operators(define("After"))
"""
    )


def test_a_torch_that_registers_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says which argument does the same."""
    from torch.onnx._internal.exporter._torchlib import _torchlib_registry as registry
    from torch.onnx._internal.exporter._torchlib import ops  # noqa: F401  what makes the registry whole

    table = compat.onnx.translation_table()
    others = [meta for meta in registry._registry if meta.fx_target not in table]
    monkeypatch.setattr(registry, "_registry", others)
    monkeypatch.delattr(registry, "onnx_impl")
    monkeypatch.setattr(compat.onnx, "_registered", set())
    with pytest.warns(UserWarning, match=r"pass custom_translation_table=snnkern.compat.onnx.translation_table\(\)"):
        compat.onnx.register()
    x = noise((5, 3), torch.float32, 0)
    net = Calls([functional.lif])
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"No ONNX function found for .*lif_forward"):
        export(net, [x], [{0: T}])
    session = Session(export(net, [x], [{0: T}], custom_translation_table=table), tmp_path)
    check(session(x), net(x), exact=True)


@pytest.mark.parametrize("options", [{"optimize": False}, {"opset_version": 18}, {"opset_version": 23}], ids=str)
def test_options_of_the_exporter(options: dict[str, Any], tmp_path: Path) -> None:
    """Two neurons of a kind, whose steps have names of their own in one file; ONNX's checker agrees."""
    import onnx

    def both(x: Tensor, lif_v: Tensor) -> Tensor:
        return functional.lif(functional.lif(x, lif_v)[0] * 2)[0]

    x, v = noise((5, 3), torch.float32, 0, scale=2.0), noise((3,), torch.float32, 1)
    session = Session(export(Calls([lambda *t: [both(*t)]]), [x, v], [{0: T, 1: N}, {0: N}], **options), tmp_path)
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)
    check(session(x, v), [both(x, v)], exact=True)


def test_a_series_of_unknown_length() -> None:
    """A surrogate that was assigned is a tensor in a graph, and how many terms it has must be known."""
    layer = nn.LIF()
    layer.surrogate = surrogate.SquarewaveFourierSeries(spiking=False)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="n, the number of terms"):
        export(layer, [torch.ones(3, 2)], ({0: T},))
