"""Kernels of one's own run on CPU and CUDA: results, layouts, padding, scalars; wrong arguments get a clear error."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from snnkern.auto_cuda import base, cfunction

from support import noise
from test_kernel_text import cumsum, heaviside


def elementwise(core: str, dtype: str, *names: str, **scalars: str) -> base.CKernel1D:
    """A kernel y[index] = core over inputs, y, and scalars by their C type."""
    kernel = base.CKernel1D("elementwise")
    for name in names:
        kernel.add_param(f"const {dtype} *", name)
    kernel.add_param(f"{dtype} *", "y")
    for name, ctype in scalars.items():
        kernel.add_param(ctype, name)
    kernel.core = f"y[index] = {core};"
    return kernel


# ---- the printed examples ---------------------------------------------------------------------------------------------

HEAVISIDE = [
    (
        [[-0.0423, -0.1383, -0.0238, 0.1018], [0.3422, 0.1449, -0.2938, -0.1858], [-0.3503, 0.0004, -0.4274, -0.2012],
         [-0.0227, 0.2229, -0.0776, 0.2687]],
        [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]],
    ),
    (
        [[-0.1706, 0.2063, -0.2077, 0.3335], [-0.0180, -0.2429, 0.3488, 0.1146], [0.0362, 0.1584, 0.4828, -0.1389],
         [-0.2684, 0.1898, 0.0560, 0.2058]],
        [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]],
    ),
]  # fmt: skip
CUMSUM = [
    (
        [[3.0, 0.0, 2.0], [2.0, 0.0, 0.0], [2.0, 3.0, 2.0], [2.0, 1.0, 0.0]],
        [[3.0, 0.0, 2.0], [5.0, 0.0, 2.0], [7.0, 3.0, 4.0], [9.0, 4.0, 4.0]],
    ),
    (
        [[0.0, 2.0, 1.0], [1.0, 3.0, 1.0], [2.0, 2.0, 0.0], [2.0, 0.0, 1.0]],
        [[0.0, 2.0, 1.0], [1.0, 5.0, 2.0], [3.0, 7.0, 2.0], [5.0, 7.0, 3.0]],
    ),
]


def call_in_full(kernel: base.CKernel, x: Tensor, y: Tensor) -> None:
    threads = 1024
    py_dict: dict[str, Any] = {"y": y, "x": x, "numel": x.numel()}  # not in the order of the parameters
    if "N" in kernel.cparams:
        py_dict["N"] = x.shape[1]
    kernel((base.cal_blocks(x.numel(), threads),), (threads,), py_dict)


def call_simply(kernel: Any, x: Tensor, y: Tensor) -> None:
    kernel.simple_call(x=x, y=y)


@pytest.mark.parametrize("call", [call_in_full, call_simply])
@pytest.mark.parametrize(
    ("make", "given", "printed"), [(m, x, y) for m, rows in ((heaviside, HEAVISIDE), (cumsum, CUMSUM)) for x, y in rows]
)
def test_printed_examples(
    make: Callable[[], base.CKernel], given: list[Any], printed: list[Any], call: Callable[..., None], device: str
) -> None:
    x = torch.tensor(given, device=device)
    y = torch.zeros_like(x)
    call(make(), x, y)
    assert y.tolist() == printed


@pytest.mark.gpu
def test_cupy_arrays() -> None:
    cupy = pytest.importorskip("cupy")
    x = torch.tensor(HEAVISIDE[0][0], device="cuda")
    y = torch.zeros_like(x)
    # As in the first example: every argument an array, the scalar too.
    heaviside()((1,), (1024,), {"numel": cupy.asarray(x.numel()), "x": x, "y": y})
    assert y.tolist() == HEAVISIDE[0][1]
    arrays = cupy.asarray(x), cupy.zeros((4, 4), dtype=cupy.float32)
    heaviside().simple_call(x=arrays[0].T, y=arrays[1].T)
    assert arrays[1].tolist() == HEAVISIDE[0][1]
    kernel = heaviside()
    assert kernel.get_ptrs({"x": arrays[0]}) == (arrays[0].data.ptr,) and kernel.get_device({"x": arrays[0]}) == 0


# ---- layouts, sizes, dtypes -------------------------------------------------------------------------------------------


def layouts(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Zeros of one shape, in memory in several ways."""
    doubled = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device)
    return {
        "contiguous": torch.zeros(shape, dtype=dtype, device=device),
        "transposed": torch.zeros(shape[::-1], dtype=dtype, device=device).permute(*reversed(range(len(shape)))),
        "strided": doubled[..., ::2],
    }


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 5), (4, 6), (3, 1, 5), (1000, 3)], ids=str)
@pytest.mark.parametrize("ctype", ["float", "half2", "int"])
def test_1d_results_reach_the_callers_tensors(ctype: str, shape: tuple[int, ...], layout: str, device: str) -> None:
    dtype = {"float": torch.float32, "half2": torch.float16, "int": torch.int32}[ctype]
    code = "x[index] + x[index]" if ctype == "int" else cfunction.add(None, "x[index]", "x[index]", ctype)
    x, y = layouts(shape, dtype, device)[layout], layouts(shape, dtype, device)[layout]
    values = noise(shape, torch.float64, 0, device, 50.0).to(dtype)
    x.copy_(values)
    elementwise(code, ctype, "x").simple_call(x=x, y=y)
    assert torch.equal(y, values + values) and torch.equal(x, values)
    if layout == "strided":  # nothing beside the tensor is touched
        assert y._base is not None and y._base[..., 1::2].abs().max() == 0


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 3), (5, 8), (3, 701)], ids=str)
@pytest.mark.parametrize("ctype", ["float", "half2"])
def test_2d_results_reach_the_callers_tensors(ctype: str, shape: tuple[int, int], layout: str, device: str) -> None:
    dtype = {"float": torch.float32, "half2": torch.float16}[ctype]
    kernel = base.CKernel2D("sums")
    kernel.add_param(f"const {ctype} *", "x")
    kernel.add_param(f"{ctype} *", "y")
    kernel.add_param(f"{ctype} *", "last")
    kernel.pre_core = f"{ctype} sum = x[index];"
    total = cfunction.add("sum", "sum", "x[t]", ctype)
    kernel.core = f"if (t != index) {{ {total} }} y[t] = sum;"
    kernel.post_core = "last[index] = sum;"
    x, y = layouts(shape, dtype, device)[layout], layouts(shape, dtype, device)[layout]
    last = torch.zeros(shape[1], dtype=dtype, device=device)
    x.copy_(torch.arange(x.numel(), device=device).view(shape) % 5)
    kernel.simple_call(x=x, y=y, last=last)
    expected = x.float().cumsum(0).to(dtype)
    assert torch.equal(y, expected) and torch.equal(last, expected[-1])


