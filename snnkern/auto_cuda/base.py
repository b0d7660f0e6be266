"""Kernels of your own: CUDA text from a few lines of core, run on the GPU or, for CPU tensors, by the host's compiler.

    >>> x, y = torch.tensor([-1.0, 0.0, 2.0]), torch.zeros(3)
    >>> heaviside = base.CKernel1D(kernel_name="heaviside")
    >>> heaviside.add_param(ctype="const float *", cname="x")
    >>> heaviside.add_param(ctype="float *", cname="y")
    >>> heaviside.core = "y[index] = x[index] >= 0.0f ? 1.0f : 0.0f;"
    >>> heaviside.simple_call(x=x, y=y)
    >>> y
    tensor([0., 1., 1.])

The text of a kernel is made here; snnkern.jit compiles and runs it. While logging is at level DEBUG, comments in the text show
where its parts begin and end.
"""

from __future__ import annotations

import functools
import logging
import math
import numbers
import operator
import re
import struct
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)
CUDA_THREADS = 512
"""How many threads a block has unless the caller says otherwise."""

_INT_MAX = 2**31 - 1
_DTYPES = {"float": torch.float32, "half2": torch.float16, "int": torch.int32}


def is_debugging() -> bool:
    """Whether texts get comments that show their parts.

    Example:
        >>> base.is_debugging()
        False
    """
    return _logger.isEnabledFor(logging.DEBUG)


def cal_blocks(numel: int, threads: int = CUDA_THREADS) -> int:
    """How many blocks of so many threads give every element a thread.

    Example:
        >>> base.cal_blocks(1000, threads=512)
        2
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return (numel + threads - 1) // threads


@functools.cache
def _ctype(ctype: str) -> tuple[str, str]:
    """The base type and what follows it: '*', '&' or nothing."""
    match = re.fullmatch(r"\s*(?:const\s+)?(\w+)(?:\s+const)?\s*([*&]?)\s*(?:const\s*)?(?:__restrict__\s*)?", ctype)
    if not match or match[1] not in _DTYPES:
        raise TypeError(f"a ctype must be {', '.join(_DTYPES)}, const or not, then *, & or nothing, got {ctype!r}")
    return match[1], match[2]


@functools.cache
def _is_const(ctype: str) -> bool:
    return "const" in ctype.partition("*")[0].split()


def _is_cupy(value: Any) -> bool:
    cupy = sys.modules.get("cupy")  # a cupy array cannot be there without it
    return cupy is not None and isinstance(value, cupy.ndarray)


def _tensor(value: Any) -> Any:
    """A cupy array as a tensor over the same memory; anything else as it is."""
    return torch.from_dlpack(value) if _is_cupy(value) else value  # type: ignore[attr-defined]


def _device(name: str, value: Tensor) -> int:
    """The number of a tensor's device, -1 for the CPU. A kernel gets addresses, so it refuses what has no memory there."""
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {str(value.layout)[6:]}")
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on a CUDA device, got {value.device}")
    if not _has_memory(value):
        raise ValueError(
            f"{name} has no memory that a kernel could use: it is a {type(value).__name__} of tracing, vmap or the like"
        )
    return value.get_device()


def _has_memory(value: Tensor) -> bool:
    try:
        # A FakeTensor says that it is on the CPU, and has its storage on no device.
        is_here = type(value) in (Tensor, torch.nn.Parameter) or value.untyped_storage().device == value.device
        return is_here and (value.data_ptr() != 0 or value.numel() == 0)
    except (NotImplementedError, RuntimeError):  # within torch.func.vmap, say
        return False


def _address(name: str, base: str, value: Tensor) -> int:
    """Where a tensor begins."""
    address = value.data_ptr()
    if base == "half2" and address % 4:
        raise ValueError(f"{name} must begin at a multiple of four bytes to be read as half2; simple_call takes any")
    return address


