"""The neurons' FPTT and BPTT kernels against the operators and the reference, in float and half2, on CPU and CUDA."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snnkern import functional, reference, surrogate
from snnkern.auto_cuda import base, cfunction, neuron_kernel
from snnkern.auto_cuda.neuron_kernel import NeuronATGFBase
from snnkern.codegen.specification import neurons
from snnkern.codegen.specification.base import RESETS

from support import PARAMETER_TOLERANCE, TOLERANCE, error, neuron_class, noise, threads

DTYPES = {"float": torch.float32, "half2": torch.float16}
CLASSES = {"if": "IFNode", "lif": "LIFNode", "plif": "ParametricLIFNode"}
SHAPES = [(1, 1), (1, 6), (9, 5), (40, 333)]
# The neurons, each with every setting of decay_input.
SETTINGS = [("if", ()), *((neuron, (flag,)) for neuron in ("lif", "plif") for flag in (True, False))]
V_TH, TAU = 0.7, 3.0


def kernels(
    neuron: str, flags: tuple[bool, ...], dtype: str, hard: bool, detach: bool = False, function: Any = None
) -> Any:
    """The Function of a neuron, and its two kernels."""
    name, chosen = CLASSES[neuron], function or surrogate.ATan()
    forward = getattr(neuron_kernel, f"{name}FPTTKernel")(*flags, hard, dtype)
    backward = getattr(neuron_kernel, f"{name}BPTTKernel")(*flags, chosen, hard, detach, dtype)
    return getattr(neuron_kernel, f"{name}ATGF"), forward, backward


def inputs(shape: tuple[int, int], dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_seq, v_init, and the gradients in spike_seq and v_seq."""
    scales = ((shape, 1.5), (shape[1:], 1.0), (shape, 1.0), (shape, 1.0))
    x, v, gs, gv = (noise(s, DTYPES[dtype], i, device, scale) for i, (s, scale) in enumerate(scales))
    return x, v, gs, gv