def test_a_reversed_kernel(device: str) -> None:
    kernel = base.CKernel2D("suffix_sums", reverse=True)
    kernel.add_param("const float *", "x")
    kernel.add_param("float *", "y")
    kernel.core = "y[t] = t + dt < numel ? x[t] + y[t + dt] : x[t];"
    x = torch.arange(12.0, device=device).view(4, 3)
    y = torch.zeros_like(x)
    kernel.simple_call(x=x, y=y)
    assert torch.equal(y, x.flip(0).cumsum(0).flip(0))


def test_a_sequence_with_one_step_more(device: str) -> None:
    """The number of steps is that of the shortest sequence."""
    kernel = base.CKernel2D("shift")
    kernel.add_param("const float *", "x")
    kernel.add_param("float *", "y")
    kernel.core = "y[t + dt] = x[t];"
    x = noise((4, 3), torch.float32, 0, device)
    y = torch.zeros(5, 3, device=device)
    kernel.simple_call(y=y, x=x)
    assert torch.equal(y[1:], x) and y[0].abs().max() == 0


def test_in_place(device: str) -> None:
    """One tensor for two parameters; within no_grad, a tensor that requires a gradient is written like any other."""
    for x in (noise((3, 5), torch.float16, 0, device), noise((5, 3), torch.float32, 0, device).t()):
        before = x.clone()
        ctype = "half2" if x.dtype == torch.float16 else "float"
        kernel = elementwise(cfunction.add(None, "x[index]", "x[index]", ctype), ctype, "x")
        with torch.no_grad():
            kernel.simple_call(x=x, y=x.requires_grad_())
        assert torch.equal(x.detach(), before + before)