def _arrays(py_dict: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, given in py_dict.items():
        value = _tensor(given)
        if isinstance(value, Tensor):
            yield name, value


class CKernel:
    """A CUDA kernel: declaration, head, core and tail. CKernel1D and CKernel2D fill in more.

    Args:
        kernel_name: the kernel's name in the text

    Attributes:
        cparams: the parameters, {name: C type}, in the order of the text. Types are float, half2 and int: `const float *`
            for a tensor (of torch.half for half2), `const float &` or `float` for a scalar.
        reserved_cnames: names that the text uses itself, which no parameter may have

    Example:
        >>> copy = base.CKernel("copy")
        >>> copy.add_param("const float *", "x")
        >>> copy.add_param("float *", "y")
        >>> copy.core = "y[threadIdx.x] = x[threadIdx.x];"
        >>> x, y = torch.arange(3.0), torch.zeros(3)
        >>> copy((1,), (3,), {"x": x, "y": y})
        >>> y
        tensor([0., 1., 2.])
    """

    def __init__(self, kernel_name: str) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", kernel_name):
            raise ValueError(f"kernel_name must be a name in C, got {kernel_name!r}")
        self.kernel_name = kernel_name
        self.cparams: dict[str, str] = {}
        self.reserved_cnames: list[str] = []
        self._core = ""

    # ---- text ---------------------------------------------------------------------------------------------------------

    def add_param(self, ctype: str, cname: str) -> None:
        """Adds a parameter. Arguments are matched by name.

        Raises:
            ValueError: the name is taken or reserved, or is no name in C.
        """
        if not re.fullmatch(r"[A-Za-z_]\w*", cname):
            raise ValueError(f"cname must be a name in C, got {cname!r}")
        if cname in self.cparams:
            raise ValueError(f"cname {cname!r} is a parameter of {self.kernel_name} already: {self.cparams}")
        if cname in self.reserved_cnames:
            raise ValueError(f"cname {cname!r} is reserved in {self.kernel_name}, as {self.reserved_cnames} are")
        self.cparams[cname] = ctype

    @property
    def core(self) -> str:
        """The code of the kernel's own; assign to it, or override the property."""
        return self._core

    @core.setter
    def core(self, codes: str) -> None:
        self._core = codes

    @property
    def declaration(self) -> str:
        """The text up to the kernel's body."""
        params = ",\n".join(f"{ctype} {cname}" for cname, ctype in self.cparams.items())
        return f'#include <cuda_fp16.h>\nextern "C" __global__\nvoid {self.kernel_name}(\n{params}\n)\n'

    @property
    def head(self) -> str:
        """The text between declaration and core."""
        return "{\n"

    @property
    def tail(self) -> str:
        """The text after the core."""
        return "}\n"

    @property
    def full_codes(self) -> str:
        """The whole text of the kernel."""
        return "".join(self._part(name, getattr(self, name)) for name in ("declaration", "head", "core", "tail"))

    @staticmethod
    def _part(name: str, text: str) -> str:
        """A part of the text, between comments at logging level DEBUG."""
        if text and not text.endswith("\n"):
            text += "\n"
        if is_debugging():
            return f"\n//------{name} start------\n{text}//------{name} end--------\n"
        return text

    # ---- checks -------------------------------------------------------------------------------------------------------

    def check_attributes(self, **kwargs: Any) -> bool:
        """Whether every attribute named here has this value: whether the kernel is still the one that is wanted."""
        missing = object()
        return all(getattr(self, key, missing) == value for key, value in kwargs.items())

    def set_contiguous(self, py_dict: dict[str, Any]) -> None:
        """Raises unless every value is a torch.Tensor or cupy.ndarray (TypeError) and contiguous (ValueError)."""
        for name, given in py_dict.items():
            value = _tensor(given)
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor or cupy.ndarray, got {type(value).__name__}")
            if not value.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous, got shape {tuple(value.shape)} with strides {value.stride()}; "
                    "simple_call takes any layout"
                )
            if value.is_neg():
                raise ValueError(f"{name} must not be a view of negated numbers; simple_call takes any layout")

    def get_device(self, py_dict: dict[str, Any]) -> int:
        """The device id of the first tensor, -1 for the CPU; raises ValueError if there is no tensor."""
        for name, value in _arrays(py_dict):
            return _device(name, value)
        raise ValueError(f"{self.kernel_name} needs at least one torch.Tensor or cupy.ndarray, got {list(py_dict)}")

    def check_device(self, device: int, py_dict: dict[str, Any]) -> None:
        """Raises ValueError unless every tensor is on the device with this id."""
        for name, value in _arrays(py_dict):
            if _device(name, value) != device:
                expected = f"cuda:{device}" if device >= 0 else "cpu"
                raise ValueError(f"{name} must be on {expected}, as the other tensors, got {value.device}")

    def check_keys(self, py_dict: dict[str, Any]) -> None:
        """Raises ValueError unless the keys are the names of the parameters."""
        missing, unknown = (sorted(a - b) for a, b in ((self.cparams.keys(), py_dict), (py_dict.keys(), self.cparams)))
        if missing or unknown:
            raise ValueError(
                f"{self.kernel_name} takes {list(self.cparams)}: missing {missing or 'none'}, unknown {unknown or 'none'}"
            )

    def check_ctypes(self, py_dict: dict[str, Any]) -> None:
        """Raises TypeError unless every value is of its parameter's type.

        torch.float or np.float32 go with float, torch.half or np.float16 with half2, torch.int with int. A scalar parameter
        takes one number of any type, Python's, NumPy's or a tensor's: a whole one for int.
        """
        for name, given in py_dict.items():
            base, suffix = _ctype(self.cparams[name])
            value = _tensor(given)
            expected = str(_DTYPES[base]).removeprefix("torch.")
            if suffix != "*":
                if not _is_number(value, base):
                    what = "a whole number" if base == "int" else "a number"
                    shape = tuple(getattr(value, "shape", ()))
                    got = f"shape {shape}" if math.prod(shape) != 1 else repr(value)
                    raise TypeError(f"{name} is {self.cparams[name]!r}: expected {what}, got {got}")
            elif not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is {self.cparams[name]!r}: expected a {expected} tensor, got {type(value).__name__}"
                )
            elif value.dtype != _DTYPES[base]:
                raise TypeError(
                    f"{name} is {self.cparams[name]!r}: expected dtype {expected}, got {str(value.dtype)[6:]}"
                )

    def check_half2(self, py_dict: dict[str, Any]) -> None:
        """Raises ValueError if a tensor cannot be read as half2; a plain CKernel asks nothing."""

    def get_ptrs(self, py_dict: dict[str, Any]) -> tuple[int, ...]:
        """The address of the first element of each tensor."""
        return tuple(value.data_ptr() for _, value in _arrays(py_dict))

    # ---- running ------------------------------------------------------------------------------------------------------

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], py_dict: dict[str, Any], *args_1: Any, **kwargs: Any
    ) -> None:
        """Runs the kernel on the device of its tensors; on CUDA, on torch's current stream.

        Args:
            grid: blocks, in one to three dimensions
            block: threads of a block, likewise
            py_dict: {name: value}, one for each parameter, in any order. Tensors are contiguous and of the parameter's
                type. A scalar is a number, passed by value, or a tensor of one element, which the kernel reads on the device.
            shared_mem: bytes of dynamic shared memory, as for cupy.RawKernel; CUDA only

        Raises:
            ValueError, TypeError: see the methods check_*, set_contiguous and get_device; also for sizes of 2^31 and more.
            RuntimeError: what compiles the kernel is not installed, or the kernel does not compile; or it would write into a
                tensor that requires a gradient, outside of torch.no_grad().
        """
        from .. import jit

        shared_mem = kwargs.pop("shared_mem", 0)
        if args_1 or kwargs:
            raise TypeError(f"{self.kernel_name}: expected grid, block, py_dict, shared_mem, got {args_1 or kwargs}")
        self.check_keys(py_dict)
        values = {name: _tensor(py_dict[name]) for name in self.cparams}
        self.check_ctypes(values)
        kinds = {name: _ctype(ctype) for name, ctype in self.cparams.items()}
        arrays = {name: value for name, value in values.items() if kinds[name][1] == "*"}
        device = self.get_device(arrays or values)
        for name, (base, suffix) in kinds.items():
            if suffix != "*":
                values[name] = _scalar(name, base, suffix == "&", values[name], device)
                if isinstance(values[name], Tensor):
                    arrays[name] = values[name]
        self.check_device(device, arrays)
        self.set_contiguous(arrays)
        self.check_half2({name: value for name, value in arrays.items() if kinds[name][1] == "*"})
        written = self._written(arrays)
        grid, block = _dimensions("grid", grid), _dimensions("block", block, least=1)
        shared_mem = _whole("shared_mem", shared_mem)
        self._check_sizes(values, grid, block)
        numbers_by_reference = tuple(n for n, v in values.items() if kinds[n][1] == "&" and not isinstance(v, Tensor))
        codes = _by_value(self.full_codes, numbers_by_reference)
        arguments = [
            _address(name, kinds[name][0], value) if isinstance(value, Tensor) else (kinds[name][0], value)
            for name, value in values.items()
        ]
        if 0 not in grid:
            jit.launch(self.kernel_name, codes, arguments, device, grid, block, shared_mem)
            # As any operation in place does: a backward pass that had saved the old numbers says so.
            torch.autograd.graph.increment_version([value for value in written if not value.is_inference()])

    def _written(self, arrays: dict[str, Tensor]) -> list[Tensor]:
        """The tensors that the kernel may write into, which is no operation of autograd."""
        written = {name: value for name, value in arrays.items() if not _is_const(self.cparams[name])}
        for name, value in written.items():
            if value.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{self.kernel_name} writes into {name}, which requires a gradient, and autograd does not see it: give a "
                    f"tensor that requires none, such as {name}.detach(), or call within torch.no_grad()"
                )
        return list(written.values())

    def _check_sizes(self, values: dict[str, Any], grid: tuple[int, ...], block: tuple[int, ...]) -> None:
        """Indices in the text are of type int."""
        if grid[0] * block[0] > _INT_MAX:
            raise ValueError(f"grid and block must have less than 2^31 threads in a dimension, got {grid} x {block}")


