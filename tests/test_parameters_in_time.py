"""Any number of any neuron may be a tensor with time, [T, ...], with a gradient in each step; a neuron may need more inputs than x."""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import functional, jit, nn, reference, surrogate
from snnkern.codegen.emit import kernels, schema
from snnkern.codegen.specification.neurons import Float, Input, Neuron, Range

import test_amp
import test_compile
import test_func
import test_operators
from support import (
    DEFINED,
    DTYPES,
    NEURON_NAMES,
    TOLERANCE,
    check_same,
    fresh_process,
    function,
    inputs,
    neuron_class,
    noise,
    operator,
    state_dtype,
    threads,
)
from test_cuda_kernels_on_host import HOST_CUDA, KernelArgs
from test_tensor_parameters import numbers, options, value

STEP = (2, 3, 4, 5)  # [N, C, H, W]
each_reset = pytest.mark.parametrize("case", [f"{n}:{r}" for n in NEURON_NAMES for r in neuron_class(n).resets()])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNKERN_CACHE", str(tmp_path_factory.getbasetemp().parent / "in_time"))  # of all workers
        yield


def given(
    neuron: str, reset: str, steps: int, dtype: torch.dtype, device: str, shapes: list[tuple[int, ...]], **more: Any
) -> dict[str, Tensor]:
    """Every parameter of a neuron as a tensor with time, of these shapes in turn."""
    out = {}
    for i, p in enumerate(numbers(neuron, reset, **more)):
        out[p.name] = value(p, (steps, *shapes[i % len(shapes)]), dtype, device, i)
    for i, t in enumerate(neuron_class(neuron).required()):
        out[t.name] = (0.3 + 0.2 * noise((steps, *shapes[i % len(shapes)]), dtype, i, device)).clamp(0.1, 0.9)
    return out


@each_reset
def test_all_parameters_of_each_neuron(case: str, device: str) -> None:
    """Over several checkpoints; a state may start where a parameter is in the first step."""
    neuron, reset = case.split(":")
    shapes = [STEP, (3, 1, 1), (1, 1, 1, 5), (2, 1, 1, 1), (3, 1, 5), (1, 1, 1, 1)]
    for steps, init in ((1, True), (5, True), (37, False)):
        tensors = inputs(neuron, (steps, *STEP), torch.float64, device, reset=reset)
        if not init:
            tensors = {name: t for name, t in tensors.items() if not name.endswith("_init")}
        tensors |= given(
            neuron, reset, steps, torch.float64, device, [(1,) * (4 - len(s)) + s for s in shapes], conventions=False
        )
        others = {name: o for name, o in options(neuron, reset).items() if name not in tensors}
        check_same(neuron, tensors, parameter_tolerance=1e-9, **others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neuron", ["lif", "alif", "plif"])
def test_every_dtype_and_layout(neuron: str, dtype: str, device: str) -> None:
    for reset in neuron_class(neuron).resets():
        for layout in ("contiguous", "channels_last", "batch_first"):
            tensors = inputs(neuron, (19, *STEP), DTYPES[dtype], device, reset=reset)
            x = tensors["x_seq"].detach()
            if layout == "channels_last":
                x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
            elif layout == "batch_first":
                x = x.transpose(0, 1).contiguous().transpose(0, 1)
            tensors["x_seq"] = x
            # Of the dtype and shape of x they are read as x is: all of them, or some beside others.
            for of, shapes in ((state_dtype(x.dtype), [STEP]), (x.dtype, [STEP]), (x.dtype, [STEP, (1, 3, 1, 1)])):
                tensors |= given(neuron, reset, 19, of, device, shapes, conventions=False)
                others = {name: o for name, o in options(neuron, reset).items() if name not in tensors}
                check_same(
                    neuron,
                    tensors,
                    parameter_tolerance=TOLERANCE[of] if of.itemsize == 2 else None,
                    store_v_seq=layout == "channels_last",
                    **others,
                )


@pytest.mark.parametrize("p", numbers("lif"), ids=lambda p: p.name)
def test_one_parameter_beside_numbers_and_tensors_without_time(p: Float, device: str) -> None:
    tensors = inputs("lif", (20, 6, 5), torch.float32, device)
    tensors[p.name] = value(p, (20, 6, 5), torch.float32, device, 1)
    others = {name: o for name, o in options("lif", "hard").items() if name != p.name}
    check_same("lif", tensors, **others)
    other = next(q for q in numbers("lif") if q is not p)
    tensors[other.name] = value(other, (5,), torch.float32, device, 2)
    others.pop(other.name, None)
    check_same("lif", tensors, **others)


def test_with_conventions_and_a_smooth_spike(device: str) -> None:
    tensors = inputs("lif", (20, 6, 5), torch.float32, device)
    tensors["v_threshold"] = value(numbers("lif")[1], (20, 1, 5), torch.float32, device, 1)
    check_same("lif", tensors, strict=True, delay_reset=True, v_reset=None)
    check_same("lif", tensors, max_spikes=3.0, v_min=-1.0, v_reset=None)
    check_same("lif", tensors, surrogate=surrogate.Sigmoid(spiking=False))


def test_constant_in_time_is_as_without_time(device: str) -> None:
    """To the bit; also a tensor whose time has one step, which gets a gradient of its own shape."""
    x = noise((20, 4, 6), torch.float32, 0, device)
    tau = torch.linspace(2, 4, 6, device=device)
    expected = functional.lif(x, tau=tau)
    for shape in ((1, 1, 6), (20, 1, 6), (20, 4, 6)):
        found = functional.lif(x, tau=tau.expand(shape))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), shape
    for steps in (1, 20):
        one = tau.reshape(1, 1, 6).clone().requires_grad_()
        functional.lif(x[:steps], tau=one)[0].sum().backward()
        plain = tau.clone().requires_grad_()
        functional.lif(x[:steps], tau=plain)[0].sum().backward()
        assert one.grad is not None and plain.grad is not None
        assert one.grad.shape == one.shape and torch.equal(one.grad.reshape(-1), plain.grad)


