"""Neurons and surrogates defined at run time: the bits of built-in ones, and every promise that those keep."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import test_batch_norm_neuron
import test_recurrent
import torch
from torch import Tensor

import snnkern
from snnkern import _nvrtc, functional, jit, nn, reference
from snnkern.codegen.emit import kernels
from snnkern.codegen.specification.neurons import Float, Neuron, Range, State
from snnkern.codegen.specification.surrogates import Surrogate

import test_amp
import test_autograd
import test_checkpointing
import test_chunks
import test_compile
import test_cuda_graphs
import test_determinism
import test_distributed
import test_export
import test_func
import test_layouts
import test_operators
import test_script
from support import (
    DEFINED,
    DTYPES,
    SURROGATE_CLASSES,
    check_same,
    fresh_process,
    inputs,
    neuron_class,
    noise,
    reset_options,
    results,
    run_fresh,
    twin,
)

HOST_CUDA = Path(__file__).resolve().parent / "host_cuda"

# The plain one; two states; functions that libraries differ in, and two states; no surrogate; no spike; a learned parameter.
BUILT_IN = ("lif", "alif", "adex", "ilif", "li", "plif")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNKERN_CACHE", str(tmp_path_factory.getbasetemp().parent / "defined"))  # of all workers
        yield


def same_bits(name: str, tensors: dict[str, Tensor], **options: Any) -> None:
    values, grads = results(functional, name, tensors, **options)
    mine, my_grads = results(functional, twin(name), tensors, **options)
    for a, b in zip((*mine, *my_grads.values()), (*values, *grads.values()), strict=True):
        assert torch.equal(a, b)


each_built_in = pytest.mark.parametrize("name", BUILT_IN)


@each_built_in
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_built_in_neuron(name: str, dtype: str, device: str) -> None:
    shapes = [(1, 3), (40, 1030)]
    if device == "cuda":  # enough for vectors: with short chunks, and with whole ones
        shapes += [(8, 2**18), (17, 2**18)]
    for reset in neuron_class(name).resets():
        for shape in shapes:
            tensors = inputs(name, shape, DTYPES[dtype], device, reset=reset)
            same_bits(name, tensors, **reset_options(name, reset), store_v_seq=shape[0] == 1)


@pytest.mark.parametrize("surrogate", SURROGATE_CLASSES)
def test_the_bits_with_every_surrogate(surrogate: str, device: str) -> None:
    kind = SURROGATE_CLASSES[surrogate]
    for spiking in (True, False) if kind.equations.has_primitive() else (True,):
        same_bits("lif", inputs("lif", (20, 7), torch.float32, device), surrogate=kind(spiking=spiking))


def test_the_bits_with_tensors_and_conventions(device: str) -> None:
    tau = torch.tensor([2.0, 3.0, 4.0, 5.0], device=device)
    for shape in ((20, 3, 4), (20, 2**16, 4)) if device == "cuda" else ((20, 3, 4),):
        tensors = {**inputs("lif", shape, torch.float32, device), "tau": tau}
        same_bits("lif", tensors)
        same_bits("lif", tensors, strict=True, max_spikes=3.0, v_min=-1.0)


@each_built_in
def test_what_is_tested_of_built_in_neurons(name: str, fresh_dynamo: None, device: str) -> None:
    """The same functions, called for the twin."""
    mine = twin(name)
    check_same(mine, inputs(mine, (20, 5), torch.float64, device))
    test_operators.test_opcheck(mine, device)
    test_operators.test_opcheck_of_backward(mine, device)
    test_operators.test_meta_gives_the_shapes_dtypes_and_strides_of_a_run(mine)
    test_func.test_grad_and_vjp(mine, device)
    test_func.test_vmap(mine, False, device)
    test_func.test_per_sample_gradients(mine, True, device)
    test_func.test_per_sample_gradients_of_a_network(mine, device)
    for reset in neuron_class(mine).resets():
        test_chunks.test_chunks_give_the_bits_of_the_whole(f"{mine}:{reset}", "f32", device)
        test_chunks.test_gradients_pass_through_the_carried_state(f"{mine}:{reset}", device)
    test_layouts.test_modules_with_the_batch_first(mine, device)
    test_determinism.test_run_to_run_equal_bits(mine, "f32", device)
    test_autograd.test_only_the_wanted_gradients(mine, device)
    test_autograd.test_several_threads(mine, device)
    test_checkpointing.test_checkpoint(mine, False, device)
    test_checkpointing.test_saved_tensors_hooks(mine, device)
    test_amp.test_autocast_keeps_the_dtype_of_x(mine, torch.bfloat16, device)
    test_amp.test_network_under_autocast(mine, torch.bfloat16, device)


@each_built_in
def test_behind_a_batch_norm(name: str, device: str) -> None:
    """As one operator: the function, the module, and what it is called by."""
    mine = twin(name)
    test_batch_norm_neuron.test_every_function(mine, device)
    test_batch_norm_neuron.test_every_neuron(mine, device)
    for role in ("{}_norm_forward", "_{}_norm_train", "{}_norm_backward"):
        assert mine in getattr(torch.ops.snnkern, role.format(mine)).default._schema.name
    x = noise((5, 3, 4), torch.float32, 1, device)
    learned = {t.name: torch.tensor(0.4, device=device) for t in neuron_class(name).learned}
    values, expected = (
        getattr(functional, f"batch_norm_{n}")(
            x, running_mean=None, running_var=None, training=True, with_sum=True, **learned
        )
        for n in (mine, name)
    )
    for a, b in zip(values, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["alif", "ilif", "plif"])
def test_recurrent_layers(name: str, device: str) -> None:
    mine = twin(name)
    for reset in neuron_class(name).resets():
        test_recurrent.test_like_the_reference(mine, reset, False, device)
    test_recurrent.test_a_module_is_the_function(mine, device)


@pytest.mark.parametrize("promise", ["ddp", "fsdp", "dtensor", "dtensor_time"])
def test_several_processes(promise: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNKERN_TEST_TWINS", "1")
    test_distributed.run(promise, device, tmp_path)


@pytest.mark.gpu
@each_built_in
def test_graphs_and_streams(name: str) -> None:
    mine = twin(name)
    test_cuda_graphs.test_capture_of_forward_and_backward(mine)
    test_cuda_graphs.test_capture_of_inference(mine)
    test_cuda_graphs.test_side_streams(mine)


@pytest.mark.gpu
def test_a_thread_that_has_used_no_cuda() -> None:
    """The driver wants a context, which a new thread has not."""
    x = noise((20, 6), torch.float32, 0, "cuda")
    function = getattr(functional, twin("lif"))
    expected = function(x)[0]
    torch.cuda.synchronize()
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ops.snnkern.twin_lif_forward(x)[0]))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["adex", "plif"])
def test_compile_export_and_script(name: str, fresh_dynamo: None, device: str) -> None:
    mine = twin(name)
    compiled = torch.compile(test_compile.run, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((20, 6), (33, 9)):
        test_compile.check_training(compiled, mine, inputs(mine, shape, torch.float32, device))
    test_export.test_network(mine, False, device)
    test_script.test_scripted_modules_with_state_and_gradients(mine, neuron_class(mine).resets()[0], device)


# ---- a neuron of a user's own ------------------------------------------------------------------------------------------


def cubic(power: int = 3, **more: Any) -> type[Neuron]:
    class Cubic(Neuron):
        """A leak that grows with a power of the potential."""

        parameters = (Float("k", 0.25, "strength of the leak", Range(0)),)

        @staticmethod
        def charge(x: Any, v: Any, p: Any) -> Any:
            leak = p.k * v
            for _ in range(power - 1):
                leak = leak * v
            return v + x - leak

    for key, value in more.items():
        setattr(Cubic, key, value)
    return Cubic


def test_everything_is_there_at_once() -> None:
    neuron: Any = snnkern.define_neuron(cubic())
    assert (neuron.name, neuron.module) == ("cubic", "Cubic")
    assert neuron.functional is functional.cubic and neuron.Module is nn.Cubic and neuron.reference is reference.cubic
    x = noise((20, 3, 4), torch.float64, 0)
    for a, b, c in zip(
        functional.cubic(x, k=0.5), torch.ops.snnkern.cubic_forward(x, k=0.5), reference.cubic(x, k=0.5), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert "k: strength of the leak, a finite number >= 0" in functional.cubic.__doc__
    assert "A leak that grows" in nn.Cubic.__doc__ and "Source" not in nn.Cubic.__doc__
    layer = nn.Cubic(k=torch.full((4,), 0.5), learn_k=True, channels=4).double()
    layer(x).sum().backward()
    assert layer.k_log.grad.shape == (4,)
    assert repr(layer).startswith("Cubic(k=")
    torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
    assert pickle.loads(pickle.dumps(layer)).k_log.shape == (4,)


def test_the_host_checks_what_the_class_says() -> None:
    snnkern.define_neuron(cubic())
    x = torch.zeros(2, 3)
    with pytest.raises((RuntimeError, ValueError), match=r"cubic\w*: k must be a finite number >= 0, got -1"):
        torch.ops.snnkern.cubic_forward(x, k=-1.0)
    with pytest.raises(RuntimeError, match=r"v_init must have the shape of x_seq\[0\], \[3\]"):
        torch.ops.snnkern.cubic_forward(x, torch.zeros(4))


def test_the_same_text_again_changes_nothing() -> None:
    first: Any = snnkern.define_neuron(cubic())
    operator, module = torch.ops.snnkern.cubic_forward, nn.Cubic
    again: Any = snnkern.define_neuron(cubic())
    assert torch.ops.snnkern.cubic_forward is operator and nn.Cubic is module
    assert again.functional is first.functional


def test_a_changed_class_replaces_the_old_one_and_old_modules_go_on() -> None:
    x = noise((20, 6), torch.float64, 0).requires_grad_()
    snnkern.define_neuron(cubic())
    layer, old = nn.Cubic(), functional.cubic
    out = layer(x)
    expected = reference.cubic(x)[0]
    snnkern.define_neuron(cubic(power=2, parameters=(Float("k", 0.125, "strength", Range(0)),)))
    assert not torch.equal(functional.cubic(x)[0], expected)
    assert torch.equal(functional.cubic(x)[0], reference.cubic(x)[0])
    assert nn.Cubic().k == 0.125
    (grad,) = torch.autograd.grad(out.sum(), x)  # a graph made before
    layer.reset()
    assert torch.equal(layer(x), expected) and torch.equal(old(x)[0], expected)
    assert torch.equal(torch.autograd.grad(layer(x).sum() * 0 + old(x)[0].sum(), x)[0], grad)
    snnkern.define_neuron(cubic())  # and back
    assert torch.equal(functional.cubic(x)[0], expected)


def test_a_neuron_with_a_step_and_states_of_its_own(device: str) -> None:
    @snnkern.define_neuron
    class TwoTraces(Neuron):
        """A threshold that two traces of the spikes raise."""

        states = (State("v", "membrane potential"), State("a", "fast trace"), State("b", "slow trace"))
        parameters = (Float("leak", 0.5, "leak", Range(0, 1)),)

        @classmethod
        def step(cls, x: Any, states: Any, p: Any, step: Any) -> Any:
            v, a, b = states
            h = v * p.leak + x
            s, v = cls.fire(h, p.v_threshold + a + b, p, step)
            return s, [v, a * 0.5 + s, b * 0.875 + s]

    DEFINED["two_traces"] = TwoTraces
    for dtype in (torch.float32, torch.float64):
        check_same("two_traces", inputs("two_traces", (40, 33), dtype, device))
    leak = torch.rand(4, dtype=torch.float64).to(device)
    tensors = {**inputs("two_traces", (20, 3, 4), torch.float64, device), "leak": leak}
    check_same("two_traces", tensors)


def test_a_built_in_name_is_taken() -> None:
    with pytest.raises(ValueError, match="Cubic: 'lif' is the name of a built-in neuron: choose another"):
        snnkern.define_neuron(cubic(name="lif"))
    with pytest.raises(ValueError, match="Cubic: 'LIF' is the name of a built-in neuron: choose another"):
        snnkern.define_neuron(cubic(module="LIF"))
    with pytest.raises(ValueError, match="Cubic: 'recurrent_lif' is the name of a built-in neuron: choose another"):
        snnkern.define_neuron(cubic(name="recurrent_lif"))
    with pytest.raises(ValueError, match="'sigmoid' is the name of a built-in surrogate"):
        snnkern.define_surrogate(type("Mine", (), {"name": "sigmoid", "gradient": staticmethod(lambda x, p: x)}))
    with pytest.raises(TypeError, match=r"derived from snnkern\.codegen.specification.neurons.Neuron, got 3"):
        snnkern.define_neuron(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"with a static gradient\(x, p\), got 3"):
        snnkern.define_surrogate(3)  # type: ignore[arg-type]


def test_what_is_refused_names_the_line() -> None:
    class Bad(Neuron):
        parameters = (
            Float("good", 0.5, "all right"),
            Float("k", -0.25, "strength of the leak", Range(0)),
        )

        @staticmethod
        def charge(x: Any, v: Any, p: Any) -> Any:
            return v * p.good - p.k + x

    class Idle:
        parameters = (Float("alpha", 1.0, "steepness"),)

        @staticmethod
        def gradient(x: Any, p: Any) -> Any:
            return x * x

    class Branching(Neuron):
        @staticmethod
        def charge(x: Any, v: Any, p: Any) -> Any:
            return x if v > 0 else v

    for define, wrong, message, line in (
        (snnkern.define_neuron, Bad, "the default of k must be a finite number >= 0, got -0.25", 'Float("k", -0.25'),
        (snnkern.define_surrogate, Idle, "its equations do not use alpha", 'parameters = (Float("alpha"'),
        (snnkern.define_neuron, Branching, "an equation cannot branch in Python", "return x if v > 0 else v"),
    ):
        with pytest.raises(ValueError, match=rf"{wrong.__name__}: {re.escape(message)}") as error:
            define(wrong)
        number = int(re.findall(rf"in line (\d+) of {re.escape(__file__)}: ", str(error.value))[0])
        assert str(error.value).rpartition(f"{__file__}: ")[2].startswith(line)
        assert Path(__file__).read_text(encoding="utf-8").splitlines()[number - 1].strip().startswith(line)


def test_dtensor_has_the_rules_whenever_it_is_imported() -> None:
    fresh_process(
        """