@functools.lru_cache(maxsize=1024)
def _by_value(codes: str, names: tuple[str, ...]) -> str:
    """The text in which these parameters are numbers: a reference would be an address."""
    for name in names:
        codes = re.sub(rf"&(\s*{name}\s*[,)])", r" \1", codes, count=1)
    return codes


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def _whole(name: str, value: Any, least: int = 0) -> int:
    if not _is_whole(value):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return operator.index(value)


def _dimensions(name: str, size: Any, least: int = 0) -> tuple[int, ...]:
    if not isinstance(size, tuple) or not 1 <= len(size) <= 3 or not all(map(_is_whole, size)):
        raise TypeError(f"{name} must be a tuple of one to three whole numbers, got {size!r}")
    return (*(_whole(name, n, least) for n in size), *(1,) * (3 - len(size)))


def _is_number(value: Any, base: str) -> bool:
    """Whether a value is one number, of Python, NumPy or a tensor, a whole one for int. A half2 may be a tensor of two."""
    if isinstance(value, Tensor):
        dtype = value.dtype
        whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        fits = value.numel() in ((1, 2) if base == "half2" else (1,))
        return fits and (whole or (base != "int" and dtype.is_floating_point))
    if hasattr(value, "dtype"):  # NumPy's
        return value.size == 1 and value.dtype.kind in ("iu" if base == "int" else "iuf")
    return _is_whole(value) or (base != "int" and isinstance(value, numbers.Real) and not isinstance(value, bool))