@pytest.mark.parametrize(
    "make", [lambda w: w, lambda w: w.view(2, 2).t(), lambda w: w * 2.0], ids=["leaf", "view", "result"]
)
def test_what_requires_a_gradient_is_not_written(make: Callable[[Tensor], Tensor], device: str) -> None:
    """A gradient that does not know of the write would be wrong in silence. Reading is no harm."""
    weight = torch.ones(4, device=device, requires_grad=True)
    y = make(weight)
    x = torch.zeros_like(y, requires_grad=True)
    kernel = elementwise("x[index]", "float", "x")
    calls = (
        lambda: kernel.simple_call(x=x, y=y),
        lambda: kernel((1,), (4,), {"numel": 4, "x": x.contiguous(), "y": y.contiguous()}),
    )
    for call in calls:
        with pytest.raises(
            RuntimeError, match="elementwise writes into y, which requires a gradient, and autograd does not"
        ):
            call()
    assert y.min() > 0  # untouched
    kernel.simple_call(x=y, y=x.detach())
    assert torch.equal(x, y)


@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
def test_a_backward_pass_sees_that_a_kernel_wrote(shape: tuple[int, ...], device: str) -> None:
    """As after any operation in place: what it saved has changed."""
    x = torch.zeros(shape, device=device, requires_grad=True)
    saved = x.exp()
    elementwise("x[index]", "float", "x").simple_call(x=torch.ones(shape, device=device), y=saved.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()
    with torch.inference_mode():  # where there are no versions to count
        y = torch.zeros(shape, device=device)
        elementwise("x[index]", "float", "x").simple_call(x=torch.ones(shape, device=device), y=y)
        assert y.min() == 1


def test_negated_views(device: str) -> None:
    """PyTorch keeps the imaginary part of a conjugate as numbers to be negated."""
    x = torch.view_as_complex(torch.tensor([[1.0, 2.0], [3.0, -4.0]], device=device)).conj().imag
    y = torch._neg_view(torch.zeros(2, device=device))
    assert x.is_neg() and y.is_neg() and y.is_contiguous()
    kernel = elementwise("x[index]", "float", "x")
    kernel.simple_call(x=x, y=y)
    assert y.tolist() == [-2.0, 4.0]
    with pytest.raises(ValueError, match="y must not be a view of negated numbers; simple_call takes any"):
        kernel((1,), (2,), {"numel": 2, "x": torch.zeros(2, device=device), "y": y})


def test_half_tensors_that_begin_between_pairs(device: str) -> None:
    """A GPU reads four bytes at once only from a multiple of four."""
    x, y = (torch.arange(9.0, device=device).half()[1:] for _ in range(2))
    kernel = elementwise(cfunction.add(None, "x[index]", "x[index]", "half2"), "half2", "x")
    kernel.simple_call(x=x, y=y)
    assert torch.equal(y, x + x)
    with pytest.raises(
        ValueError, match="x must begin at a multiple of four bytes to be read as half2; simple_call takes"
    ):
        kernel((1,), (4,), {"numel": 4, "x": x, "y": y.clone()})


def test_empty_tensors(device: str) -> None:
    x = torch.zeros(0, 3, dtype=torch.float16, device=device)
    elementwise("x[index]", "half2", "x").simple_call(x=x, y=x.clone())
    empty = torch.zeros(4, 0, device=device)
    cumsum().simple_call(x=empty, y=empty.clone())


def test_const_tensors_are_not_written_back(device: str) -> None:
    """An expanded tensor can be read, and could not be written."""
    x = torch.ones(1, device=device).expand(6)
    y = torch.zeros(6, device=device)
    elementwise("x[index] + 1.0f", "float", "x").simple_call(x=x, y=y)
    assert y.tolist() == [2.0] * 6


def test_grid_and_block_in_three_dimensions(device: str) -> None:
    kernel = base.CKernel("positions")
    kernel.add_param("int *", "y")
    kernel.core = """
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * 24 + thread] = block * 24 + thread;
    """
    y = torch.zeros(2 * 3 * 4 * 24, dtype=torch.int32, device=device)
    kernel((2, 3, 4), (4, 3, 2), {"y": y})
    assert torch.equal(y, torch.arange(y.numel(), device=device))


# ---- scalars ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["const {} &", "{}", "const {}"])
@pytest.mark.parametrize(
    "wrap", [lambda v: v, np.asarray, torch.tensor, lambda v: np.float32(v) if isinstance(v, float) else np.int64(v)]
)
def test_scalars_by_value(wrap: Callable[[float], Any], reference: str, device: str) -> None:
    """Numbers, also as arrays of one element on the host; the text stays as it was written."""
    x = torch.arange(5.0, device=device)
    y = torch.zeros_like(x)
    kernel = elementwise("x[index] * a + b", "float", "x", a=reference.format("float"), b=reference.format("int"))
    kernel.simple_call(x=x, y=y, a=wrap(2.5), b=wrap(3))
    assert torch.equal(y, x * 2.5 + 3)
    assert f"{reference.format('float')} a" in kernel.full_codes


@pytest.mark.parametrize(
    "two",
    [2, 2.0, Fraction(2), np.int8(2), np.float16(2), np.array([2]), torch.tensor(2), torch.tensor([2.0]).double()],
    ids=lambda two: type(two).__name__ + str(getattr(two, "dtype", "")),
)
@pytest.mark.parametrize("ctype", ["const float &", "const half2 &", "float"])
def test_a_scalar_is_one_number_of_any_type(ctype: str, two: Any, device: str) -> None:
    kind = "half2" if "half2" in ctype else "float"
    x = torch.arange(4.0, device=device).to(torch.float16 if kind == "half2" else torch.float32)
    y = torch.zeros_like(x)
    kernel = elementwise(cfunction.mul(None, "x[index]", "a", kind), kind, "x", a=ctype)
    kernel.simple_call(x=x, y=y, a=two)
    assert torch.equal(y, x * 2)


@pytest.mark.parametrize(
    ("error", "message", "value"),
    [
        (TypeError, "a is 'const float &': expected a number, got True", True),
        (TypeError, "a is 'const float &': expected a number, got np.True_", np.bool_(True)),
        (TypeError, "a is 'const float &': expected a number, got tensor(True)", torch.tensor(True)),
        (TypeError, "a is 'const float &': expected a number, got '2'", "2"),
        (TypeError, "a is 'const float &': expected a number, got None", None),
        (TypeError, "a is 'const float &': expected a number, got 1j", 1j),
        (TypeError, "a is 'const float &': expected a number, got shape (2,)", torch.zeros(2)),
        (TypeError, "a is 'const float &': expected a number, got shape (3, 1)", np.zeros((3, 1))),
        (TypeError, "b is 'int': expected a whole number, got tensor(2.)", {"b": torch.tensor(2.0)}),
        (TypeError, "b is 'int': expected a whole number, got np.float32(2.0)", {"b": np.float32(2)}),
        (ValueError, "a must fit a float, got 1e+39", 1e39),
        (ValueError, "b must be less than 2^31, as the kernel's indices are of type int, got 2147483648", {"b": np.int64(2**31)}),
    ],
)  # fmt: skip
def test_what_is_not_one_number(error: type[Exception], message: str, value: Any, device: str) -> None:
    x = torch.zeros(4, device=device)
    kernel = elementwise("x[index] * a + b", "float", "x", a="const float &", b="int")
    values = {"a": 1.0, "b": 1, **(value if isinstance(value, dict) else {"a": value})}
    with pytest.raises(error, match=re.escape(message)):
        kernel.simple_call(x=x, y=x.clone(), **values)


def test_half2_scalars(device: str) -> None:
    x = noise((6,), torch.float16, 0, device)
    kernel = elementwise(cfunction.mul(None, "x[index]", "a", "half2"), "half2", "x", a="const half2 &")
    for a in (
        1.5,
        torch.tensor([1.5, 1.5], dtype=torch.float16),
        torch.tensor([1.5, 1.5], dtype=torch.float16, device=device),
    ):
        y = torch.zeros_like(x)
        kernel.simple_call(x=x, y=y, a=a)
        assert torch.equal(y, x * 1.5)
    with pytest.raises(ValueError, match=re.escape("a is passed by value, one number for both lanes, got 1.5 and 2.5")):
        kernel.simple_call(x=x, y=x.clone(), a=torch.tensor([1.5, 2.5], dtype=torch.float16))


@pytest.mark.gpu
def test_a_scalar_on_the_gpu_is_read_there() -> None:
    """Without waiting for the GPU, so that the value may change between replays of a graph."""
    x = torch.arange(5.0, device="cuda")
    y = torch.zeros_like(x)
    a = torch.tensor(2.0, device="cuda")
    kernel = elementwise("x[index] * a", "float", "x", a="const float &")
    kernel.simple_call(x=x, y=y, a=a)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.simple_call(x=x, y=y, a=a)
    a.fill_(3.0)
    graph.replay()
    assert torch.equal(y, x * 3)


# ---- streams and graphs -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_runs_on_the_current_stream() -> None:
    kernel = elementwise("x[index] + 1.0f", "float", "x")
    x = torch.zeros(1 << 20, device="cuda")
    kernel.simple_call(x=x, y=x)  # compiled
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the kernel must wait for this, and for what comes after it
        x.fill_(5.0)
        kernel.simple_call(x=x, y=x)
        result = x.clone()
    stream.synchronize()
    assert (result == 6).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 8), (3, 7)], ids=str)