def run(
    neuron: str, function: Any, forward: Any, backward: Any, data: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients in x_seq, v_init and decay."""
    x, v, gs, gv = data
    leaves = [t.clone().requires_grad_() for t in (x, v)]
    decay = torch.tensor([1 / TAU], device=x.device, requires_grad=True)
    own = {"if": (), "lif": (1 / TAU,), "plif": (decay,)}[neuron]
    outputs = function.apply(*leaves, V_TH, -0.25 if forward.hard_reset else None, *own, forward, backward)
    wanted = leaves + [decay] * (neuron == "plif")
    return list(outputs), list(torch.autograd.grad(outputs, wanted, (gs, gv)))


def everything(neuron: str, chosen: Any, data: tuple[Tensor, ...]) -> list[Tensor]:
    outputs, grads = run(neuron, *chosen, data)
    return [*outputs, *grads]


def expected(
    module: Any,
    neuron: str,
    flags: tuple[bool, ...],
    data: tuple[Tensor, ...],
    hard: bool,
    detach: bool,
    function: Any = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The same from the operators or the reference."""
    x, v, gs, gv = data
    leaves = [t.clone().requires_grad_() for t in (x, v)]
    decay = torch.tensor([1 / TAU], device=x.device, requires_grad=True)
    options: dict[str, Any] = {"decay_input": flags[0]} if flags else {}
    if neuron == "lif":
        options["tau"] = TAU
    if neuron == "plif":
        options["decay"] = decay
    outputs = getattr(module, "if_" if neuron == "if" else neuron)(
        leaves[0], v_init=leaves[1], v_threshold=V_TH, v_reset=-0.25 if hard else None, detach_reset=detach,
        surrogate=function or surrogate.ATan(), store_v_seq=True, **options,
    )  # fmt: skip
    wanted = leaves + [decay] * (neuron == "plif")
    return list(outputs), list(torch.autograd.grad(outputs, wanted, (gs, gv)))


@pytest.mark.parametrize("module", [functional, reference], ids=["operator", "reference"])
@pytest.mark.parametrize("detach", [False, True], ids=["", "detached"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("neuron", "flags"), SETTINGS)
def test_float(neuron: str, flags: tuple[bool, ...], reset: str, detach: bool, module: Any, device: str) -> None:
    """Spikes and potentials to the bit; gradients within rounding.

    On the CPU those of the integrate-and-fire neuron to the bit; on CUDA the operator divides less exactly in a surrogate.
    """
    hard = reset == "hard"
    chosen = kernels(neuron, flags, "float", hard, detach)
    for shape in SHAPES:
        data = inputs(shape, "float", device)
        outputs, grads = run(neuron, *chosen, data)
        wanted, wanted_grads = expected(module, neuron, flags, data, hard, detach)
        assert torch.equal(outputs[0], wanted[0]) and torch.equal(outputs[1], wanted[1])
        for i, (grad, want) in enumerate(zip(grads, wanted_grads, strict=True)):
            assert error(grad, want, over_time=i == 0) <= (PARAMETER_TOLERANCE if i == 2 else TOLERANCE)[torch.float32]
        if neuron == "if" and module is functional and device == "cpu":
            assert all(map(torch.equal, grads, wanted_grads))


class HalfSteps:
    """A neuron in half precision, step by step in PyTorch, which rounds each operation to half; parameters are float."""

    def __init__(self, neuron: str, flags: tuple[bool, ...], hard: bool) -> None:
        self.charge = neuron_class(neuron).charge
        self.hard = hard
        self.p = SimpleNamespace(decay=float(torch.tensor(1 / TAU)), v_reset=-0.25 if hard else 0.0)
        if flags:
            self.p.decay_input = flags[0]

    def forward(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h_seq, s_seq, v_seq = [], [], []
        for x in x_seq:
            h = self.charge(x, v, self.p)
            s = (h.float() >= V_TH).half()
            v = torch.where(s != 0, self.p.v_reset, h).half() if self.hard else h - s * V_TH
            for sequence, value in ((h_seq, h), (s_seq, s), (v_seq, v)):
                sequence.append(value)
        return torch.stack(h_seq), torch.stack(s_seq), torch.stack(v_seq)


def bptt(
    steps: HalfSteps, data: tuple[Tensor, ...], h_seq: Tensor, v_seq: Tensor, detach: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by hand, in float64, given what the forward pass in half computed."""
    x, v_init, gs, gv = (t.double() for t in data)
    decay, vr = steps.p.decay, steps.p.v_reset
    leaky = hasattr(steps.p, "decay_input")
    carry, g_decay, gx = torch.zeros_like(v_init), torch.zeros_like(v_init), []
    for t in reversed(range(len(x))):
        h = h_seq[t].double()
        before = v_init if t == 0 else v_seq[t - 1].double()
        slope, s = surrogate.ATan().gradient(h - V_TH), (h >= V_TH).double()
        dv = (1 - s) + (0 if detach else (vr - h) * slope) if steps.hard else 1 - (0 if detach else V_TH * slope)
        gh = gs[t] * slope + (gv[t] + carry) * dv
        gx.append(gh * decay if leaky and steps.p.decay_input else gh)
        carry = gh * (1 - decay) if leaky else gh
        g_decay += gh * ((x[t] if leaky and steps.p.decay_input else 0) - (before - vr))
    return torch.stack(gx[::-1]), carry, g_decay.sum()


@pytest.mark.parametrize("detach", [False, True], ids=["", "detached"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("neuron", "flags"), SETTINGS)
def test_half2(neuron: str, flags: tuple[bool, ...], reset: str, detach: bool, device: str) -> None:
    """To the bit the neuron in half-precision arithmetic; gradients within its rounding. Odd N in SHAPES."""
    hard = reset == "hard"
    chosen = kernels(neuron, flags, "half2", hard, detach)
    steps = HalfSteps(neuron, flags, hard)
    for shape in SHAPES:
        data = inputs(shape, "half2", device)
        outputs, grads = run(neuron, *chosen, data)
        h_seq, s_seq, v_seq = steps.forward(*data[:2])
        assert torch.equal(outputs[0], s_seq) and torch.equal(outputs[1], v_seq)
        wanted = bptt(steps, data, h_seq, v_seq, detach)
        for grad, want, dtype in zip(grads, wanted, (torch.float16, torch.float16, torch.float32), strict=False):
            assert grad.dtype == dtype
            found = error(grad.double().reshape(want.shape), want, over_time=want.dim() == 2)
            assert found <= 2e-2, f"{shape}: {found}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "atan", "s2nn", "q_pseudo_spike", "leaky_k_relu"])
def test_surrogate_functions_of_cfunction(name: str, dtype: str, device: str) -> None:
    """As keywords y=, x= and dtype= of a partial function."""
    values = {"sigmoid": {"alpha": 4.0}, "atan": {"alpha": 2.0}, "s2nn": {"alpha": 4.0, "beta": 1.0},
              "q_pseudo_spike": {"alpha": 2.0}, "leaky_k_relu": {"leak": 0.1, "k": 1.0}}[name]  # fmt: skip
    function = functools.partial(getattr(cfunction, f"{name}_backward"), **values)
    classes = {
        "sigmoid": "Sigmoid",
        "atan": "ATan",
        "s2nn": "S2NN",
        "q_pseudo_spike": "QPseudoSpike",
        "leaky_k_relu": "LeakyKReLU",
    }
    chosen = getattr(surrogate, classes[name])(**values)
    data = inputs((1, 64), dtype, device)  # one step: what half2 and float32 compute differs by rounding alone
    _, grads = run("lif", *kernels("lif", (True,), dtype, True, True, function), data)
    _, wanted = expected(functional, "lif", (True,), tuple(t.float() for t in data), True, True, chosen)
    for grad, want in zip(grads, wanted, strict=True):
        assert error(grad.float(), want) <= (1e-5 if dtype == "float" else 1e-2)


def test_parameters_are_not_rounded_to_half(device: str) -> None:
    """A threshold just above 1 is not 1, and a decay that half cannot hold still counts."""
    fire, forward, backward = kernels("if", (), "half2", True)
    x = torch.ones(1, 2, dtype=torch.float16, device=device)
    spikes, _ = fire.apply(x, torch.zeros_like(x[0]), 1.0001, 0.0, forward, backward)
    assert spikes.tolist() == [[0.0, 0.0]]
    leak, forward, backward = kernels("lif", (True,), "half2", True)
    _, v = leak.apply(x * 30000, torch.zeros_like(x[0]), 1.0, 0.0, 1e-8, forward, backward)
    assert v[0, 0].item() == pytest.approx(3e-4, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_decay_is_deterministic(dtype: str, device: str) -> None:
    chosen = kernels("plif", (True,), dtype, True)
    data = inputs((20, 3001), dtype, device)
    first = run("plif", *chosen, data)[1]
    for _ in range(3):
        assert all(map(torch.equal, run("plif", *chosen, data)[1], first))


def test_an_odd_number_of_neurons_does_not_count_its_padding(device: str) -> None:
    """The last neuron is not counted twice in the gradient of decay, and does not depend on having a neighbour."""
    chosen = kernels("plif", (True,), "half2", True)
    data = inputs((9, 5), "half2", device)
    even = tuple(torch.cat([t, torch.zeros_like(t[..., :1])], dim=-1) for t in data)
    outputs, grads = run("plif", *chosen, data)
    wide, wide_grads = run("plif", *chosen, even)
    alone = run("plif", *chosen, tuple(t[..., -1:] for t in even))[1][2]
    assert torch.equal(outputs[0], wide[0][:, :5]) and torch.equal(grads[0], wide_grads[0][:, :5])
    torch.testing.assert_close(grads[2], wide_grads[2] - alone, rtol=1e-5, atol=1e-5)


def test_any_layout(device: str) -> None:
    chosen = kernels("lif", (True,), "float", True)
    data = inputs((9, 6), "float", device)
    turned = tuple(t.t().contiguous().t() if t.dim() == 2 else t for t in data)
    for a, b in zip(everything("lif", chosen, data), everything("lif", chosen, turned), strict=True):
        assert torch.equal(a, b)


def test_special_values(device: str) -> None:
    """NaN never spikes; a hard reset is a choice, so that an infinite potential resets to a number."""
    for dtype, torch_dtype in DTYPES.items():
        fire, forward, backward = kernels("if", (), dtype, True)
        x = torch.tensor([[float("nan"), float("inf"), float("-inf"), 1.0]], dtype=torch_dtype, device=device)
        spikes, v = fire.apply(x, torch.zeros_like(x[0]), 1.0, 0.0, forward, backward)
        assert spikes.tolist() == [[0.0, 1.0, 0.0, 1.0]]
        assert v[0].isnan().tolist() == [True, False, False, False] and v[0, 1:].tolist() == [0.0, float("-inf"), 0.0]


def test_no_gradient_wanted(device: str) -> None:
    fire, forward, backward = kernels("if", (), "float", True)
    x, v, *_ = inputs((3, 4), "float", device)
    spikes, _ = fire.apply(x, v, V_TH, 0.0, forward, backward)
    assert not spikes.requires_grad


def test_the_sequence_must_not_change_before_the_backward_pass(device: str) -> None:
    fire, forward, backward = kernels("plif", (True,), "float", True)
    x, v, *_ = inputs((3, 4), "float", device)
    x = x.requires_grad_() * 1.0
    decay = torch.tensor(0.5, device=device, requires_grad=True)
    spikes, _ = fire.apply(x, v, V_TH, 0.0, decay, forward, backward)
    x.detach().mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward_are_captured_in_a_graph(dtype: str) -> None:
    chosen = kernels("plif", (True,), dtype, True)
    x, v, gs, gv = inputs((9, 5), dtype, "cuda")
    leaves = [t.clone().requires_grad_() for t in (x, v, torch.tensor([1 / TAU], device="cuda"))]

    def step() -> list[Tensor]:
        outputs = chosen[0].apply(*leaves[:2], V_TH, -0.25, leaves[2], *chosen[1:])
        return [*outputs, *torch.autograd.grad(outputs, leaves, (gs, gv))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for t in (leaves[0], gs):
        t.data.copy_(noise((9, 5), t.dtype, 7, "cuda"))
    leaves[2].data.fill_(0.45)  # read on the device
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


# ---- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_reset_and_fire_as_text(dtype: str, device: str) -> None:
    """In half2, operands are half2 unless named as scalars."""
    kernel = base.CKernel1D("parts")
    names = ("h", "spike", "v_reset", "v_th", "hard", "soft", "fired")
    for name in names:
        kernel.add_param(f"{dtype} *", name)
    at = {name: f"{name}[index]" for name in names}
    kernel.core = (
        neuron_kernel.neuronal_hard_reset(at["hard"], at["h"], at["spike"], at["v_reset"], dtype)
        + neuron_kernel.neuronal_soft_reset(at["soft"], at["h"], at["spike"], at["v_th"], dtype)
        + neuron_kernel.neuronal_fire(at["fired"], at["h"], at["v_th"], dtype)
    )
    h = torch.tensor([0.5, 1.0, 1.5, float("inf")], dtype=DTYPES[dtype], device=device)
    values = {name: torch.empty_like(h) for name in names}
    values |= {"h": h, "v_th": torch.ones_like(h), "v_reset": torch.full_like(h, -0.5), "spike": (h >= 1).to(h.dtype)}
    kernel.simple_call(**values)
    assert values["hard"].tolist() == [0.5, -0.5, -0.5, -0.5]
    assert values["soft"].tolist() == [0.5, 0.0, 0.5, float("inf")]
    assert values["fired"].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_scalar_to_cupy_and_new_tensors() -> None:
    for dtype in DTYPES.values():
        x_seq = torch.randn(3, 4).to(dtype)
        py_dict: dict[str, Any] = {"x_seq": x_seq, "a": 0.1, "n": 3, "flag": True, "none": None}
        neuron_kernel.scalar_to_cupy(py_dict)
        assert py_dict["x_seq"] is x_seq and py_dict["flag"] is True and py_dict["none"] is None
        assert py_dict["a"].dtype == torch.float32 and py_dict["a"].item() == torch.tensor(0.1).item()
        assert py_dict["n"].dtype == torch.int32 and py_dict["n"].item() == 3
        neuron_kernel.new_tensors(("p", "q"), py_dict)
        for name in ("p", "q"):
            assert torch.equal(py_dict[name], torch.zeros_like(x_seq)) and py_dict[name].dtype == dtype
        assert py_dict["p"].data_ptr() != py_dict["q"].data_ptr()
    with pytest.raises(ValueError, match=re.escape("n must be less than 2^31")):
        neuron_kernel.scalar_to_cupy({"x_seq": torch.zeros(1), "n": 2**31})
    with pytest.raises(TypeError, match=re.escape("x_seq must be torch.float or torch.half, got torch.float64")):
        neuron_kernel.scalar_to_cupy({"x_seq": torch.zeros(1).double()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_pre_forward(dtype: str, device: str) -> None:
    x_seq, v_init, *_ = inputs((3, 5), dtype, device)
    given = {"x_seq": x_seq.requires_grad_(), "v_init": v_init, "v_th": 1.0, "v_reset": None}
    requires_grad, blocks, per_block, py_dict = NeuronATGFBase.pre_forward(given)
    n = 3 if dtype == "half2" else 5
    assert requires_grad and (blocks, per_block) == (1, base.CUDA_THREADS)
    assert (int(py_dict["N"]), int(py_dict["numel"])) == (n, 3 * n)
    assert py_dict.keys() == {"x_seq", "v_th", "h_seq", "spike_seq", "v_v_seq", "N", "numel"}
    for name in ("h_seq", "spike_seq"):
        assert torch.equal(py_dict[name], torch.zeros_like(x_seq))
    assert torch.equal(py_dict["v_v_seq"], torch.cat([v_init[None], torch.zeros_like(x_seq)]))
    assert given.keys() == {"x_seq", "v_init", "v_th", "v_reset"}  # as it was
    assert not NeuronATGFBase.pre_forward({**given, "x_seq": x_seq.detach(), "v_reset": 0.0})[0]


def test_ctx_save() -> None:
    saved: list[Tensor] = []
    ctx = SimpleNamespace(save_for_backward=lambda *tensors: saved.extend(tensors))
    x = torch.zeros(1)
    NeuronATGFBase.ctx_save(ctx, False, x, blocks=3)
    assert not saved and not hasattr(ctx, "blocks")
    NeuronATGFBase.ctx_save(ctx, True, x, blocks=3)
    assert saved == [x] and ctx.blocks == 3


def test_wrong_arguments(device: str) -> None:
    fire, forward, backward = kernels("if", (), "float", True)
    x = torch.zeros(3, 4, device=device)
    for error_type, message, arguments in (
        (TypeError, "x_seq must be a torch.Tensor, got list", (x.tolist(), x[0])),
        (TypeError, "v_init must be a torch.Tensor, got NoneType", (x, None)),
        (ValueError, "x_seq must be on the CPU or on a CUDA device, got meta", (x.to("meta"), x[0].to("meta"))),
        (ValueError, "x_seq must be [T, N] with T >= 1, got (3, 2, 2)", (x.view(3, 2, 2), x[0])),
        (ValueError, "x_seq must be [T, N] with T >= 1, got (0, 4)", (x[:0], x[0])),
        (ValueError, "v_init must be [N] = (4,), got (3,)", (x, x[:, 0])),
        (TypeError, "v_init must be torch.float32 on ", (x, x[0].double())),
        (TypeError, "x_seq must be torch.float or torch.half, got torch.float64", (x.double(), x[0].double())),
        (TypeError, "x_seq is 'const float *': expected dtype float32, got float16", (x.half(), x[0].half())),
    ):
        with pytest.raises(error_type, match=re.escape(message)):
            fire.apply(*arguments, 1.0, 0.0, forward, backward)
    soft = kernels("if", (), "float", False)
    for first, second, v_reset, message in (
        (forward, backward, None, "v_reset must be a number with the kernel IFNodeFPTTKernel_hard_float, got None"),
        (forward, soft[2], 0.0, "v_reset must be None with the kernel IFNodeBPTTKernel_soft_float, got 0.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fire.apply(x, x[0], 1.0, v_reset, first, second)
    quadratic = QuadraticForward(True, "float")
    with pytest.raises(ValueError, match=re.escape("missing ['a', 'decay'], unknown none")):
        fire.apply(x, x[0], 1.0, 0.0, quadratic, backward)
    learned, forward, backward = kernels("plif", (True,), "float", True)
    for wrong in (0.5, torch.zeros(2), torch.tensor(0.5).double()):
        with pytest.raises(TypeError, match=re.escape("decay must be a torch.float tensor of one element, got")):
            learned.apply(x, x[0], 1.0, 0.0, wrong, forward, backward)
    with pytest.raises(ValueError, match="dtype must be 'float' or 'half2', got 'double'"):
        neuron_kernel.IFNodeFPTTKernel(True, "double")
    for wrong in ("atan", surrogate.ATan):
        with pytest.raises(TypeError, match="surrogate_function must be called with y=, x=, dtype="):
            neuron_kernel.IFNodeBPTTKernel(wrong, True, False, "float")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"surrogate_function must have spiking=True: these kernels spike, got ATan\("):
        neuron_kernel.IFNodeBPTTKernel(surrogate.ATan(spiking=False), True, False, "float")


@pytest.mark.parametrize("neuron", neurons.NEURONS, ids=lambda n: n.name)
def test_a_neuron_with_a_step_of_its_own_is_refused(neuron: type[neurons.Neuron]) -> None:
    """Its charge alone would be another neuron: Izhikevich's without the recovery current is the quadratic one."""
    classes = neuron.__mro__[: neuron.__mro__.index(neurons.Neuron)]
    own = [f for f in ("step", "delayed", "fire", "fire_reset") if any(f in vars(c) for c in classes)]
    assert own or neuron.name in ("if", "lif", "plif", "qif", "eif", "lapicque")
    makers = (
        lambda: type("Forward", (neuron_kernel.NeuronFPTTKernel,), {"neuron": neuron})(False, "float"),
        lambda: type("Backward", (neuron_kernel.NeuronBPTTKernel,), {"neuron": neuron})(
            surrogate.ATan(), False, False, "float"
        ),
    )
    for make in makers:
        if not own and neuron.name != "lapicque":
            assert "h_seq[t]" in make().full_codes
            continue
        message = f"{neuron.__name__} overrides {', '.join(own)}, so these kernels would compute another neuron"
        error_type, text = (TypeError, message) if own else (ValueError, "cname 'dt' is reserved")
        with pytest.raises(error_type, match=text):
            make()


@pytest.mark.parametrize("name", ["delayed", "fire", "fire_reset"])
def test_a_spike_or_reset_of_its_own_is_refused(name: str) -> None:
    own = type("Own", (neurons.Neuron,), {"name": "own", name: staticmethod(lambda *arguments: arguments[0])})
    derived = type("Derived", (own,), {"charge": staticmethod(lambda x, v, p: v + x)})
    with pytest.raises(TypeError, match=f"Kernel: Derived overrides {name}, so these kernels would compute another"):
        type("Kernel", (neuron_kernel.NeuronFPTTKernel,), {"neuron": derived})(True, "float")


def test_a_neuron_that_these_kernels_have_no_place_for() -> None:
    two = type("Two", (neurons.IF,), {"states": (neurons.POTENTIAL, neurons.State("w", "another"))})
    soft = type("Soft", (neurons.IF,), {"firing": (neurons.V_THRESHOLD, neurons.DETACH_RESET)})
    for neuron, error_type, message in (
        (two, TypeError, "Kernel: Two has 2 states, so these kernels would compute another neuron"),
        (soft, ValueError, "Kernel: hard_reset must be False, since Soft has no v_reset"),
    ):
        with pytest.raises(error_type, match=message):
            type("Kernel", (neuron_kernel.NeuronFPTTKernel,), {"neuron": neuron})(True, "float")
    assert type("Kernel", (neuron_kernel.NeuronFPTTKernel,), {"neuron": soft})(False, "float").full_codes


@pytest.mark.parametrize("name", ["over_th", "grad_s_to_h", "grad_v", "grad_h", "grad_h_next_to_v", "grad_h_to_x"])
def test_a_parameter_does_not_hide_behind_a_variable(name: str) -> None:
    """Within the step, a variable of the text would stand for the parameter."""
    with pytest.raises(ValueError, match=f"cname '{name}' is reserved in NeuronBPTTKernel_hard_float"):
        neuron_kernel.NeuronBPTTKernel(surrogate.ATan(), True, False, "float").add_scalar(name)


def test_switches_are_true_or_false() -> None:
    atan = surrogate.ATan()
    for name, make in (
        ("hard_reset", lambda v: neuron_kernel.IFNodeFPTTKernel(v, "float")),
        ("hard_reset", lambda v: neuron_kernel.IFNodeBPTTKernel(atan, v, False, "float")),
        ("detach_reset", lambda v: neuron_kernel.IFNodeBPTTKernel(atan, True, v, "float")),
        ("decay_input", lambda v: neuron_kernel.LIFNodeFPTTKernel(v, True, "float")),
    ):
        for wrong in ("soft", None, 1, np.int64(0)):
            with pytest.raises(TypeError, match=re.escape(f"{name} must be True or False, got {wrong!r}")):
                make(wrong)
        assert make(np.bool_(True)).full_codes == make(True).full_codes


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.float64, torch.tensor], ids=lambda k: k.__name__)
@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_numbers_of_any_type(neuron: str, kind: Any, device: str) -> None:
    """A threshold of 1 is that of 1.0, forward and back."""
    function, forward, backward = kernels(neuron, (True,) if neuron == "lif" else (), "float", True)
    x, v, gs, gv = inputs((9, 5), "float", device)
    results = []
    for number in (float, kind):
        leaves = [t.clone().requires_grad_() for t in (x, v)]
        given = [number(n) for n in ((1, 0, 1) if neuron == "lif" else (1, 0))]
        outputs = function.apply(*leaves, *given, forward, backward)
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, (gs, gv))])
    assert all(map(torch.equal, *results))