def test_in_a_process_that_has_defined_no_neuron(device: str) -> None:
    """What compiles is there with `import snnkern`, and what it needs is imported when it is asked for."""
    fresh_process(
        """
import sys, torch, snnkern
assert not {"snnkern.define", "snnkern.jit", "snnkern._nvrtc"} & set(sys.modules)
spikes, v = snnkern.functional.lif(torch.ones(4, 2, device=sys.argv[1]), tau=torch.full((4, 1), 2.0, device=sys.argv[1]))
assert v.tolist() == [0.9375, 0.9375] and "snnkern.define" not in sys.modules
""",
        device,
    )


def test_no_neuron_at_all(device: str) -> None:
    x = torch.zeros(3, 0, 2, device=device, requires_grad=True)
    tau = torch.full((3, 1, 2), 2.0, device=device, requires_grad=True)
    spikes, _ = functional.lif(x, tau=tau)
    spikes.sum().backward()
    assert spikes.shape == x.shape and tau.grad is not None and not tau.grad.any()


def test_bits_do_not_depend_on_threads() -> None:
    runs = []
    for count in (1, 2, 3):
        with threads(count):
            leaves = {
                "x_seq": noise((20, 8, 1500), torch.float32, 0),
                "tau": 2 + noise((20, 8, 1500), torch.float32, 1).abs(),
            }
            for t in leaves.values():
                t.requires_grad_()
            outputs = functional.lif(**leaves)
            runs.append([*outputs, *torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), list(leaves.values()))])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_opcheck(device: str) -> None:
    for shape in ((20, 1, 3), (20, 4, 3), (1, 4, 3)):
        x = noise((20, 4, 3), torch.float32, 0, device).requires_grad_()
        decay = torch.full(shape, 0.4, device=device).requires_grad_()
        threshold = torch.full((20, 4, 1), 0.8, device=device)
        torch.library.opcheck(operator("lif"), (x,), {"decay_tensor": decay, "v_threshold_tensor": threshold})


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_any_number_of_steps(dynamic: bool, device: str, fresh_dynamo: None) -> None:
    def run(x: Tensor, tau: Tensor) -> Tensor:
        return functional.lif(x * 1.5, tau=tau + 1, surrogate=surrogate.ATan())[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for steps in (20, 35):
        leaves = [
            noise((steps, 4, 3), torch.float32, 0, device),
            1 + noise((steps, 1, 3), torch.float32, 1, device).abs(),
        ]
        for t in leaves:
            t.requires_grad_()
        expected, found = (f(*leaves) for f in (run, compiled))
        assert torch.equal(expected, found)
        for a, b in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (expected, found)), strict=True):
            assert torch.equal(a, b)