def test_is_captured_in_a_graph(shape: tuple[int, int]) -> None:
    """Odd sizes too: the copies are part of the graph."""
    kernel = elementwise(cfunction.add(None, "x[index]", "x[index]", "half2"), "half2", "x")
    x = torch.zeros(shape, dtype=torch.float16, device="cuda")
    y = torch.zeros_like(x)
    kernel.simple_call(x=x, y=y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.simple_call(x=x, y=y)
    x.copy_(noise(shape, torch.float16, 0, "cuda"))
    graph.replay()
    assert torch.equal(y, x + x)


@pytest.mark.gpu
def test_shared_memory_on_cuda() -> None:
    kernel = base.CKernel("reversed_block")
    kernel.add_param("int *", "y")
    kernel.core = """
    extern __shared__ int room[];
    room[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
    """
    y = torch.arange(64, dtype=torch.int32, device="cuda")
    kernel((1,), (64,), {"y": y}, shared_mem=64 * 4)
    assert torch.equal(y, torch.arange(63, -1, -1, device="cuda"))


# ---- errors -----------------------------------------------------------------------------------------------------------


def arguments(device: str, **others: Any) -> dict[str, Any]:
    return {"numel": 4, "x": torch.zeros(4, device=device), "y": torch.zeros(4, device=device), **others}


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "missing ['y'], unknown ['z']", lambda d: {"numel": 4, "x": torch.zeros(4, device=d), "z": 1}),
        (TypeError, "x is 'const float *': expected dtype float32, got float64", lambda d: arguments(d, x=torch.zeros(4, device=d).double())),
        (TypeError, "x is 'const float *': expected dtype float32, got float16", lambda d: arguments(d, x=torch.zeros(4, device=d).half())),
        (TypeError, "x is 'const float *': expected a float32 tensor, got list", lambda d: arguments(d, x=[1.0] * 4)),
        (TypeError, "x is 'const float *': expected a float32 tensor, got float", lambda d: arguments(d, x=1.0)),
        (TypeError, "numel is 'const int &': expected a whole number, got 4.0", lambda d: arguments(d, numel=4.0)),
        (TypeError, "numel is 'const int &': expected a whole number, got True", lambda d: arguments(d, numel=True)),
        (ValueError, "numel must be less than 2^31, as the kernel's indices are of type int, got 2147483648", lambda d: arguments(d, numel=2**31)),
        (ValueError, "x must be contiguous, got shape (4,) with strides (2,); simple_call takes any layout", lambda d: arguments(d, x=torch.zeros(8, device=d)[::2])),
    ],
)  # fmt: skip
def test_wrong_arguments(
    error: type[Exception], message: str, make: Callable[[str], dict[str, Any]], device: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        heaviside()((1,), (4,), make(device))


def test_wrong_sizes(device: str) -> None:
    kernel = heaviside()
    with pytest.raises(
        ValueError, match=re.escape("less than 2^31 threads in a dimension, got (2097152, 1, 1) x (1024, 1, 1)")
    ):
        kernel((2**21,), (1024,), arguments(device))
    with pytest.raises(TypeError, match="grid must be a tuple of one to three whole numbers, got 1"):
        kernel(1, (4,), arguments(device))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("numel + N must be less than 2^31")):
        cumsum()((1,), (4,), arguments(device, numel=2**31 - 4, N=4))
    with pytest.raises(ValueError, match=re.escape("must have the same number of elements, got {'x': 4, 'y': 5}")):
        kernel.simple_call(x=torch.zeros(4, device=device), y=torch.zeros(5, device=device))
    with pytest.raises(ValueError, match=re.escape("must have the same N, got {'x': 4, 'y': 5}")):
        cumsum().simple_call(x=torch.zeros(2, 4, device=device), y=torch.zeros(2, 5, device=device))
    with pytest.raises(ValueError, match=re.escape("cumsum needs a tensor [T, N], got [[4], [4]]")):
        cumsum().simple_call(x=torch.zeros(4, device=device), y=torch.zeros(4, device=device))
    with pytest.raises(ValueError, match=re.escape("x must have one or two dimensions, [N] or [T, N], got (2, 2, 2)")):
        x = torch.zeros(2, 2, 2, device=device)
        cumsum()((1,), (4,), {"x": x, "y": x, "numel": 8, "N": 4})
    with pytest.raises(TypeError, match=re.escape("expected grid, block, py_dict, shared_mem, got {'stream': 1}")):
        kernel((1,), (4,), arguments(device), stream=1)


