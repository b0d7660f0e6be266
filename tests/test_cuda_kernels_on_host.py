"""The CUDA kernels, run on the host: no GPU and no nvcc, only g++.

host_cuda/cuda_runtime.h makes a launch a loop over blocks and threads, so g++ compiles the generated .cu files
unchanged.

What these tests promise, of every neuron, reset and dtype: the kernels give the bits that the CPU library gives
(where exp or the like comes in, the same within rounding); every vector width and chunk length runs, and which one is
as designed; all of every output is written and nothing beside it; nothing beside an input is read into a result; no
thread needs another's work.

What they cannot show: speed, registers and spills, the conversions that are PTX (elementary.h), the library functions
of the device, the driver, and how a real GPU orders memory accesses.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import itertools
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import snnkern  # noqa: F401  loads the operators
from snnkern.codegen.build import ARITHMETIC, KERNELS_STANDARD
from snnkern.codegen.emit import kernels, schema, step
from snnkern.codegen.specification.base import RESETS, Float, Neuron, Surrogate
from snnkern.codegen.specification.check import LIMITS
from snnkern.codegen.specification.neurons import NEURONS, Driven
from snnkern.codegen.specification.surrogates import SURROGATES

from support import KINDS, calm

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
HOST_CUDA = HERE / "host_cuda"

# With and without library functions, with one parameter and with four; the loops are the same for all.
USED = ("sigmoid", "atan", "piecewise_quadratic", "s2nn", "multi_gaussian")
# The loops do not know the surrogate, so a part of the grid will do for the others.
WHOLE_GRID = ("sigmoid", "atan")
ATAN = next(s for s in SURROGATES if s.name == "atan")  # no library function: results are the same to the bit
STRAIGHT_THROUGH = next(s for s in SURROGATES if s.name == "straight_through")  # the same everywhere, -inf included
DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}


class Sample(kernels.Selection):
    """Every neuron with the surrogates of WHOLE_GRID; lif with all of USED."""

    def of(self, neuron: type[Neuron]) -> kernels.Selection:
        names = USED if neuron.name == "lif" else WHOLE_GRID
        whole = super().of(neuron)
        return replace(whole, surrogates=tuple(s for s in whole.surrogates if s is None or s.name in names))


SELECTION = Sample()
# (neuron, reset) of all neurons, and of those with a surrogate.
ALL = [(n, r) for n in NEURONS for r in n.resets()]
WITH_SURROGATE = [(n, r) for n, r in ALL if n.has_surrogate]
# (neuron, reset, surrogate): the loops do not know the neuron either, so other neurons take a part of the grid as well.
BACKWARD = [(n, r, s) for n, r in ALL for s in SELECTION.of(n).surrogates]
LOOPS = [n for n in NEURONS if n.name in KINDS]

TIMES = (1, 3, 4, 5, 8, 9, 16, 17, 33, 40)
SIZES = (1, 2, 3, 7, 8, 64, 130)
OFFSETS = (0, 1, 2)  # elements between an aligned address and a tensor
CHECKPOINT_PERIOD = 16

# The vector widths, with the rows loaded ahead or, for BPTT, the chunk length, that a dtype uses.
NARROW = (1, 16)
HALF = {NARROW, (4, 8), (2, 16)}
FORWARD_VARIANTS = {"f32": {NARROW, (4, 4)}, "f64": {NARROW}, "f16": {NARROW, (4, 4)}, "bf16": {NARROW, (4, 4)}}
BACKWARD_VARIANTS = {"f32": {NARROW, (2, 8), (2, 16)}, "f64": {NARROW}, "f16": HALF, "bf16": HALF}


STATES, PARAMS, FLAGS, SURROGATE_PARAMS = LIMITS.values()

# ---- the library -----------------------------------------------------------------------------------------------------


class ParamTensor(ctypes.Structure):
    """ParamTensor of csrc/kernels/multistep.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("inner", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("step", ctypes.c_int64),
    )


class NormArgs(ctypes.Structure):
    """NormArgs of csrc/kernels/multistep.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "inner")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("mean", "var", "weight", "bias", "residual", "y", "grad_y")),
        *((name, ctypes.c_void_p) for name in ("statistics", "sums")),
        ("count", ctypes.c_double),
        ("partial", ctypes.c_void_p),
    )


class KernelArgs(ctypes.Structure):
    """KernelArgs of csrc/kernels/multistep.h."""

    _fields_ = (
        ("T", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("state_init", ctypes.c_void_p * STATES),
        ("state_start", ctypes.c_double * STATES),
        ("spike", ctypes.c_void_p),
        ("state", ctypes.c_void_p * STATES),
        ("store_seq", ctypes.c_bool),
        ("checkpoints", ctypes.c_void_p),
        ("grad_spike", ctypes.c_void_p),
        ("grad_state", ctypes.c_void_p * STATES),
        ("grad_x", ctypes.c_void_p),
        ("grad_init", ctypes.c_void_p * STATES),
        ("grad_param", ctypes.c_void_p * PARAMS),
        ("params", ctypes.c_double * PARAMS),
        ("tensor", ParamTensor * PARAMS),
        ("flags", ctypes.c_int64 * FLAGS),
        ("surrogate_id", ctypes.c_int32),
        ("surrogate", ctypes.c_double * SURROGATE_PARAMS),
        ("norm", NormArgs),
        ("stage", ctypes.c_void_p),
    )


class RecurrentArgs(ctypes.Structure):
    """RecurrentArgs of csrc/kernels/multistep.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "stride")),
        ("finite", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("forward", "backward", "bias", "spike_init", "grad_input", "check")),
        *((name, ctypes.c_int32) for name in ("dtype", "rows", "blocks")),
        *((name, ctypes.c_void_p) for name in ("tape", "carried", "product")),
        *((name, ctypes.c_int64) for name in ("begin", "end")),
    )


RecurrentKernel = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(KernelArgs), RecurrentArgs, ctypes.c_void_p)


class CudaRecurrence(ctypes.Structure):
    """CudaRecurrence of csrc/kernels/multistep.h."""

    _fields_ = (
        *((name, RecurrentKernel) for name in ("forward", "record", "backward", "alone")),
        *((name, ctypes.c_int) for name in ("tape", "carried")),
    )