def test_vmap_and_per_sample_gradients(device: str) -> None:
    """Over x, with the parameter for all; over the parameter; over both."""
    x, tau = noise((5, 20, 4, 3), torch.float32, 0, device), 2 + noise((5, 20, 1, 3), torch.float32, 1, device).abs()

    def run(x: Tensor, tau: Tensor) -> Tensor:
        return functional.lif(x, tau=tau, surrogate=surrogate.ATan())[0]

    for dims in ((0, None), (None, 0), (0, 0)):
        args = [t if dim == 0 else t[0] for t, dim in zip((x, tau), dims, strict=True)]
        found = torch.func.vmap(run, in_dims=dims)(*args)
        grads = torch.func.vmap(torch.func.grad(lambda *a: run(*a).sum(), argnums=(0, 1)), in_dims=dims)(*args)
        for i in range(5):
            sample = [t[i] if dim == 0 else t for t, dim in zip(args, dims, strict=True)]
            assert torch.equal(found[i], run(*sample))
            alone = torch.func.grad(lambda *a: run(*a).sum(), argnums=(0, 1))(*sample)
            for a, b in zip(grads, alone, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"tau": torch.full((3, 2, 4), 2.0)},
            RuntimeError,
            r"tau must broadcast against x_seq\[0\], \[2, 4\], or with time against x_seq, \[7, 2, 4\]; got shape \[3, 2, 4\]",
        ),
        (
            {"tau": torch.full((7, 1, 2, 4), 2.0)},
            RuntimeError,
            r"tau must broadcast against x_seq\[0\], \[2, 4\], or with time against x_seq, \[7, 2, 4\]; got shape \[7, 1, 2, 4\]",
        ),
        ({"tau": torch.full((7, 1, 4), 0.5)}, ValueError, "tau must be a finite number >= 1 or inf, got 0.5"),
    ],
)
def test_errors(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    for module in (functional, reference):
        with pytest.raises(kind, match=text):
            module.lif(torch.zeros(7, 2, 4), **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_enough_neurons_for_vectors(dtype: str) -> None:
    count = 2**17
    for steps in (8, 17):
        tensors = inputs("lif", (steps, count), DTYPES[dtype], "cuda")
        state = tensors["v_init"].dtype
        tensors["tau"] = 2 + noise((steps, count), state, 1, "cuda").abs()
        tensors["v_threshold"] = 1 + noise((steps * count + 1,), state, 2, "cuda").abs()[1:].view(steps, count)
        check_same("lif", tensors)
        threshold = tensors["v_threshold"].to(DTYPES[dtype])  # read in vectors, as x is
        check_same("lif", {**tensors, "v_threshold": threshold}, parameter_tolerance=TOLERANCE[DTYPES[dtype]])


@pytest.mark.gpu
def test_a_graph_of_cuda() -> None:
    x, tau = noise((20, 70), torch.float32, 0, "cuda").requires_grad_(), torch.full((20, 70), 2.0, device="cuda")

    def run() -> list[Tensor]:
        leaves = [x, tau.detach().requires_grad_()]
        spikes, v = functional.lif(leaves[0], tau=leaves[1])
        return [spikes.detach(), *torch.autograd.grad(spikes.sum() + v.sum(), leaves)]

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    tau += noise((20, 70), torch.float32, 1, "cuda").abs()
    graph.replay()
    for a, b in zip(captured, run(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The kernel of a text for CUDA, run thread by thread on the host: run(arguments, blocks, threads)."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ was not found: it compiles the kernels for CUDA")
    folder = tmp_path_factory.mktemp("on_host")

    def build(text: str) -> Any:
        loop = """
extern "C" void run(const snnkern::KernelArgs* a, unsigned blocks, unsigned threads) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) snnkern::cuda::snnkern_made(*a);
}
"""
        library = folder / f"{len(list(folder.iterdir()))}.so"
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
        flags += ["-D__CUDACC__", "-D__CUDACC_RTC__", "-D__grid_constant__=", f"-I{HOST_CUDA}", f"-I{jit._HEADERS}"]
        command = [compiler, *flags, "-x", "c++", "-", "-o", str(library)]
        done = subprocess.run(command, input=text + loop, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library)).run

    return build


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("like_x", [False, True])
def test_kernels_for_cuda_on_the_host(dtype: str, width: int, like_x: bool, on_host: Callable[[str], Any]) -> None:
    """The bits of the CPU: parameters with time, and the first of them from which the potential starts."""
    steps, count, T = 37, 10, DTYPES[dtype]
    if dtype == "f64" and width > 1:
        pytest.skip("float64 has no vectors")
    R = state_dtype(T)
    leaves = {
        "x_seq": noise((steps, count), T, 0),
        "decay": (0.4 + 0.1 * noise((steps, count) if like_x else (steps, 1), R, 1)).to(T if like_x else R),
        "v_reset": (0.1 * noise((steps, count), R, 2)).to(T if like_x else R),
    }
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    x, decay, v_reset = leaves.values()
    spikes, v = torch.ops.snnkern.lif_forward(x, decay_tensor=decay, v_reset_tensor=v_reset, surrogate="atan")
    incoming = [noise((steps, count), T, 3), noise((count,), R, 4)]
    expected = torch.autograd.grad([spikes, v], list(leaves.values()), incoming)

    lif, atan = neuron_class("lif"), surrogate.ATan.equations
    symbols = [schema.symbol(p) for p in schema.floats_of(lif)]
    args = KernelArgs(T=steps, N=count, inner=count)
    for k, p in enumerate(schema.floats_of(lif)):
        assert isinstance(p, Float)
        args.params[k] = 1 / p.number if p.inverse else p.number
    args.flags[0] = -1  # decay_input
    args.surrogate[0] = surrogate.ATan().alpha
    in_time = 0
    for name, t in (("decay", decay), ("v_reset", v_reset)):
        k = symbols.index(name)
        in_time |= 1 << k
        size = 1 if t.shape[1] == 1 else count
        args.tensor[k].data, args.tensor[k].inner, args.tensor[k].size, args.tensor[k].step = (
            t.data_ptr(),
            1,
            size,
            size,
        )
    args.x = x.data_ptr()

    def run(name: str, steps: int) -> None:
        kernel = (f"tensor_{name}", "hard", dtype)
        used = atan if name == "backward" else None
        text = kernels.runtime_cuda_kernel(lif, used, kernel, width, steps, in_time, in_time if like_x else 0)
        assert text is not None
        on_host(text)(ctypes.byref(args), 1, 64)

    made, last = torch.empty_like(spikes), torch.empty_like(v)
    checkpoints = torch.empty((steps - 1) // 16, count, dtype=R)
    args.spike, args.state[0], args.checkpoints = made.data_ptr(), last.data_ptr(), checkpoints.data_ptr()
    run("forward", 8)
    assert torch.equal(made, spikes) and torch.equal(last, v)

    kind = T if like_x else R
    grads = [torch.full((steps, count), math.nan, dtype=d) for d in (T, kind, kind)]
    args.grad_spike, args.grad_state[0], args.grad_x = (
        incoming[0].data_ptr(),
        incoming[1].data_ptr(),
        grads[0].data_ptr(),
    )
    for name, g in (("decay", grads[1]), ("v_reset", grads[2])):
        args.grad_param[symbols.index(name)] = g.data_ptr()
    run("backward", 16)
    for g, e in zip(grads, expected, strict=True):
        assert torch.equal(g.sum(1, keepdim=True) if e.shape[1] == 1 else g, e)


# ---- a neuron that needs more inputs than x ----------------------------------------------------------------------------


@snnkern.define_neuron
class Selective(Neuron):
    """A neuron whose decay and threshold a layer computes anew in each step."""

    inputs = (Input("decay", "what is forgotten in a step", Range(0, 1)), Input("level", "what h is compared with"))
    parameters = (Float("gain", 1.0, "factor of x"),)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v - v * p.decay + x * p.gain - p.level


def test_declared_inputs_equal_the_reference(device: str) -> None:
    for dtype in DTYPES.values():
        x = noise((20, 3, 5), dtype, 0, device)
        for shape in ((20, 3, 5), (20, 1, 5), (5,), ()):
            decay = noise(shape, state_dtype(dtype), 1, device).abs().clamp(0.1, 0.9)
            level = 0.3 * noise((20, 3, 1), state_dtype(dtype), 2, device)
            leaves = [t.detach().clone().requires_grad_() for t in (x, decay, level)]
            results = []
            for f in (Selective.functional, Selective.reference):
                spikes, v = f(*leaves)
                results.append([spikes, v, *torch.autograd.grad(spikes.float().sum() + (v * v).sum(), leaves)])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-3 if dtype.itemsize == 2 else 1e-4, atol=1e-4)
            assert torch.equal(results[0][0], results[1][0])


def test_what_is_tested_of_built_in_neurons(device: str, fresh_dynamo: None) -> None:
    """The same functions, called for a neuron that needs more inputs."""
    DEFINED["selective"] = Selective
    test_operators.test_opcheck("selective", device)
    test_operators.test_opcheck_of_backward("selective", device)
    test_operators.test_meta_gives_the_shapes_dtypes_and_strides_of_a_run("selective")
    test_func.test_grad_and_vjp("selective", device)
    test_func.test_vmap("selective", False, device)
    test_func.test_per_sample_gradients("selective", True, device)
    test_amp.test_autocast_keeps_the_dtype_of_x("selective", torch.bfloat16, device)
    compiled = torch.compile(test_compile.run, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((20, 6), (33, 9)):
        test_compile.check_training(compiled, "selective", inputs("selective", shape, torch.float32, device))


def test_the_module_takes_them_with_each_call() -> None:
    x, decay, level = noise((20, 3, 5), torch.float32, 0), torch.rand(20, 3, 5), torch.zeros(5)
    layer, batch_first = Selective.Module(gain=2.0), Selective.Module(gain=2.0, batch_first=True)
    expected, v = Selective.functional(x, decay, level, gain=2.0)
    assert torch.equal(layer(x, decay, level), expected) and torch.equal(layer.v, v)
    assert torch.equal(batch_first(x.transpose(0, 1), decay.transpose(0, 1), level), expected.transpose(0, 1))
    again = Selective.functional(x, decay, level, v, gain=2.0)[0]
    assert torch.equal(layer(x, decay, level), again)  # from the kept state
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.jit.script(layer)):
        other.reset()
        assert torch.equal(other(x, decay, level), expected)
    with pytest.raises(TypeError, match="level"):
        layer(x, decay)


class Gated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.current, self.gate, self.neuron = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), Selective.Module()

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neuron(self.current(x), self.gate(x).sigmoid(), torch.zeros(()))
        return spikes


def test_a_network_traced_compiled_and_exported(fresh_dynamo: None) -> None:
    net, x = Gated(), noise((20, 2, 4), torch.float32, 0)
    expected = net(x)
    for made in (torch.fx.symbolic_trace(net), torch.compile(net, fullgraph=True, backend="aot_eager")):
        nn.reset(net)
        assert torch.equal(made(x), expected)
    nn.reset(net)
    assert torch.equal(torch.export.export(net, (x,)).module()(x), expected)


def test_declared_inputs_are_checked() -> None:
    x = torch.zeros(7, 2, 4)
    with pytest.raises(RuntimeError, match=r"decay must broadcast against x_seq\[0\]"):
        Selective.functional(x, torch.zeros(3), torch.zeros(()))
    with pytest.raises(TypeError, match=r"level must be a tensor, got 0\.5"):
        Selective.functional(x, torch.zeros(()), 0.5)
    with pytest.raises(ValueError, match="decay must be a finite number >= 0 and <= 1, got 2"):
        Selective.functional(x, torch.full((7, 1, 1), 2.0), torch.zeros(()))
    assert function(functional, "lif") is functional.lif  # the built-in ones are as they were


def test_a_definition_that_does_not_use_its_input_is_refused() -> None:
    class Idle(Neuron):
        """It has an input too many."""

        inputs = (Input("decay", "not used"),)

        @staticmethod
        def charge(x: Any, v: Any, p: Any) -> Any:
            return v + x

    with pytest.raises(ValueError, match="its equations do not use decay"):
        snnkern.define_neuron(Idle)