import torch, snnkern
from snnkern.codegen.specification.neurons import Neuron
def define(name):
    made = type(name, (Neuron,), {"charge": staticmethod(lambda x, v, p: v * 0.5 + x)})
    return snnkern.define_neuron(made)
define("Before")
import torch.distributed.tensor
define("After")
known = torch.distributed.tensor.DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
for name in ("before", "after"):
    assert getattr(torch.ops.snnkern, name + "_forward").default in known
"""
    )


# ---- surrogates --------------------------------------------------------------------------------------------------------


def bell(sharpness: float = 1.0) -> Any:
    class Bell:
        """A bell."""

        parameters = (Float("alpha", 1.0, "steepness", Range(0, low_open=True)),)

        @staticmethod
        def gradient(x: Any, p: Any) -> Any:
            return (-(p.alpha * x) * (p.alpha * x) * sharpness).exp()

    return snnkern.define_surrogate(Bell)


@pytest.mark.parametrize("name", ["lif", "alif", "twin_lif"])
def test_a_surrogate_with_any_neuron(name: str, device: str) -> None:
    twin("lif")
    kind = bell()
    assert kind is snnkern.surrogate.Bell and repr(kind(alpha=3.0)) == "Bell(spiking=True, alpha=3.0)"
    for dtype in DTYPES.values():
        check_same(name, inputs(name, (20, 33), dtype, device), surrogate=kind(alpha=3.0))
    layer = getattr(nn, neuron_class(name).module)(surrogate=kind(alpha=2.0))
    copied = pickle.loads(pickle.dumps(layer))
    assert copied.surrogate == kind(alpha=2.0)


def test_a_surrogate_with_a_primitive(device: str) -> None:
    @snnkern.define_surrogate
    class Ramp(Surrogate):
        """A logistic curve."""

        name = "ramp"

        @staticmethod
        def gradient(x: Any, p: Any) -> Any:
            return x.sigmoid() * (1 - x.sigmoid())

        @staticmethod
        def primitive(x: Any, p: Any) -> Any:
            return x.sigmoid()

    tensors = inputs("lif", (20, 33), torch.float64, device)
    check_same("lif", tensors, surrogate=Ramp())
    check_same("lif", tensors, surrogate=Ramp(spiking=False))


def test_wrong_values_of_a_surrogate() -> None:
    kind = bell()
    with pytest.raises(ValueError, match="Bell: alpha must be a finite number > 0, got -1"):
        kind(alpha=-1)
    with pytest.raises(ValueError, match="spiking must be True: this surrogate has no smooth primitive"):
        kind(spiking=False)
    x = torch.zeros(2, 3)
    with pytest.raises(
        (RuntimeError, ValueError),
        match=r"surrogate must be one of sigmoid, .*; got 'no_such'; of your own there are bell",
    ):
        torch.ops.snnkern.lif_forward(x, surrogate="no_such")
    with pytest.raises(
        (RuntimeError, ValueError), match="surrogate_params must have 1 value for surrogate 'bell', got 2"
    ):
        torch.ops.snnkern.lif_forward(x, surrogate="bell", surrogate_params=[1.0, 2.0])


def test_a_changed_surrogate_replaces_the_old_one() -> None:
    x = noise((20, 6), torch.float64, 0).requires_grad_()

    def gradient(layer: torch.nn.Module) -> Tensor:
        layer.reset()  # type: ignore[operator]
        return torch.autograd.grad(layer(x).sum(), x)[0]

    first = bell()
    layer = nn.LIF(surrogate=first())
    before = gradient(layer)
    second = bell(2.0)
    assert second is not first and bell(2.0) is second
    assert torch.equal(gradient(layer), before)
    assert not torch.equal(gradient(nn.LIF(surrogate=second())), before)
    assert bell() is first


def test_the_example(device: str) -> None:
    """It runs from anywhere, and compares with the reference itself."""
    example = Path(__file__).resolve().parent.parent / "examples" / "own_neuron.py"
    printed = fresh_process(example.read_text(encoding="utf-8"), "--device", device)
    assert f"{device}: first use" in printed and "accuracy 1.00" in printed.splitlines()[-1]


# ---- compiling ---------------------------------------------------------------------------------------------------------

RUN = """
import sys, torch, snnkern
from snnkern.codegen.specification.neurons import Float, Neuron
@snnkern.define_neuron
class Leaky(Neuron):
    "Leaky."
    parameters = (Float("keep", 0.5, "what is kept"),)
    @staticmethod
    def charge(x, v, p):
        return v * p.keep + x