@dataclass(frozen=True)
class HostCuda:
    """The kernels, behind host_cuda/run.cpp."""

    library: Any

    def mode(self, run: bool = True, reverse: bool = False, multiprocessors: int = 0) -> None:
        """Whether threads run, or launches are only noted; in which order; and how many threads it takes to be busy."""
        self.library.host_cuda_mode(run, reverse)
        self.library.host_cuda_multiprocessors(multiprocessors)

    def call(self, case: Case, args: KernelArgs, backward: bool, stream: int | None = None) -> str | None:
        """Launches a kernel; returns its error text."""
        kind = "tensor_" if case.tensors or case.dtype == "f64" else ""
        kind = "general_" if case.conventions else kind if case.spiking else "smooth_"
        pass_name = kind + ("backward" if backward else "forward")
        kernel = (pass_name, case.reset, case.dtype)
        own = case.surrogate and not case.by_number and kernels.compiled_in(case.neuron, case.surrogate, kernel)
        error = self.library.host_cuda(
            NEURONS.index(case.neuron),
            SURROGATES.index(case.surrogate) if own else -1,
            list(kernels.PASSES).index(pass_name),
            RESETS.index(case.reset),
            list(DTYPES).index(case.dtype),
            ctypes.byref(args),
            stream,
        )
        return error.decode() if error else None

    def recurrence(self, case: Case) -> CudaRecurrence:
        """What feeds the spikes of a case's neuron back."""
        kind = "tensor_" if case.tensors or case.dtype == "f64" else ""
        kind = "general_" if case.conventions else kind if case.spiking else "smooth_"
        place = (
            NEURONS.index(case.neuron),
            list(kernels.PASSES).index(kind + "forward"),
            RESETS.index(case.reset),
            1 if case.dtype == "f64" else 0,
        )
        return CudaRecurrence.from_address(self.library.host_cuda_recurrence(*place))

    def variant(self) -> tuple[int, ...]:
        """(vector width, rows loaded ahead) of the last forward launch, (vector width, chunk length) of a backward one."""
        name = self.library.host_cuda_last_kernel().decode()
        found = re.search(r"(?:forward|backward)_kernel<.*, (\d+), (\d+), [\w:]+>\(", name)
        assert found, name
        return tuple(int(number) for number in found.groups())