def test_sizes_that_would_reach_beyond_a_tensor(device: str) -> None:
    kernel = base.CKernel2D("last_step")
    kernel.add_param("const float *", "x")
    kernel.add_param("float *", "y")
    kernel.post_core = "y[index] = x[numel - N + index];"
    x = torch.zeros(2, 5, device=device)
    with pytest.raises(ValueError, match=re.escape("last_step: y must be [N] = [5], got [3]")):
        kernel.simple_call(x=x, y=torch.zeros(3, device=device))
    for size, error, message in (
        (-1, ValueError, "numel must be at least 0, got -1"),
        ("4", TypeError, "numel is 'const int &': expected a whole number, got '4'"),
        (4.0, TypeError, "numel is 'const int &': expected a whole number, got 4.0"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            heaviside().simple_call(x=x, y=x.clone(), numel=size)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        heaviside()((1,), (0,), arguments(device))
    with pytest.raises(ValueError, match="shared_mem must be at least 0, got -1"):
        heaviside()((1,), (4,), arguments(device), shared_mem=-1)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        base.cal_blocks(4, 0)


def test_sizes_of_numpy(device: str) -> None:
    x = torch.tensor([1.0, -1.0], device=device)
    y = torch.zeros(2, device=device)
    heaviside()((np.int64(1),), (np.int32(2),), {"numel": np.int64(2), "x": x, "y": y}, shared_mem=np.int64(0))
    assert y.tolist() == [1.0, 0.0]


def test_sizes_given_are_used(device: str) -> None:
    x, y = torch.ones(4, device=device), torch.zeros(6, device=device)
    heaviside().simple_call(x=x, y=y, numel=3)
    assert y.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_odd_half(device: str) -> None:
    """Only simple_call pads."""
    one = elementwise("x[index]", "half2", "x")
    x = torch.zeros(2, 5, dtype=torch.float16, device=device)
    odd = torch.zeros(3, 3, dtype=torch.float16, device=device)
    one.check_half2({"x": x})
    with pytest.raises(
        ValueError,
        match=re.escape(
            "x must have an even number of elements, since a kernel reads two halves at once, got shape (3, 3)"
        ),
    ):
        one.check_half2({"x": odd})
    with pytest.raises(ValueError, match="x must have an even number of elements"):
        one((1,), (8,), {"numel": 4, "x": odd, "y": odd})
    two = base.CKernel2D("k")
    two.check_half2(
        {"x": torch.zeros(3, 2, dtype=torch.float16), "y": torch.zeros(4, dtype=torch.float16), "z": torch.zeros(3, 3)}
    )
    for wrong in (x, torch.zeros(3, dtype=torch.float16)):
        with pytest.raises(ValueError, match="x must have an even number of elements"):
            two.check_half2({"x": wrong})


def test_each_check_alone() -> None:
    kernel = heaviside()
    x = torch.zeros(4, 2)
    assert kernel.get_device({"numel": 3, "x": x}) == -1
    with pytest.raises(ValueError, match=re.escape("heaviside needs at least one torch.Tensor or cupy.ndarray")):
        kernel.get_device({"numel": 3})
    kernel.check_device(-1, {"numel": 3, "x": x})
    with pytest.raises(ValueError, match="x must be on cuda:0, as the other tensors, got cpu"):
        kernel.check_device(0, {"x": x})
    kernel.set_contiguous({"x": x})
    with pytest.raises(TypeError, match=re.escape("x must be a torch.Tensor or cupy.ndarray, got int")):
        kernel.set_contiguous({"x": 3})
    with pytest.raises(ValueError, match="x must be contiguous"):
        kernel.set_contiguous({"x": x.t()})
    kernel.check_keys({"y": 1, "x": 1, "numel": 1})
    with pytest.raises(ValueError, match=re.escape("missing ['numel', 'y'], unknown none")):
        kernel.check_keys({"x": 1})
    assert kernel.get_ptrs({"x": x, "numel": 3, "y": x[1]}) == (x.data_ptr(), x[1].data_ptr())
    kernel.add_param("double *", "d")
    with pytest.raises(TypeError, match="a ctype must be float, half2, int, const or not, then"):
        kernel.check_ctypes({"d": x})


def fake(size: int) -> Tensor:
    with FakeTensorMode():
        return torch.zeros(size)


class Wrapped(Tensor):
    """A tensor around another, with no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made: Wrapped = Tensor._make_wrapper_subclass(cls, inner.shape)  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda n: torch.zeros(n, device="meta"), ValueError, "must be on the CPU or on a CUDA device, got meta"),
        (fake, ValueError, "has no memory that a kernel could use: it is a FakeTensor"),
        (lambda n: Wrapped(torch.zeros(n)), ValueError, "has no memory that a kernel could use: it is a Wrapped"),
        (lambda n: torch.zeros(n).to_sparse(), TypeError, "must be a dense tensor, got one of layout sparse_coo"),
    ],
    ids=["meta", "fake", "wrapped", "sparse"],
)
def test_tensors_without_memory_here(make: Callable[[int], Tensor], error: type[Exception], message: str) -> None:
    """An error, where there would be an address that no thread may read; whichever argument it is."""
    kernel = elementwise("x[index] * a", "float", "x", a="const float &")
    for place in ("x", "y", "a"):
        given = {"x": torch.zeros(4), "y": torch.zeros(4), "a": 1.0, place: make(1 if place == "a" else 4)}
        for call in (
            lambda given=given: kernel.simple_call(**given),
            lambda given=given: kernel((1,), (4,), {"numel": 4, **given}),
        ):
            with pytest.raises(error, match=re.escape(f"{place} {message}")):
                call()


def test_within_vmap() -> None:
    def call(x: Tensor) -> Tensor:
        heaviside().simple_call(x=x, y=torch.zeros(4))
        return x

    with pytest.raises(ValueError, match="x has no memory that a kernel could use"):
        torch.func.vmap(call)(torch.zeros(2, 4))


@pytest.mark.gpu
def test_tensors_on_several_devices() -> None:
    with pytest.raises(ValueError, match="y must be on cuda:0, as the other tensors, got cpu"):
        heaviside().simple_call(x=torch.zeros(4, device="cuda"), y=torch.zeros(4))


def test_a_kernel_that_does_not_compile(device: str) -> None:
    kernel = elementwise("no_such_name[index]", "float", "x")
    with pytest.raises(RuntimeError, match=r"does not compile the kernel elementwise:(.|\n)*no_such_name"):
        kernel.simple_call(x=torch.zeros(4, device=device), y=torch.zeros(4, device=device))


@pytest.mark.parametrize("word", ["__shared__", "__syncthreads", "atomicAdd"])
def test_what_the_cpu_cannot_run(word: str) -> None:
    kernel = base.CKernel1D("k")
    kernel.add_param("float *", "y")
    kernel.core = f"{word} // in code"
    with pytest.raises(NotImplementedError, match=f"the kernel k uses {word}, which works on CUDA only"):
        kernel.simple_call(y=torch.zeros(4))
    kernel.core = f"y[index] = 1.0f; // {word} in a comment is nothing"
    y = torch.zeros(4)
    kernel.simple_call(y=y)
    assert y.tolist() == [1.0] * 4