x = torch.linspace(0, 2, 60, device=sys.argv[2]).reshape(20, 3).requires_grad_()
out, v = snnkern.functional.leaky(x)
if sys.argv[1] == "train":
    out.sum().backward()
print(out.sum().item())
"""


def libraries(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.suffix in (".so", ".cubin")}


def test_kernels_are_compiled_one_by_one_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("SNNKERN_CACHE", str(tmp_path))
    out = fresh_process(RUN, "infer", device)
    forward = libraries(tmp_path)
    assert len(forward) == 1  # neither other dtypes nor BPTT
    assert fresh_process(RUN, "train", device) == out
    assert libraries(tmp_path) > forward and len(libraries(tmp_path)) == 2


def test_meta_tensors_need_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNKERN_CACHE", str(tmp_path))
    snnkern.define_neuron(cubic(name="never_run", module="NeverRun"))
    x = torch.zeros(20, 3, dtype=torch.float16, device="meta", requires_grad=True)
    out, v = functional.never_run(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (out.shape, out.dtype, v.shape, v.dtype) == (x.shape, x.dtype, (3,), torch.float32)
    assert grad.is_meta and grad.shape == x.shape
    with pytest.raises((RuntimeError, ValueError), match=r"never_run.*: k must be a finite number >= 0, got -1"):
        functional.never_run(x, k=-1.0)
    assert not libraries(tmp_path)


def test_an_interrupted_compiler_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    snnkern.define_neuron(cubic(name="interrupted", module="Interrupted"))
    with monkeypatch.context() as patch:
        patch.setattr(jit, "compile_cpu", interrupt)
        with pytest.raises(RuntimeError, match="interrupted_forward: KeyboardInterrupt"):
            functional.interrupted(torch.zeros(2, 3))
    assert not functional.interrupted(torch.zeros(2, 3))[0].any()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNKERN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run_fresh(RUN, "infer", "cpu")
    assert done.returncode
    assert (
        "snnkern.leaky_forward: snnkern.jit: a kernel on CPU tensors needs a C++17 compiler, and no-such-compiler was not "
        "found: install g++ or clang, or set CXX to your compiler" in done.stderr
    )


@pytest.mark.parametrize("name", ["lif", "adex"])
@pytest.mark.parametrize("timed", [0, 3])
def test_the_text_for_nvrtc(name: str, timed: int) -> None:
    """An ordinary compiler reads it, with no header of CUDA's."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ was not found")
    atan = SURROGATE_CLASSES["atan"].equations
    kind = "tensor_" if timed else ""
    kernel = kernels.runtime_cuda_kernel(
        neuron_class(name), atan, (f"{kind}backward", "soft", "bf16"), 1, 16, timed, timed & 1
    )
    assert kernel is not None
    command = [compiler, "-std=c++17", "-fsyntax-only", "-D__CUDACC__", "-D__CUDACC_RTC__"]
    command += ["-D__grid_constant__=", f"-I{HOST_CUDA}", f"-I{jit._HEADERS}", "-x", "c++", "-"]
    done = subprocess.run(command, input=kernel, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "_folders", lambda: iter(()))
    monkeypatch.setattr(_nvrtc, "_find", _nvrtc._find.__wrapped__)