def _scalar(name: str, base: str, by_reference: bool, value: Any, device: int) -> Any:
    """A scalar argument: a tensor on the kernel's device stays one, to be passed by reference; else a number."""
    if isinstance(value, Tensor):
        size = 2 if base == "half2" else 1
        is_there = _device(name, value) == device and value.is_cuda and value.dtype == _DTYPES[base]
        if by_reference and is_there and value.numel() == size:
            return value
        value, *others = value.flatten().tolist()
        if others and others != [value]:
            raise ValueError(f"{name} is passed by value, one number for both lanes, got {value} and {others[0]}")
    elif hasattr(value, "item"):
        value = value.item()
    if base == "int":
        if not -_INT_MAX - 1 <= value <= _INT_MAX:
            raise ValueError(f"{name} must be less than 2^31, as the kernel's indices are of type int, got {value}")
        return int(value)
    try:
        number = float(value)
        struct.pack("<e" if base == "half2" else "<f", number)
    except (OverflowError, struct.error):
        raise ValueError(f"{name} must fit a {base.removesuffix('2')}, got {value}") from None
    return number


class _ElementKernel(CKernel):
    """What CKernel1D and CKernel2D share: a thread for each index, and the call that does everything."""

    _size_names: tuple[str, ...]  # the sizes that the kernel takes; the last one is the number of threads

    def _head_of_index(self, limit: str) -> str:
        return f"{{\nconst int index = blockIdx.x * blockDim.x + threadIdx.x;\nif (index < {limit})\n{{\n"

    def check_half2(self, py_dict: dict[str, Any]) -> None:
        """Raises ValueError if a half tensor cannot be read as half2: if its last dimension is odd, of all elements in 1D."""
        for name, value in _arrays(py_dict):
            if value.dtype == torch.float16 and self._is_odd(value):
                raise ValueError(
                    f"{name} must have an even number of elements{self._where_odd(value)}, since a kernel reads two halves "
                    f"at once, got shape {tuple(value.shape)}; simple_call pads"
                )

    def _check_sizes(self, values: dict[str, Any], grid: tuple[int, ...], block: tuple[int, ...]) -> None:
        super()._check_sizes(values, grid, block)
        for name in self._size_names:
            if not isinstance(values[name], Tensor):
                _whole(name, values[name])

    def _is_odd(self, value: Tensor) -> bool:
        raise NotImplementedError

    def _is_direct(self, value: Tensor) -> bool:
        """Whether the kernel can work on the tensor's own memory."""
        as_half2 = value.dtype == torch.float16
        return (
            value.is_contiguous()
            and not value.is_neg()
            and not (as_half2 and (self._is_odd(value) or value.data_ptr() % 4))
        )

    def _where_odd(self, value: Tensor) -> str:
        return ""

    def _pad(self, value: Tensor) -> Tensor:
        """A contiguous copy with the last element (of each row) twice."""
        raise NotImplementedError

    def _unpad(self, copy: Tensor, value: Tensor) -> Tensor:
        """The copy without its padding, in the shape of the tensor."""
        raise NotImplementedError

    def _sizes(self, arrays: dict[str, Tensor]) -> dict[str, int]:
        """The sizes that the kernel takes, from its tensors."""
        raise NotImplementedError

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], py_dict: dict[str, Any], **kwargs: Any) -> None:
        """As calling the kernel, but tensors may have any layout and half tensors any size.

        What is not contiguous is copied, and an odd half tensor is padded with its last element (of each row). Results are
        written back into the tensors of py_dict.
        """
        prepared = dict(py_dict)
        copies: dict[int, tuple[Tensor, Tensor]] = {}  # one copy of a tensor that is given twice
        written = []
        arrays = self._pointers(py_dict)
        for name, value in arrays.items():
            _device(name, value)
        self._written(arrays)
        with torch.no_grad():
            for name, value in arrays.items():
                if not self._is_direct(value):
                    if id(value) not in copies:
                        odd = value.dtype == torch.float16 and self._is_odd(value)
                        copy = (
                            self._pad(value) if odd else torch.empty_like(value, memory_format=torch.contiguous_format)
                        )
                        copies[id(value)] = (value, copy if odd else copy.copy_(value))
                    prepared[name] = copies[id(value)][1]
                    if not _is_const(self.cparams[name]):
                        written.append(id(value))
            self(grid, block, prepared, **kwargs)
            for key in dict.fromkeys(written):
                value, copy = copies[key]
                value.copy_(copy if copy.shape == value.shape else self._unpad(copy, value))

    def _pointers(self, py_dict: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors that the kernel gets as such, not as scalars."""
        known = {name for name, ctype in self.cparams.items() if _ctype(ctype)[1] == "*"}
        return {name: value for name, value in _arrays(py_dict) if name in known}

    def simple_call(self, **kwargs: Any) -> None:
        """Runs the kernel on tensors of any layout: device, sizes, threads and blocks come from them.

        Half tensors with an odd number of elements are padded. Results are written back into the caller's tensors.
        A size given here, e.g. numel=, is used as it is.

        Raises:
            ValueError, TypeError, RuntimeError: see __call__; also if the sizes of the tensors do not agree.
        """
        arrays = self._pointers(kwargs)
        self.get_device(arrays)
        sizes = {name: kwargs[name] for name in self._size_names if name in kwargs}
        self.check_ctypes(sizes)
        if len(sizes) < len(self._size_names):
            sizes = {**self._sizes(arrays), **sizes}
        threads = int(sizes[self._size_names[-1]])
        self.launch((cal_blocks(threads),), (CUDA_THREADS,), {**kwargs, **sizes})


def _one(kernel: CKernel, what: str, found: dict[str, int]) -> int:
    """The number that all tensors agree on."""
    if len(set(found.values())) != 1:
        raise ValueError(f"{kernel.kernel_name}: the tensors must have the same {what}, got {found}")
    return next(iter(found.values()))


class CKernel1D(_ElementKernel):
    """An element-wise kernel: every tensor is taken as 1D, and the core runs once for each `index` below `numel`.

    With half2, `index` counts pairs, and numel is half the number of elements.

    Args:
        kernel_name: the kernel's name in the text

    Attributes:
        cparams: starts as {'numel': 'const int &'}
        reserved_cnames: ['index']

    Example:
        >>> scale = base.CKernel1D("scale")
        >>> scale.add_param("float *", "x")
        >>> scale.add_param("const float &", "by")
        >>> scale.core = "x[index] = x[index] * by;"
        >>> x = torch.ones(2, 2)
        >>> scale.simple_call(x=x, by=3.0)
        >>> x.flatten()
        tensor([3., 3., 3., 3.])
    """

    _size_names = ("numel",)

    def __init__(self, kernel_name: str) -> None:
        super().__init__(kernel_name)
        self.cparams.update(dict.fromkeys(self._size_names, "const int &"))
        self.reserved_cnames.append("index")

    @property
    def head(self) -> str:
        return self._head_of_index("numel")

    @property
    def tail(self) -> str:
        return "}\n}\n"

    def _is_odd(self, value: Tensor) -> bool:
        return value.numel() % 2 != 0

    def _pad(self, value: Tensor) -> Tensor:
        flat = value.reshape(-1)
        return torch.cat([flat, flat[-1:]])

    def _unpad(self, copy: Tensor, value: Tensor) -> Tensor:
        return copy[: value.numel()].view(value.shape)

    def _sizes(self, arrays: dict[str, Tensor]) -> dict[str, int]:
        numel = _one(self, "number of elements", {name: value.numel() for name, value in arrays.items()})
        half = any(value.dtype == torch.float16 for value in arrays.values())
        return {"numel": (numel + 1) // 2 if half else numel}


class CKernel2D(_ElementKernel):
    """A kernel over sequences [T, N]: each thread walks through time for one `index` below N; the core runs at each t.

    Tensors have one or two dimensions. With half2, `index` counts pairs, and N is half the number of columns.

    Args:
        kernel_name: the kernel's name in the text
        reverse: walk from the last time step to the first

    Attributes:
        cparams: starts as {'numel': 'const int &', 'N': 'const int &'}, numel = T * N
        reserved_cnames: ['index', 'dt', 't']; x[t] is the element of this step, x[t + dt] of the next
        pre_core, post_core: code that runs before and after the walk

    Example:
        >>> total = base.CKernel2D("total")
        >>> total.add_param("const float *", "x")
        >>> total.add_param("float *", "y")
        >>> total.core = "y[t] = t - dt < 0 ? x[t] : x[t] + y[t - dt];"
        >>> x, y = torch.ones(4, 2), torch.zeros(4, 2)
        >>> total.simple_call(x=x, y=y)
        >>> y[:, 0]
        tensor([1., 2., 3., 4.])
    """

    _size_names = ("numel", "N")

    def __init__(self, kernel_name: str, reverse: bool = False) -> None:
        super().__init__(kernel_name)
        self.reverse = reverse
        self.cparams.update(dict.fromkeys(self._size_names, "const int &"))
        self.reserved_cnames += ["index", "dt", "t"]
        self._pre_core = ""
        self._post_core = ""

    @property
    def pre_core(self) -> str:
        """The code before the walk through time; assign to it, or override the property."""
        return self._pre_core

    @pre_core.setter
    def pre_core(self, codes: str) -> None:
        self._pre_core = codes

    @property
    def post_core(self) -> str:
        """The code after the walk through time; assign to it, or override the property."""
        return self._post_core

    @post_core.setter
    def post_core(self, codes: str) -> None:
        self._post_core = codes

    @property
    def head(self) -> str:
        walk = "int t = numel - N + index; t >= 0; t -= dt" if self.reverse else "int t = index; t < numel; t += dt"
        pre_core = self._part("pre_core", self.pre_core)
        return f"{self._head_of_index('N')}const int dt = N;\n{pre_core}for({walk})\n{{\n"

    @property
    def tail(self) -> str:
        return "}\n" + self._part("post_core", self.post_core) + "}\n}\n"

    def _check_sizes(self, values: dict[str, Any], grid: tuple[int, ...], block: tuple[int, ...]) -> None:
        super()._check_sizes(values, grid, block)
        numel, n = (values[name] for name in ("numel", "N"))
        if isinstance(numel, int) and isinstance(n, int) and numel + n > _INT_MAX:
            raise ValueError(f"numel + N must be less than 2^31, as indices are of type int, got {numel} + {n}")

    def check_half2(self, py_dict: dict[str, Any]) -> None:
        for name, value in _arrays(py_dict):
            if value.dim() not in (1, 2):
                raise ValueError(f"{name} must have one or two dimensions, [N] or [T, N], got {tuple(value.shape)}")
        super().check_half2(py_dict)

    def _is_odd(self, value: Tensor) -> bool:
        return value.dim() in (1, 2) and value.numel() > 0 and value.shape[-1] % 2 != 0

    def _where_odd(self, value: Tensor) -> str:
        return " in a row" if value.dim() == 2 else ""

    def _pad(self, value: Tensor) -> Tensor:
        return torch.cat([value, value[..., -1:]], dim=-1)

    def _unpad(self, copy: Tensor, value: Tensor) -> Tensor:
        return copy[..., : value.shape[-1]]

    def _sizes(self, arrays: dict[str, Tensor]) -> dict[str, int]:
        shapes = {name: value.shape for name, value in arrays.items() if value.dim() == 2}
        if not shapes:
            raise ValueError(
                f"{self.kernel_name} needs a tensor [T, N], got {[list(v.shape) for v in arrays.values()]}"
            )
        n = _one(self, "N", {name: shape[1] for name, shape in shapes.items()})
        for name, value in arrays.items():
            if value.dim() == 1 and value.numel() not in (n, n + n % 2):  # the lanes of an odd row of half2
                raise ValueError(f"{self.kernel_name}: {name} must be [N] = [{n}], got [{value.numel()}]")
        if any(value.dtype == torch.float16 for value in arrays.values()):
            n = (n + 1) // 2
        # A sequence that also holds a state before the first step or after the last is longer by one.
        return {"numel": n * min(shape[0] for shape in shapes.values()), "N": n}


# ---- text -------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/) | (?P<directive>^[ \t]*\#(?:\\\n|[^\n])*) | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    | (?P<space>\s+) | (?P<other>[\w.]+|.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_CONTROL = re.compile(r"(?:(?:if|for|while|switch)\b.*\)|else|do|(?:case\b.*|default)\s*:)")
# A variable that a function of cfunction declares: <function>__<name>.
_TEMPORARY = re.compile(r"\b(?:float|half2)\s+([A-Za-z]\w*__\w+)\s*(?==)")


class CodeTyper:
    """Puts code together, a statement a line, with indents. The result is `codes`.

    Directives (#pragma) and comments keep a line of their own. A statement without its semicolon gets one.
    If code declares a temporary of `cfunction` that was declared here before, it is renamed in that code.

    Args:
        indent_num: how many spaces each line begins with

    Example:
        >>> typer = base.CodeTyper(2)
        >>> typer.append("const float z = x + 1.0f; y = z * z")
        >>> typer.codes.splitlines()
        ['', '  const float z = x + 1.0f;', '  y = z * z;']
    """

    def __init__(self, indent_num: int) -> None:
        self.indent = " " * indent_num
        self.codes = "\n"
        self._temporaries: dict[str, int] = {}

    def append(self, codes: str) -> None:
        """Adds code: one statement or more."""
        for name in dict.fromkeys(_TEMPORARY.findall(codes)):
            count = self._temporaries[name] = self._temporaries.get(name, 0) + 1
            if count > 1:
                codes = re.sub(rf"\b{name}\b", f"{name}_{count}", codes)
        for line in _lines(codes):
            self.codes += f"{'' if line.startswith('#') else self.indent}{line}\n"


def _lines(codes: str) -> Iterator[str]:
    """The statements of code, each on one line."""
    current, depth = "", 0

    def statement() -> str:
        text = current.strip()
        return text if not text or _CONTROL.fullmatch(text) else f"{text};"

    for match in _TOKEN.finditer(codes):
        token, kind = match[0], match.lastgroup
        if kind == "space":
            current += " " if current and not current.endswith(" ") else ""
        elif kind == "directive":
            if current.strip():
                yield statement()
            current = ""
            yield token.strip()
        elif kind == "comment" and not current.strip():
            yield token if token.startswith("/*") else f"{token};"
            current = ""
        elif kind == "comment":
            current += f"/* {token[2:].strip()} */" if token.startswith("//") else token
        elif token == ";" and depth == 0:
            if current.strip():
                yield f"{current.strip()};"
            current = ""
        elif token == "{" and depth == 0 and not current.rstrip().endswith("="):
            yield f"{current.strip()} {{".strip()
            current = ""
        elif token == "}" and depth == 0:
            if current.strip():
                yield statement()
            yield "}"
            current = ""
        else:
            depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
            current += token
    if current.strip():
        yield statement()


class CodeBlock:
    """A block { } in a CodeTyper, for variables of its own.

    Args:
        env: the CodeTyper

    Example:
        >>> typer = base.CodeTyper(0)
        >>> with base.CodeBlock(typer):
        ...     typer.append("y = 1.0f;")
        >>> typer.codes.splitlines()
        ['', '{', '  y = 1.0f;', '}']
    """

    def __init__(self, env: CodeTyper) -> None:
        self.env = env

    def __enter__(self) -> None:
        self.env.append("{")
        self.env.indent += "  "

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.env.indent = self.env.indent[:-2]
        self.env.append("}")