def test_kernels_that_do_not_go_together(device: str) -> None:
    """Refused before the forward pass, where the gradients would be those of another neuron."""
    x = torch.zeros(3, 4, device=device)
    atan = surrogate.ATan()
    _, integrate, integrate_back = kernels("if", (), "float", True)
    leak, forward, backward = kernels("lif", (True,), "float", True)
    half = neuron_kernel.LIFNodeBPTTKernel(True, atan, True, False, "half2")
    other = neuron_kernel.LIFNodeBPTTKernel(False, atan, True, False, "float")
    both = "LIFNodeFPTTKernel_hard_decay_input_float and LIFNodeBPTTKernel_hard"
    for first, second, decay, message in (
        (forward, half, 0.5, f"{both}_decay_input_half2 must have the same dtype, got 'float' and 'half2'"),
        (forward, other, 0.5, f"{both}_float must have the same decay_input, got True and False"),
        (integrate, backward, 0.5, "must have the same charge, got IF.charge and LIF.charge"),
        (integrate, integrate_back, 0.5, "decay: neither of IFNodeFPTTKernel_hard_float and IFNodeBPTTKernel_hard_float has"),
        (forward, backward, torch.tensor(0.5, requires_grad=True), "decay requires a gradient, which LIFNodeBPTTKernel"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            leak.apply(x, x[0], 1.0, 0.0, decay, first, second)
    written = WrittenBackward(atan, True, False, "float")
    with pytest.raises(ValueError, match=re.escape("missing ['a', 'decay']")):
        neuron_kernel.IFNodeATGF.apply(x, x[0], 1.0, 0.0, integrate, written)


def test_base_classes_say_what_to_override() -> None:
    with pytest.raises(
        NotImplementedError, match="NeuronFPTTKernel must override neuronal_charge, or name its equations as `neuron`"
    ):
        neuron_kernel.NeuronFPTTKernel(True, "float").neuronal_charge()
    backward = neuron_kernel.NeuronBPTTKernel(surrogate.ATan(), True, False, "float")
    for name in ("grad_h_next_to_v", "grad_h_to_x"):
        with pytest.raises(NotImplementedError, match=f"NeuronBPTTKernel must override {name}"):
            getattr(backward, name)()


def test_the_text_follows_the_settings() -> None:
    kernel = neuron_kernel.IFNodeBPTTKernel(surrogate.ATan(), True, False, "float")
    before = kernel.full_codes
    assert kernel.full_codes is before
    kernel.detach_reset = True
    detached = kernel.full_codes
    assert detached != before and "v_reset - h_seq" in before and "v_reset - h_seq" not in detached
    kernel.surrogate_function = surrogate.Sigmoid().cuda_codes
    assert kernel.full_codes != detached


# ---- a neuron of one's own --------------------------------------------------------------------------------------------


class Quadratic(neurons.Neuron):
    """A neuron whose derivatives depend on v: h = v + (x + a v (v - 0.5)) * decay."""

    name = "quadratic"
    parameters = (neurons.TAU, neurons.Float("a", 1.0, "strength"))

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v + (x + p.a * v * (v - 0.5)) * p.decay


class QuadraticForward(neuron_kernel.NeuronFPTTKernel):
    neuron = Quadratic


class QuadraticBackward(neuron_kernel.NeuronBPTTKernel):
    neuron = Quadratic


class WrittenForward(neuron_kernel.NeuronFPTTKernel):
    """The same neuron in CUDA code, for float."""

    def __init__(self, hard_reset: bool, dtype: str) -> None:
        super().__init__(hard_reset, dtype)
        self.add_scalar("decay")
        self.add_scalar("a")

    def neuronal_charge(self) -> str:
        return "h_seq[t] = v_v_seq[t] + (x_seq[t] + a * v_v_seq[t] * (v_v_seq[t] - 0.5f)) * decay;"


class WrittenBackward(neuron_kernel.NeuronBPTTKernel):
    def __init__(self, surrogate_function: Any, hard_reset: bool, detach_reset: bool, dtype: str) -> None:
        super().__init__(surrogate_function, hard_reset, detach_reset, dtype)
        self.add_scalar("decay")
        self.add_scalar("a")
        self.add_param(f"const {dtype} *", "v_v_seq")

    def grad_h_next_to_v(self) -> str:
        return "const float grad_h_next_to_v = 1.0f + a * (2.0f * v_v_seq[t + dt] - 0.5f) * decay;"

    def grad_h_to_x(self) -> str:
        return "const float grad_h_to_x = decay;"


class QuadraticATGF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v_init: Tensor, a: float, forward: Any, backward: Any
    ) -> tuple[Tensor, Tensor]:
        return NeuronATGFBase.run_forward(
            ctx, forward, backward, x_seq=x_seq, v_init=v_init, v_th=1.0, v_reset=0.1, decay=0.5, a=a
        )

    @staticmethod
    def backward(ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor) -> tuple[Tensor | None, ...]:
        grads = NeuronATGFBase.run_backward(ctx, grad_spike_seq, grad_v_seq)
        return grads["x_seq"], grads["v_init"], None, None, None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_neuron_of_ones_own(dtype: str, device: str) -> None:
    x, v, gs, gv = inputs((7, 5), dtype, device)
    pairs = [(QuadraticForward, QuadraticBackward)] + [(WrittenForward, WrittenBackward)] * (dtype == "float")
    wide = [t.double().requires_grad_() for t in (x, v)]
    p = SimpleNamespace(a=0.4, decay=0.5)
    potential, spikes, potentials = wide[1], [], []
    for step in wide[0]:
        h = Quadratic.charge(step, potential, p)
        spikes.append(Fire.apply(h - 1.0))
        potential = (1 - spikes[-1]) * h + spikes[-1] * 0.1
        potentials.append(potential)
    wanted = (torch.stack(spikes), torch.stack(potentials))
    wanted_grads = torch.autograd.grad(wanted, wide, (gs.double(), gv.double()))
    for make_forward, make_backward in pairs:
        leaves = [t.clone().requires_grad_() for t in (x, v)]
        function = functools.partial(cfunction.atan_backward, alpha=2.0)
        outputs = QuadraticATGF.apply(
            *leaves, 0.4, make_forward(True, dtype), make_backward(function, True, False, dtype)
        )
        grads = torch.autograd.grad(outputs, leaves, (gs, gv))
        assert torch.equal(outputs[0].double(), wanted[0])
        for a, b in ((outputs[1].detach(), wanted[1].detach()), *zip(grads, wanted_grads, strict=True)):
            assert error(a.double(), b) <= (1e-5 if dtype == "float" else 1e-2)


class Gated(neurons.Neuron):
    """The input gates the potential: the derivative in v is the next input."""

    name = "gated"

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v * x + x


def test_nothing_is_read_beyond_the_last_step(device: str) -> None:
    forward = type("GatedForward", (neuron_kernel.NeuronFPTTKernel,), {"neuron": Gated})(True, "float")
    backward = type("GatedBackward", (neuron_kernel.NeuronBPTTKernel,), {"neuron": Gated})(
        surrogate.ATan(), True, False, "float"
    )
    x, v, gs, gv = inputs((4, 6), "float", device)
    followed = torch.cat([x, torch.full_like(x, float("nan"))])[:4].requires_grad_()  # in memory, NaN comes after it
    outputs = neuron_kernel.IFNodeATGF.apply(followed, v.requires_grad_(), 1.0, 0.0, forward, backward)
    for grad in torch.autograd.grad(outputs, (followed, v), (gs, gv)):
        assert grad.isfinite().all()


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = surrogate.ATan().gradient(ctx.saved_tensors[0])
        return grad * slope


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    chosen = kernels("plif", (True,), "float", True)
    data = inputs((9, 3001), "float", "cpu")
    first = everything("plif", chosen, data)
    for count in (1, 2, 3):
        with threads(count):
            assert all(map(torch.equal, everything("plif", chosen, data), first))