def test_nvrtc_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    no_nvrtc(monkeypatch)
    with pytest.raises(RuntimeError, match=r"needs NVRTC 13, .* was not found: pip install 'nvidia-cuda-nvrtc==13"):
        _nvrtc._find("13.0")
    with pytest.raises(
        RuntimeError, match=r"needs NVRTC 12, .* was not found: pip install 'nvidia-cuda-nvrtc-cu12==12"
    ):
        _nvrtc._find("12.6")


@pytest.mark.gpu
def test_a_gpu_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    no_nvrtc(monkeypatch)
    snnkern.define_neuron(cubic(name="without", module="Without"))
    with pytest.raises(RuntimeError, match=r"snnkern\.without\w*_forward: a kernel on CUDA tensors .* needs NVRTC"):
        functional.without(torch.zeros(3, 4, device="cuda"))


@pytest.mark.gpu
def test_the_words_of_nvrtc() -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)NVRTC does not compile the kernel bad:.*no_such.*The kernel is:\n   1 int f"
    ):
        _nvrtc.compile_cuda("bad", "int f() { return no_such; }", "sm_90")


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest goes; what was used just now stays."""
    monkeypatch.setenv("SNNKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_MOST_BYTES", 3000)
    old = time.time() - 2 * jit._KEPT_SECONDS
    for i, name in enumerate(("a.so", "b.so", "c.so", "d.so")):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (old + i, old + i))
    (tmp_path / "notes.txt").write_bytes(bytes(9000))
    library = jit.compile_cpu("two", 'extern "C" int two() { return 2; }')
    assert isinstance(library, ctypes.CDLL) and library.two() == 2
    left = libraries(tmp_path) & {"a.so", "b.so", "c.so", "d.so"}
    assert left == set() and (tmp_path / "notes.txt").exists()
    assert len(libraries(tmp_path)) == 1