def build(compiler: str, folder: Path, flags: tuple[str, ...] = ("-O1",)) -> Path:
    """Compiles the generated kernels, laid out as in the repository, into one shared library."""
    csrc = folder / "csrc"
    csrc.mkdir()
    for room in ("kernels", "torch"):
        (csrc / room).symlink_to(CSRC / room)
    sources = []
    for path, text in kernels.files(SELECTION).items():
        target = csrc / "generated" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if path.startswith("cuda/"):
            sources.append(target)

    # As they are built: the results must not depend on contraction.
    common = [compiler, KERNELS_STANDARD, "-fPIC", *ARITHMETIC, *flags]
    common += ["-I", str(HOST_CUDA), "-I", str(csrc)]

    def compile_one(source: Path) -> str:
        made = folder / ("_".join(source.parts[-2:]) + ".o")
        language = ["-D__CUDACC__", "-x", "c++"] if source.suffix == ".cu" else []
        run_command([*common, *language, "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, HOST_CUDA / "run.cpp"]))
    library = folder / "host_cuda.so"
    run_command([*common, "-shared", *objects, "-o", str(library), "-ldl"])
    return library


def run_command(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def load(path: Path) -> HostCuda:
    library = ctypes.CDLL(str(path))
    library.host_cuda_sizeof_args.restype = ctypes.c_size_t
    library.host_cuda_sizeof_recurrent.restype = ctypes.c_size_t
    library.host_cuda_recurrence.restype = ctypes.c_void_p
    library.host_cuda.restype = ctypes.c_char_p
    library.host_cuda.argtypes = [ctypes.c_int] * 5 + [ctypes.POINTER(KernelArgs), ctypes.c_void_p]
    library.host_cuda_mode.argtypes = [ctypes.c_bool, ctypes.c_bool]
    library.host_cuda_last_kernel.restype = ctypes.c_char_p
    library.host_cuda_last_stream.restype = ctypes.c_void_p
    return HostCuda(library)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> HostCuda:
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ was not found: it compiles the CUDA kernels for the host")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers: one compiles, the others wait
    with (folder / "host_cuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "host_cuda" / "host_cuda.so"
        if not library.exists():
            library.parent.mkdir()
            build(compiler, library.parent)
    return load(library)


@pytest.fixture
def host_cuda(built: HostCuda) -> Iterator[HostCuda]:
    built.mode()
    yield built
    built.mode()


# ---- one call --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    neuron: type[Neuron] = NEURONS[0]
    reset: str = "hard"
    dtype: str = "f32"
    surrogate: type[Surrogate] | None = SURROGATES[0]
    T: int = 5
    N: int = 8
    offset: int = 0
    outer: int = 1  # sequences lie in memory as [outer, T, N / outer]
    spiking: bool = True
    store_seq: bool = False
    init: bool = True
    flags: tuple[bool, ...] = ()  # of the neuron, in order; False beyond
    training: bool = True
    grad_spike: bool = True
    grad_state: bool = True
    tensors: bool = False  # every parameter has a value for each neuron
    conventions: bool = False  # those of other libraries are in play
    by_number: bool = False  # the kernel calls the surrogate, also where one has it compiled in

    @property
    def type(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def state_type(self) -> torch.dtype:
        return torch.float64 if self.dtype == "f64" else torch.float32

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.T, self.N) if self.store_seq else (self.N,)

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        return ((self.T - 1) // CHECKPOINT_PERIOD * len(self.neuron.states), self.N)


# Values that are no powers of two, so that every operation rounds.
VALUES = {"tau": 1.7, "decay": 0.37, "v_threshold": 0.7, "v_reset": -0.3}
CONVENTIONS = {"max_spikes": 3.0, "v_min": -0.4}


def value_of(case: Case, name: str, default: float | None = 0.0) -> float | None:
    if name == "v_reset" and case.reset == "soft":
        return None
    return (VALUES | CONVENTIONS if case.conventions else VALUES).get(name, default)


@dataclass
class Inputs:
    """The tensors of a case."""

    x: torch.Tensor
    init: list[torch.Tensor]
    learned: list[torch.Tensor]
    grad_spike: torch.Tensor
    grad_state: list[torch.Tensor]
    tensors: dict[str, torch.Tensor]  # of the parameters that are not learned


def floats_of(neuron: type[Neuron]) -> list[Any]:
    return [*neuron.learned, *neuron.numbers()]


def inputs_of(case: Case, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def parameter(p: Any) -> torch.Tensor:
        value = value_of(case, p.name, getattr(p, "default", 0.0)) or 0.0
        value = 1 / value if getattr(p, "inverse", None) else value
        if p.range.integer:
            return torch.full((case.N,) if case.tensors else (), value, dtype=case.state_type)
        factors = 1 - 0.1 * torch.rand((case.N,) if case.tensors else (), generator=generator, dtype=torch.float64)
        return (value * (factors if case.tensors else 1.0 + 0 * factors)).to(case.state_type)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    scale = calm(case.neuron.name, case.reset)
    return Inputs(
        x=(normal((case.T, case.N), case.type) + 0.5) * scale,
        init=[normal((case.N,), case.state_type) * scale for _ in case.neuron.states],
        learned=[parameter(p) for p in case.neuron.learned],
        grad_spike=normal((case.T, case.N), case.type),
        grad_state=[normal(case.state_shape, case.state_type) for _ in case.neuron.states],
        tensors={
            f"{p.symbol}_tensor": parameter(p)
            for p in case.neuron.numbers()
            if case.tensors
            and (p.name != "v_reset" or case.reset == "hard")
            and (p not in case.neuron.conventions or case.conventions)
        },
    )


schema_of = functools.cache(schema.arguments)


def operator_arguments(case: Case, inputs: Inputs) -> list[Any]:
    """The arguments of `<neuron>_forward`, in the order of its schema."""
    learned, init, flags = iter(inputs.learned), iter(inputs.init), iter(case.flags)
    defaults = {p.name: p.default for p in case.neuron.numbers()}
    values = {
        "Input": lambda _: inputs.x,
        "Learned": lambda _: next(learned),
        "State": lambda _: next(init) if case.init else None,
        "Flag": lambda _: next(flags, False),
        "Float": lambda name: value_of(case, name, defaults[name]),
        "Reset": lambda name: value_of(case, name),
        "Surrogate": lambda _: case.surrogate.name,
        "SurrogateParams": lambda _: None,
        "StoreSeq": lambda _: case.store_seq,
        "Spiking": lambda _: case.spiking,
        "Tensor": inputs.tensors.get,
        "SurrogateTensor": lambda _: None,
    }
    return [values[argument.kind](argument.name) for argument in schema_of(case.neuron)]


def cpu_forward(case: Case, inputs: Inputs) -> list[torch.Tensor]:
    """Spikes, states and, of a training pass, the checkpoints: from the CPU library."""
    name = f"_{case.neuron.name}_train" if case.training else f"{case.neuron.name}_forward"
    return list(getattr(torch.ops.snnkern, name)(*operator_arguments(case, inputs)))


def cpu_backward(case: Case, inputs: Inputs, checkpoints: torch.Tensor) -> list[torch.Tensor]:
    """The gradients in x, in the learned parameters and in the initial states: from the CPU library."""
    grads = [inputs.grad_spike if case.grad_spike else None]
    grads += [g if case.grad_state else None for g in inputs.grad_state]
    operator = getattr(torch.ops.snnkern, f"{case.neuron.name}_backward")
    return list(operator(*grads, checkpoints, *operator_arguments(case, inputs)))


GUARD = 2048  # more than a row


@dataclass
class Memory:
    """Tensors in guarded memory: a stray write shows in a guard zone, a stray read brings NaN into the results."""

    offset: int
    guarded: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # (memory, what must be left of it)

    def _zone(self, shape: tuple[int, ...], dtype: torch.dtype, poison: int) -> tuple[torch.Tensor, torch.Tensor]:
        size, start = math.prod(shape) * dtype.itemsize, GUARD + self.offset * dtype.itemsize
        memory = torch.full((start + size + GUARD,), poison, dtype=torch.uint8)
        assert memory.data_ptr() % 16 == 0
        return memory, memory[start : start + size].view(dtype).view(shape)

    def input(self, values: torch.Tensor) -> int:
        """The address of a copy that must not change, among NaN."""
        memory, inside = self._zone(tuple(values.shape), values.dtype, 0xFF)
        inside.copy_(values)
        self.guarded.append((memory, memory.clone()))
        return inside.data_ptr()

    def output(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        memory, inside = self._zone(shape, dtype, 0xCD)
        before, after = memory[: inside.data_ptr() - memory.data_ptr()], memory[-GUARD:]
        self.guarded += [(zone, zone.clone()) for zone in (before, after)]
        return inside

    def check(self) -> None:
        for memory, want in self.guarded:
            assert torch.equal(memory, want), "a kernel wrote to an input, or beside an output"


def lying(case: Case, sequence: torch.Tensor) -> torch.Tensor:
    """A sequence [T, N] as it lies in memory."""
    return sequence.unflatten(1, (case.outer, -1)).transpose(0, 1).contiguous()


def standing(case: Case, memory: torch.Tensor) -> torch.Tensor:
    """What lies in memory as a sequence [T, N]."""
    return memory.view(case.outer, case.T, -1).transpose(0, 1).flatten(1)


def common_arguments(case: Case, inputs: Inputs, memory: Memory) -> KernelArgs:
    """What forward and backward share, as host.cpp fills it in."""
    args = KernelArgs(T=case.T, N=case.N, inner=case.N // case.outer, store_seq=case.store_seq)
    args.x = memory.input(lying(case, inputs.x))
    args.surrogate_id = SURROGATES.index(case.surrogate) if case.surrogate else -1
    for i, p in enumerate(floats_of(case.neuron)):
        if isinstance(p, Float):
            value = value_of(case, p.name, p.number) or 0.0
            args.params[i] = 1 / value if p.inverse else value
            tensor = inputs.tensors.get(f"{p.symbol}_tensor")
        else:
            tensor = inputs.learned[i]
        if tensor is not None:
            args.tensor[i] = ParamTensor(memory.input(tensor), 1, tensor.numel())
    for i, value in enumerate(case.flags):
        args.flags[i] = -1 if value else 0
    for k, state in enumerate(case.neuron.states):
        args.state_start[k] = value_of(case, state.start) or 0.0
        args.state_init[k] = memory.input(inputs.init[k]) if case.init else None
    for i, p in enumerate(case.surrogate.parameters if case.surrogate else ()):
        args.surrogate[i] = p.default
    return args


def host_forward(host_cuda: HostCuda, case: Case, inputs: Inputs) -> list[torch.Tensor]:
    """cpu_forward, by the CUDA kernel."""
    memory = Memory(case.offset)
    args = common_arguments(case, inputs, memory)
    spike = memory.output((case.T, case.N), case.type)
    states = [memory.output(case.state_shape, case.state_type) for _ in case.neuron.states]
    checkpoints = memory.output(case.checkpoint_shape, case.state_type)
    args.spike = spike.data_ptr()
    for k, state in enumerate(states):
        args.state[k] = state.data_ptr()
    args.checkpoints = checkpoints.data_ptr() if case.training and checkpoints.numel() else None
    assert host_cuda.call(case, args, backward=False) is None
    memory.check()
    if case.store_seq:
        states = [standing(case, state) for state in states]
    return [standing(case, spike), *states, *([checkpoints] if case.training else [])]


def host_backward(host_cuda: HostCuda, case: Case, inputs: Inputs, checkpoints: torch.Tensor) -> list[torch.Tensor]:
    """cpu_backward, by the CUDA kernel, before the sum: each neuron's share of a learned parameter's gradient."""
    memory = Memory(case.offset)
    args = common_arguments(case, inputs, memory)
    args.checkpoints = memory.input(checkpoints) if checkpoints.numel() else None
    args.grad_spike = memory.input(lying(case, inputs.grad_spike)) if case.grad_spike else None
    grad_x = memory.output((case.T, case.N), case.type)
    args.grad_x = grad_x.data_ptr()
    grad_init = [memory.output((case.N if case.init else 0,), case.state_type) for _ in case.neuron.states]
    for k, grad in enumerate(grad_init):
        incoming = lying(case, inputs.grad_state[k]) if case.store_seq else inputs.grad_state[k]
        args.grad_state[k] = memory.input(incoming) if case.grad_state else None
        args.grad_init[k] = grad.data_ptr() if case.init else None
    shares = [memory.output((case.N,), case.state_type) for _ in case.neuron.learned]
    for k, share in enumerate(shares):
        args.grad_param[k] = share.data_ptr()
    given = []
    for i, p in enumerate(floats_of(case.neuron)):
        if isinstance(p, Float):
            tensor = inputs.tensors.get(f"{p.symbol}_tensor")
            given.append(memory.output((0 if tensor is None else case.N,), case.state_type))
            args.grad_param[i] = None if tensor is None else given[-1].data_ptr()
    assert host_cuda.call(case, args, backward=True) is None
    memory.check()
    return [standing(case, grad_x), *shares, *grad_init, *given]


def summed(case: Case, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The shares in learned parameters added up, as host.cpp does."""
    if case.tensors:
        return gradients
    last = 1 + len(case.neuron.learned)
    return [gradients[0], *(share.clone().sum() for share in gradients[1:last]), *gradients[last:]]


# ---- comparison ------------------------------------------------------------------------------------------------------

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Where a library function differs in the last bits, and a number format rounds that.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@functools.cache
def uses_library(surrogate: type[Surrogate] | None, spiking: bool) -> bool:
    """Whether a function comes in that the two devices take from different libraries."""
    if surrogate is None:
        return False
    gradient, _, primitive = step.surrogate_header(surrogate).partition(" primitive(")
    return bool(re.search(r"math::(?!abs|floor|quotient)", gradient if spiking else gradient + primitive))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = BITS[a.dtype.itemsize]
    if torch.equal(a.view(kind), b.view(kind)):
        return True
    return bool(((a.view(kind) == b.view(kind)) | (a.isnan() & b.isnan())).all())  # a NaN's sign means nothing


def check(case: Case, got: list[torch.Tensor], want: list[torch.Tensor], exact: bool) -> None:
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (i, case)
        if exact:
            assert same_bits(a, b), f"result {i} of {case}\ngot  {a}\nwant {b}"
        else:
            tolerance = TOLERANCE[a.dtype]
            torch.testing.assert_close(
                a,
                b,
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
                msg=lambda text, i=i: f"result {i} of {case}\n{text}",
            )


def check_forward(host_cuda: HostCuda, case: Case, seed: int) -> None:
    inputs = inputs_of(case, seed)
    exact = step.is_exact(case.neuron) and (case.spiking or not uses_library(case.surrogate, case.spiking))
    check(case, host_forward(host_cuda, case, inputs), cpu_forward(case, inputs), exact)


def check_backward(host_cuda: HostCuda, case: Case, seed: int) -> None:
    inputs = inputs_of(case, seed)
    checkpoints = cpu_forward(case, inputs)[-1]
    got = summed(case, host_backward(host_cuda, case, inputs, checkpoints))
    exact = step.is_exact(case.neuron) and not uses_library(case.surrogate, case.spiking)
    check(case, got, cpu_backward(case, inputs, checkpoints), exact)


def switches(case: Case, backward: bool) -> list[dict[str, Any]]:
    """Every way to set the run-time switches, in an order of the case's own."""
    flags = sum(p not in case.neuron.conventions or case.conventions for p in case.neuron.flags())
    names = ["store_seq", "init"] + (["grad_spike", "grad_state"] if backward else ["training"])
    out = [
        {"flags": values[:flags], **dict(zip(names, values[flags:], strict=True))}
        for values in itertools.product((False, True), repeat=flags + len(names))
    ]
    surrogate = case.surrogate.name if case.surrogate else "none"
    random.Random(f"{case.neuron.name} {case.reset} {case.dtype} {surrogate}").shuffle(out)
    return out


def grid(base: Case, backward: bool, each: int) -> Iterator[Case]:
    """Every length, size and offset, each with some settings of the switches: over all tests, with all of them."""
    settings = itertools.cycle(switches(base, backward))
    for T, N, offset in itertools.product(TIMES, SIZES, OFFSETS):
        for setting in itertools.islice(settings, each):
            yield replace(base, T=T, N=N, offset=offset, **setting)


def line(base: Case, backward: bool) -> Iterator[Case]:
    """Every setting of the switches, each with some length and size."""
    shapes = zip(itertools.cycle(TIMES), itertools.cycle(SIZES), strict=False)
    for (T, N), setting in zip(shapes, switches(base, backward), strict=False):
        yield replace(base, T=T, N=N, **setting)


# ---- tests -----------------------------------------------------------------------------------------------------------


def name(value: Any) -> str:
    return value if isinstance(value, str) else value.name if value else "none"


each_loop = pytest.mark.parametrize("neuron", LOOPS, ids=name)
each_reset = pytest.mark.parametrize(("neuron", "reset"), ALL, ids=name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_arguments_have_the_size_of_the_struct(host_cuda: HostCuda) -> None:
    assert host_cuda.library.host_cuda_sizeof_args() == ctypes.sizeof(KernelArgs)


@each_dtype
@each_reset
def test_forward(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str) -> None:
    ran = set()
    cases = grid(Case(neuron, reset, dtype), backward=False, each=3)
    for seed, case in enumerate(itertools.islice(cases, 0, None, 1 if neuron in LOOPS else 13)):
        check_forward(host_cuda, case, seed)
        ran.add(host_cuda.variant())
    assert ran == FORWARD_VARIANTS[dtype]


@pytest.mark.parametrize(("neuron", "reset", "surrogate"), BACKWARD, ids=name)
@each_dtype
def test_backward(
    host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str, surrogate: type[Surrogate] | None
) -> None:
    ran = set()
    cases = grid(Case(neuron, reset, dtype, surrogate), backward=True, each=1)
    thin = 11 if neuron not in LOOPS else 1 if surrogate is None or surrogate.name in WHOLE_GRID else 5
    for seed, case in enumerate(itertools.islice(cases, 0, None, thin)):
        check_backward(host_cuda, case, seed)
        ran.add(host_cuda.variant())
    assert ran == BACKWARD_VARIANTS[dtype]


@pytest.mark.parametrize(
    ("neuron", "reset", "surrogate"), [(n, r, s) for n, r, s in BACKWARD if s and s.has_primitive()], ids=name
)
@pytest.mark.parametrize("dtype", kernels.SMOOTH_DTYPES)
def test_smooth(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str, surrogate: type[Surrogate]) -> None:
    base = Case(neuron, reset, dtype, surrogate, spiking=False)
    for seed, case in enumerate(line(base, backward=False)):
        check_forward(host_cuda, case, seed)
        assert host_cuda.variant() == NARROW
    for seed, case in enumerate(line(base, backward=True)):
        check_backward(host_cuda, case, seed)
        assert host_cuda.variant() == NARROW


def check_whole(host_cuda: HostCuda, base: Case, each: int) -> None:
    """The passes that tensors and conventions take, with the surrogate compiled in and called."""
    struct = step.struct_name(base.neuron, base.reset, "general" if base.conventions else "tensor")
    tape = re.search(rf"struct {struct} {{.*?kTape = (\d+)", step.neuron_header(base.neuron), re.DOTALL)
    surrogates = (False, True) if base.neuron.has_surrogate else (False,)
    for backward, by_number in [(False, False), *((True, called) for called in surrogates)]:
        ran = set()
        cases = line(replace(base, by_number=by_number), backward)
        for seed, case in enumerate(itertools.islice(cases, 0, None, each)):
            (check_backward if backward else check_forward)(host_cuda, case, seed)
            ran.add(host_cuda.variant())
        is_wide = base.dtype != "f64" and not by_number and tape and int(tape[1]) <= 3
        assert ran == ({NARROW, (2, 16) if backward else (2, 8)} if is_wide else {NARROW})


@each_dtype
@each_reset
def test_tensor_parameters(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str) -> None:
    check_whole(host_cuda, Case(neuron, reset, dtype, ATAN if neuron.has_surrogate else None, tensors=True), each=1)


@pytest.mark.parametrize(("neuron", "reset"), [(n, r) for n, r in ALL if n.firing], ids=name)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_infinite_thresholds(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str) -> None:
    """Among others: in every kind of pass the neuron does not spike, and nothing becomes NaN."""
    surrogate = ATAN if neuron.has_surrogate else None
    steps = 3 if issubclass(neuron, Driven) else 20  # these rise without bound, where no spike brings them back
    base = Case(neuron, reset, dtype, surrogate, T=steps, N=7, tensors=True)
    cases = [base, replace(base, store_seq=True, flags=(True, True))]
    if neuron.conventions:
        cases += [replace(case, conventions=True) for case in cases]
    if neuron.has_surrogate and dtype == "f32":
        cases += [replace(base, spiking=False), replace(base, surrogate=STRAIGHT_THROUGH, by_number=True)]
    for case in cases:
        inputs = inputs_of(case)
        infinite = torch.arange(7) % 2 == 0
        for tensor in (t for n, t in inputs.tensors.items() if n.startswith("v_threshold")):
            tensor[infinite] = math.inf
        forward = cpu_forward(case, inputs)
        exact = step.is_exact(neuron) and case.spiking
        check(case, host_forward(host_cuda, case, inputs), forward, exact)
        gradients = host_backward(host_cuda, case, inputs, forward[-1])
        check(case, gradients, cpu_backward(case, inputs, forward[-1]), exact)
        assert not forward[0][:, infinite].any()
        assert all(t.isfinite().all() for t in (*forward, *gradients))


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
@each_dtype
@pytest.mark.parametrize(("neuron", "reset"), [(n, r) for n, r in ALL if n.conventions], ids=name)
def test_conventions(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str, tensors: bool) -> None:
    check_whole(host_cuda, Case(neuron, reset, dtype, ATAN, tensors=tensors, conventions=True), each=5)


@each_dtype
@each_loop
def test_tensor_parameters_of_channels(host_cuda: HostCuda, neuron: type[Neuron], dtype: str) -> None:
    """A value for some neighbouring neurons, again and again, or one for all."""
    surrogate = ATAN if neuron.has_surrogate else None
    base = Case(neuron, neuron.resets()[0], dtype, surrogate, T=19, N=24, tensors=True)
    whole = inputs_of(base)
    for inner, size in ((1, 1), (2, 3), (1, 6), (4, 6), (24, 1)):
        spread = {
            name: t[:size].repeat_interleave(inner).repeat(24 // (inner * size)) for name, t in whole.tensors.items()
        }
        inputs = replace(whole, tensors=spread)
        memory = Memory(0)
        args = common_arguments(base, inputs, memory)
        for i, p in enumerate(floats_of(neuron)):
            if isinstance(p, Float) and p not in neuron.conventions:
                few = memory.input(whole.tensors[f"{p.symbol}_tensor"][:size].contiguous())
                args.tensor[i] = ParamTensor(few, inner, size)
        spike = memory.output((base.T, base.N), base.type)
        states = [memory.output(base.state_shape, base.state_type) for _ in neuron.states]
        args.spike = spike.data_ptr()
        for k, state in enumerate(states):
            args.state[k] = state.data_ptr()
        assert host_cuda.call(base, args, backward=False) is None
        memory.check()
        check(base, [spike, *states], cpu_forward(replace(base, training=False), inputs), exact=step.is_exact(neuron))


@each_dtype
@each_loop
def test_a_batch_outside_time(host_cuda: HostCuda, neuron: type[Neuron], dtype: str) -> None:
    """Rows of 16 and of 15 neurons: in vectors, and one by one."""
    surrogate = ATAN if neuron.has_surrogate else None
    variants = set()
    for T, store_seq, inner in itertools.product((1, 5, 8, 33), (False, True), (16, 15)):
        for tensors in (False, True):
            case = Case(neuron, neuron.resets()[-1], dtype, surrogate, T=T, N=3 * inner, outer=3)
            case = replace(case, store_seq=store_seq, tensors=tensors)
            check_forward(host_cuda, case, seed=T)
            variants.add(host_cuda.variant())
            check_backward(host_cuda, case, seed=T)
            variants.add(host_cuda.variant())
    assert neuron.name != "lif" or variants >= FORWARD_VARIANTS[dtype] | BACKWARD_VARIANTS[dtype]


@each_dtype
@each_reset
def test_forward_of_special_values(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str) -> None:
    tiny, most = torch.finfo(DTYPES[dtype]).smallest_normal, torch.finfo(DTYPES[dtype]).max
    special = torch.tensor([math.inf, -math.inf, math.nan, -0.0, most, -most, tiny, tiny / 4], dtype=torch.float64)
    for store_seq in (False, True):
        case = Case(neuron, reset, dtype, T=20, N=8, store_seq=store_seq)
        inputs = inputs_of(case)
        inputs.x[3], inputs.x[11] = special, special.flip(0)
        exact = step.is_exact(neuron)
        check(case, host_forward(host_cuda, case, inputs), cpu_forward(case, inputs), exact)


@pytest.mark.parametrize("neuron", [n for n in NEURONS if n.learned], ids=lambda n: n.name)
def test_share_of_each_neuron_in_a_learned_gradient(host_cuda: HostCuda, neuron: type[Neuron]) -> None:
    for reset, dtype, T in itertools.product(neuron.resets(), DTYPES, (4, 8, 33)):
        case = Case(neuron, reset, dtype, ATAN, T=T, N=8)
        inputs = inputs_of(case)
        checkpoints = cpu_forward(case, inputs)[-1]
        shares = host_backward(host_cuda, case, inputs, checkpoints)[1 : 1 + len(neuron.learned)]
        for n in range(case.N):
            one = Inputs(
                inputs.x[:, n : n + 1],
                [t[n : n + 1] for t in inputs.init],
                inputs.learned,
                inputs.grad_spike[:, n : n + 1],
                [t[..., n : n + 1] for t in inputs.grad_state],
                {},
            )
            want = cpu_backward(replace(case, N=1), one, checkpoints[:, n : n + 1])[1 : 1 + len(neuron.learned)]
            assert all(same_bits(share[n], w) for share, w in zip(shares, want, strict=True)), (case, n)


@each_dtype
@each_loop
def test_threads_run_in_any_order(host_cuda: HostCuda, neuron: type[Neuron], dtype: str) -> None:
    for N in (2048, 300, 131):  # full blocks, and a last one that is not full
        case = Case(neuron, neuron.resets()[0], dtype, ATAN, T=18, N=N)
        inputs = inputs_of(case)
        want = cpu_forward(case, inputs)
        exact = step.is_exact(neuron)
        for reverse in (False, True):
            host_cuda.mode(reverse=reverse)
            check(case, host_forward(host_cuda, case, inputs), want, exact)
            gradients = summed(case, host_backward(host_cuda, case, inputs, want[-1]))
            check(case, gradients, cpu_backward(case, inputs, want[-1]), exact)


@pytest.mark.parametrize(
    ("dtype", "T", "N", "want"),
    [
        ("f32", 4, 8, [(4, 4), (2, 8)]),
        ("f32", 8, 64, [(4, 4), (2, 8)]),
        ("f32", 9, 64, [(4, 4), (2, 16)]),
        ("f32", 4, 2, [NARROW, (2, 8)]),
        ("f32", 33, 130, [NARROW, (2, 16)]),
        ("f32", 33, 7, [NARROW, NARROW]),
        ("bf16", 3, 12, [(4, 4), (4, 8)]),
        ("f16", 8, 62, [NARROW, (2, 16)]),
        ("bf16", 40, 64, [(4, 4), (2, 16)]),
        ("f16", 4, 3, [NARROW, NARROW]),
        ("f64", 4, 64, [NARROW, NARROW]),
    ],
)
def test_choice_of_variant(host_cuda: HostCuda, dtype: str, T: int, N: int, want: list[tuple[int, int]]) -> None:
    """Vectors where they fit, and in BPTT a short chunk where T is short: [forward, backward]."""
    host_cuda.mode(run=False)
    case = Case(dtype=dtype, T=T, N=N)
    for backward, variant in enumerate(want):
        assert host_cuda.call(case, KernelArgs(T=T, N=N, inner=N), bool(backward)) is None
        assert host_cuda.variant() == variant


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_few_neurons_get_a_thread_each(host_cuda: HostCuda, dtype: str) -> None:
    """Vectors want 256 threads a multiprocessor."""
    host_cuda.mode(run=False, multiprocessors=10)
    for backward, T, V in ((False, 16, 4), (True, 16, 2), (True, 8, 2 if dtype == "f32" else 4)):
        for N, wide in ((256 * 10 * V, True), (255 * 10 * V, False)):
            assert host_cuda.call(Case(dtype=dtype, T=T, N=N), KernelArgs(T=T, N=N, inner=N), backward) is None
            fallback = 2 if backward and V == 4 else 1  # half as many neurons a thread may still do
            assert host_cuda.variant()[0] == (V if wide else fallback), (T, N)


def vector_pointers(case: Case, backward: bool) -> list[tuple[str, int | None, int]]:
    """(field of KernelArgs, index, bytes an element) of every tensor that a kernel reads or writes in vectors."""
    item, state = case.type.itemsize, case.state_type.itemsize
    states, learned = range(len(case.neuron.states)), range(len(case.neuron.learned))
    out: list[tuple[str, int | None, int]] = [("x", None, item), ("checkpoints", None, state)]
    out += [("state_init", k, state) for k in states]
    if not backward:
        return [*out, ("spike", None, item), *(("state", k, state) for k in states)]
    out += [("grad_spike", None, item), ("grad_x", None, item)]
    out += [(name, k, state) for name in ("grad_state", "grad_init") for k in states]
    return out + [("grad_param", k, state) for k in learned]


def set_pointer(args: KernelArgs, name: str, index: int | None, address: int) -> None:
    if index is None:
        setattr(args, name, address)
    else:
        getattr(args, name)[index] = address


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@each_loop
def test_one_unaligned_tensor_makes_all_accesses_narrow(
    host_cuda: HostCuda, neuron: type[Neuron], dtype: str, backward: bool
) -> None:
    host_cuda.mode(run=False)
    aligned = 4096  # never read
    for T in (4, 8, 33):
        case = Case(neuron, neuron.resets()[0], dtype, T=T, N=64)
        args = KernelArgs(T=T, N=64, inner=64)
        pointers = vector_pointers(case, backward)
        for name, index, _ in pointers:
            set_pointer(args, name, index, aligned)
        assert host_cuda.call(case, args, backward) is None
        assert host_cuda.variant()[0] > 1
        for name, index, size in pointers:
            set_pointer(args, name, index, aligned + size)
            assert host_cuda.call(case, args, backward) is None
            assert host_cuda.variant()[0] == 1, (T, name)
            set_pointer(args, name, index, aligned)


def test_launch_errors_come_back_as_text(host_cuda: HostCuda) -> None:
    host_cuda.mode(run=False)
    case = Case()
    assert (
        host_cuda.call(case, KernelArgs(T=1, N=2**40 + 1, inner=2**40 + 1), backward=False)
        == "too many neurons for one launch"
    )
    # The host never asks for no neurons: a grid of no blocks is an error of the run time.
    assert host_cuda.call(case, KernelArgs(T=1, N=0, inner=0), backward=True) == "invalid configuration argument"


def test_kernels_run_on_the_stream_given(host_cuda: HostCuda) -> None:
    host_cuda.mode(run=False)
    for backward in (False, True):
        assert host_cuda.call(Case(), KernelArgs(T=1, N=1, inner=1), backward, stream=0x1234 + backward) is None
        assert host_cuda.library.host_cuda_last_stream() == 0x1234 + backward


# ---- spikes that are fed back ----------------------------------------------------------------------------------------


@dataclass
class FedBack:
    """A layer of rows of neurons, and what its kernels give: forward on the host, by the CPU library too."""

    case: Case
    rows: int
    diagonal: bool

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.size = self.case.N // self.rows
        self.inputs = inputs_of(self.case)
        scale = calm(self.case.neuron.name, self.case.reset)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(self.case.type)

        self.weight = normal(self.size) if self.diagonal else normal(self.size, self.size) / self.size**0.5
        self.bias = normal(self.size)
        self.spike = (normal(self.rows, self.size) > 0).to(self.case.type)
        self.memory = Memory(0)
        self.args = common_arguments(self.case, self.inputs, self.memory)
        state = self.case.state_type
        self.recurrent = RecurrentArgs(size=self.size, dtype=list(DTYPES).index(self.case.dtype), end=self.case.T)
        self.recurrent.backward = self.recurrent.forward = self.memory.input(self.weight.to(state))
        if not self.diagonal:
            self.recurrent.stride = self.size
            self.recurrent.forward = self.memory.input(self.weight.t().to(state).contiguous())
            self.recurrent.check = self.memory.input((self.weight * 0).sum().to(state))
        self.recurrent.bias = self.memory.input(self.bias.to(state))
        self.recurrent.spike_init = self.memory.input(self.spike.to(state))

    def on_cpu(self, role: str, *before: torch.Tensor) -> dict[str, torch.Tensor]:
        """What an operator gives; the gradients by the names of its arguments."""
        named = schema.recurrent_arguments(self.case.neuron)
        plain = dict(
            zip((a.name for a in schema_of(self.case.neuron)), operator_arguments(self.case, self.inputs), strict=True)
        )
        values = plain | {"weight_hh": self.weight, "bias_hh": self.bias, "spike_init": self.spike}
        spread = {a.name: values.get(a.name, False) for a in named}
        for name, value in spread.items():
            if isinstance(value, torch.Tensor) and value.shape[-1:] == (self.case.N,):
                spread[name] = value.unflatten(-1, (self.rows, self.size))
        operator = getattr(torch.ops.snnkern, role.format(self.case.neuron.name))
        out = operator(*before, *spread.values())
        if not before:
            return dict(zip(("spike", *(s.name for s in self.case.neuron.states), "checkpoints"), out, strict=True))
        names = [a.name for a in named if isinstance(spread[a.name], torch.Tensor)]
        return dict(zip(names, (t for t in out if t.numel()), strict=True))

    def run(self, kernel: Any) -> None:
        assert kernel(ctypes.byref(self.args), self.recurrent, None) is None
        self.memory.check()

    def check(self, host: HostCuda, exact: bool) -> None:
        case, kernels = self.case, host.recurrence(self.case)
        forward = self.on_cpu("_{}_recurrent_train")
        spike = self.memory.output((case.T, case.N), case.type)
        states = {s.name: self.memory.output(case.state_shape, case.state_type) for s in case.neuron.states}
        checkpoints = self.memory.output(case.checkpoint_shape, case.state_type)
        self.args.spike, self.args.checkpoints = spike.data_ptr(), checkpoints.data_ptr()
        for k, state in enumerate(states.values()):
            self.args.state[k] = state.data_ptr()
        host.mode(multiprocessors=1)  # one block of registers has all rows
        self.run(kernels.forward)
        assert not case.spiking or 0 < spike.ne(0).double().mean() < 1
        for name, found in {"spike": spike, **states, "checkpoints": checkpoints}.items():
            wanted = forward[name].flatten(-2)
            assert same_bits(found, wanted) if exact else close(case, found, wanted), name
        self.check_backward(kernels, forward)

    def check_backward(self, kernels: CudaRecurrence, forward: dict[str, torch.Tensor]) -> None:
        case, memory = self.case, self.memory
        incoming = [self.inputs.grad_spike, *self.inputs.grad_state]
        shaped = [t.unflatten(-1, (self.rows, self.size)) for t in incoming]
        wanted = self.on_cpu("{}_recurrent_backward", *shaped, forward["spike"], forward["checkpoints"])
        self.args.spike = memory.input(forward["spike"])
        self.args.checkpoints = memory.input(forward["checkpoints"])
        self.args.grad_spike = memory.input(incoming[0])
        gradient = memory.output((case.T, case.N), case.state_type)
        init = [memory.output((case.N,), case.state_type) for _ in case.neuron.states]
        for k, grad in enumerate(self.inputs.grad_state):
            self.args.grad_state[k], self.args.grad_init[k] = memory.input(grad), init[k].data_ptr()
        given = {
            i: (name, memory.output((case.N,), case.state_type))
            for i, p in enumerate(floats_of(case.neuron))
            if (name := p.name if not isinstance(p, Float) else f"{p.symbol}_tensor") in wanted
        }
        for i, (_, share) in given.items():
            self.args.grad_param[i] = share.data_ptr()
        tape = memory.output((case.T, kernels.tape, case.N), case.state_type)
        carried = memory.output((kernels.carried, case.N), case.state_type)
        self.recurrent.tape, self.recurrent.carried = tape.data_ptr(), carried.data_ptr()
        self.recurrent.grad_input = gradient.data_ptr()
        self.run(kernels.record)
        ways = [self.by_steps] if case.dtype == "f64" and not self.diagonal else [self.whole, self.by_steps]
        for way in ways:
            for t in (gradient, *init, *(share for _, share in given.values())):
                t.fill_(math.nan)
            way(kernels, gradient)
            assert close(case, gradient, wanted["x_seq"].flatten(-2))
            for state, found in zip(case.neuron.states, init, strict=True) if case.init else ():
                assert close(case, found, wanted[f"{state.name}_init"].flatten(-2)), state.name
            for name, share in given.values():
                assert close(case, share.sum() if wanted[name].dim() == 0 else share, wanted[name].flatten()), name

    def whole(self, kernels: CudaRecurrence, gradient: torch.Tensor) -> None:
        """All steps at once."""
        self.recurrent.begin, self.recurrent.end, self.recurrent.product = 0, self.case.T, None
        self.run(kernels.alone if self.diagonal else kernels.backward)

    def by_steps(self, kernels: CudaRecurrence, gradient: torch.Tensor) -> None:
        """With a product for each."""
        for t in range(self.case.T - 1, -1, -1):
            self.recurrent.begin, self.recurrent.end = t, t + 1
            if t + 1 < self.case.T:
                later, weight = gradient[t + 1].view(self.rows, self.size), self.weight.to(self.case.state_type)
                product = later * weight if self.diagonal else later @ weight
                self.recurrent.product = self.memory.input(product)
            self.run(kernels.alone)


def close(case: Case, found: torch.Tensor, wanted: torch.Tensor) -> bool:
    limit = {"f64": 1e-11, "f32": 1e-4, "f16": 4e-3, "bf16": 3e-2}[case.dtype]
    wanted = wanted.to(found.dtype)
    return bool((found - wanted).norm() <= limit * wanted.norm())


def test_what_feeds_spikes_back_is_laid_out_as_in_c(host_cuda: HostCuda) -> None:
    assert host_cuda.library.host_cuda_sizeof_recurrent() == ctypes.sizeof(RecurrentArgs)


@each_dtype
@pytest.mark.parametrize(("neuron", "reset"), [(n, r) for n, r in ALL if n.spikes()], ids=name)
def test_spikes_fed_back(host_cuda: HostCuda, neuron: type[Neuron], reset: str, dtype: str) -> None:
    """Every kind of pass; rows of less and more than a warp, and more rows than a block has; more steps than a chunk."""
    base = Case(neuron, reset, dtype, ATAN if neuron.has_surrogate else None, T=18, N=3 * 5)
    cases = [
        (base, 3),
        (replace(base, N=2 * 37, store_seq=True, T=17), 2),
        (replace(base, tensors=True, init=False), 3),
    ]
    if neuron.conventions:
        cases.append((replace(base, conventions=True), 3))
    if neuron.has_surrogate and dtype in kernels.SMOOTH_DTYPES:
        cases.append((replace(base, spiking=False, T=3), 3))
    for case, rows in cases:
        for diagonal in (False, True):
            FedBack(case, rows, diagonal).check(host_cuda, exact=step.is_exact(neuron) and case.spiking)


@pytest.mark.parametrize("size", [1, 32, 33, 64, 65, 130])
def test_rows_of_any_length_fed_back(host_cuda: HostCuda, size: int) -> None:
    FedBack(Case(LOOPS[0], surrogate=ATAN, T=4, N=2 * size), 2, False).check(host_cuda, exact=True)
