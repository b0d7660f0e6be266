"""The words of an equation: on tensors, on symbols and in C++ for both devices each is PyTorch's own, with its gradient.

The code for CUDA is compiled for the host: what it says is the same, the functions of the device's library are not.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern  # noqa: F401  teaches the equations to compute with tensors
from snnkern.codegen.emit import step
from snnkern.codegen.graph import expr
from snnkern.codegen.graph.expr import backward, clamp, maximum, minimum, softplus, var, where
from snnkern.codegen.specification.base import Neuron, State, Surrogate

from support import evaluate

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
DTYPES = {"f32": torch.float32, "f64": torch.float64}
NUMBERS = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.0,
    -1.0,
    1e-6,
    -1e-20,
    0.3,
    -0.7,
    1.7,
    2.5,
    -3.25,
    7.0,
    19.99,
    20.0,
    20.5,
    -30.0,
    88.0,
]
BEYOND = [math.inf, -math.inf, math.nan]
Function = Callable[[Any, Any], Any]

# What an equation says, and PyTorch's own function. Of the exact ones, every bit is the same.
WORDS: dict[str, tuple[Function, Function]] = {
    "exp": (lambda x, y: x.exp(), lambda x, y: torch.exp(x)),
    "log": (lambda x, y: x.log(), lambda x, y: torch.log(x)),
    "sigmoid": (lambda x, y: x.sigmoid(), lambda x, y: torch.sigmoid(x)),
    "tanh": (lambda x, y: x.tanh(), lambda x, y: torch.tanh(x)),
    "sqrt": (lambda x, y: x.sqrt(), lambda x, y: torch.sqrt(x)),
    "sin": (lambda x, y: x.sin(), lambda x, y: torch.sin(x)),
    "cos": (lambda x, y: x.cos(), lambda x, y: torch.cos(x)),
    "atan": (lambda x, y: x.atan(), lambda x, y: torch.atan(x)),
    "abs": (lambda x, y: abs(x), lambda x, y: torch.abs(x)),
    "relu": (lambda x, y: x.relu(), lambda x, y: torch.relu(x)),
    "floor": (lambda x, y: x.floor(), lambda x, y: torch.floor(x)),
    "round": (lambda x, y: x.round(), lambda x, y: torch.round(x)),
    "erfc": (lambda x, y: x.erfc(), lambda x, y: torch.erfc(x)),
    "softplus": (lambda x, y: softplus(x), lambda x, y: torch.nn.functional.softplus(x)),
    "square": (lambda x, y: x**2, lambda x, y: torch.pow(x, 2)),
    "cube": (lambda x, y: x**3, lambda x, y: torch.pow(x, 3)),
    "fourth": (lambda x, y: x**4, lambda x, y: torch.pow(x, 4)),
    "inverse": (lambda x, y: x**-1, lambda x, y: torch.pow(x, -1)),
    "inverse_square": (lambda x, y: x**-2, lambda x, y: torch.pow(x, -2)),
    "inverse_cube": (lambda x, y: x**-3, lambda x, y: torch.pow(x, -3)),
    "root": (lambda x, y: x**0.5, lambda x, y: torch.pow(x, 0.5)),
    "power": (lambda x, y: x**2.5, lambda x, y: torch.pow(x, 2.5)),
    "tenth": (lambda x, y: x**10, lambda x, y: torch.pow(x, 10)),
    "maximum": (maximum, torch.maximum),
    "maximum_of_number": (lambda x, y: maximum(0.5, x), lambda x, y: torch.maximum(torch.full_like(x, 0.5), x)),
    "minimum": (minimum, torch.minimum),
    "minimum_of_number": (lambda x, y: minimum(x, 1), lambda x, y: torch.minimum(x, torch.ones_like(x))),
    "clamp": (lambda x, y: clamp(x, -0.5, 1.0), lambda x, y: torch.clamp(x, -0.5, 1.0)),
    "clamp_below": (lambda x, y: clamp(x, y, 1.0), lambda x, y: torch.clamp(x, y, torch.ones_like(x))),
    "clamp_above": (lambda x, y: clamp(x, -0.5, y), lambda x, y: torch.clamp(x, torch.full_like(x, -0.5), y)),
    "where": (lambda x, y: where(x <= y, x * 3, y * x), lambda x, y: torch.where(x <= y, x * 3, y * x)),
}  # fmt: skip
EXACT = {
    "abs", "relu", "floor", "round", "square", "cube", "inverse", "maximum", "maximum_of_number", "minimum",
    "minimum_of_number", "clamp", "clamp_below", "clamp_above", "where",
}  # fmt: skip
PERIODIC = {"sin", "cos"}  # infinity has none, and CUDA's float goes up to 1e5


def neuron(word: str) -> type[Neuron]:
    """A neuron whose output is this word of its input and state. It has no parameters at all."""

    class Word(Neuron):
        """A word of its input and its state."""

        name = module = f"word_{word}"
        source = "none"
        equations = ("v = v",)
        firing_equations = ()
        states = (State("v", "the other argument"),)
        firing = ()
        has_surrogate = False
        output = "out_seq"

        @classmethod
        def step(cls, x: Any, states: Any, p: Any, step: Any) -> Any:
            return WORDS[word][0](x, *states), states

    return Word


def arguments(word: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of numbers, among them equal ones, bounds, zeros, infinities and NaN."""
    numbers = NUMBERS if word in PERIODIC else NUMBERS + BEYOND
    x, y = torch.tensor(numbers, dtype=dtype), torch.tensor([*NUMBERS, *BEYOND], dtype=dtype)
    return tuple(t.reshape(-1).clone() for t in torch.meshgrid(x, y, indexing="ij"))  # type: ignore[return-value]


def value_and_gradients(function: Function, x: Tensor, y: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves, materialize_grads=True)]


def check(word: str, found: list[Tensor], x: Tensor, y: Tensor) -> None:
    """Values are PyTorch's own, NaN included, and so are gradients of finite numbers."""
    expected = value_and_gradients(WORDS[word][1], x, y)
    digits = 1e-6 if x.dtype == torch.float32 else 1e-14
    if word in EXACT:
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
    else:
        small = 5e-7 if word in PERIODIC and x.dtype == torch.float32 else torch.finfo(x.dtype).tiny
        torch.testing.assert_close(found[0], expected[0], rtol=digits, atol=small, equal_nan=True)
    finite = x.isfinite() & y.isfinite()
    for gradient, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(
            gradient[finite], theirs[finite], rtol=5 * digits, atol=digits, equal_nan=True, msg=lambda m: f"{word}: {m}"
        )


def test_every_function_is_here() -> None:
    made = (step.trace(neuron(word), "soft", "") for word in WORDS)
    assert {e.op for t in made for e in expr.topological([t.spike])} >= expr.FUNCTIONS.keys()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_tensors(word: str, dtype: str) -> None:
    x, y = arguments(word, DTYPES[dtype])
    found, expected = (value_and_gradients(function, x, y) for function in WORDS[word])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == DTYPES[dtype]
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


@pytest.mark.parametrize("word", WORDS)
def test_on_symbols(word: str) -> None:
    t = step.trace(neuron(word), "soft", "")
    gradients = backward([(t.spike, var("g"))], [t.x, *t.old])
    pairs = [(x, y) for x in (0.5, 0.3, 1.0, 1.7, 2.5, 21.0) for y in (0.5, -0.5, 1.0, 2.0)]
    if word not in ("log", "sqrt", "root", "power"):
        pairs += [(x, y) for x in (-0.5, -0.7) for y in (0.5, -0.5, -1.0)]
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    found = [
        torch.tensor([evaluate(e, {"x": a, "v": b, "g": 1.0}) for a, b in pairs], dtype=torch.float64)
        for e in (t.spike, *gradients)
    ]
    check(word, found, x.clone(), y.clone())


@pytest.mark.parametrize("word", WORDS)
def test_whether_a_neuron_is_exact_follows(word: str) -> None:
    assert step.is_exact(neuron(word)) == (word in EXACT)


def surrogate(word: str) -> type[Surrogate]:
    """A surrogate whose gradient is this word of x and a parameter."""

    class WordSurrogate(Surrogate):
        name = f"word_{word}"
        gradient_text = "x"

        @staticmethod
        def gradient(x: Any, p: Any) -> Any:
            return WORDS[word][0](x, 0.5)

    WordSurrogate.__name__ = f"Surrogate_{word}"
    return WordSurrogate


# A step for each of n pairs: forward, then record and backward for a gradient of 1.
DRIVER = """
template <class Neuron, class R>
void step(int64_t n, const R* x, const R* v, R* out, R* gx, R* gv) {
  const KernelArgs args = {};
  const typename Neuron::template Params<R> p(args);
  const NoSurrogate<R> surrogate(args);
  for (int64_t i = 0; i < n; ++i) {
    R state[1] = {v[i]}, old[1] = {v[i]}, g[1] = {R(0)}, g_param[1] = {R(0)};
    R tape[Neuron::kTape > 0 ? Neuron::kTape : 1];
    out[i] = Neuron::template forward<R>(p, surrogate, x[i], state);
    Neuron::template record<R>(p, surrogate, x[i], old, tape);
    gx[i] = Neuron::template backward<R>(p, surrogate, tape, R(1), g, g_param);
    gv[i] = g[0];
  }
}
template <class Surrogate, class R>
void gradient(int64_t n, const R* x, R* out) {
  const double none[1] = {};
  const Surrogate surrogate(none);
  for (int64_t i = 0; i < n; ++i) out[i] = surrogate.gradient(x[i]);
}
"""


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with the step of each neuron and the gradient of each surrogate, in both precisions."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ was not found: it compiles the steps")
    folder = tmp_path_factory.mktemp("words")
    for part in CSRC.iterdir():  # laid out as in the repository
        if part.name != "generated":
            (folder / part.name).symlink_to(part)
    headers = {f"neurons/{word}.h": step.neuron_header(neuron(word)) for word in WORDS}
    headers |= {f"surrogates/{word}.h": step.surrogate_header(surrogate(word)) for word in WORDS}
    for path, text in headers.items():
        (folder / "generated" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "generated" / path).write_text(text)
    lines = ["#include <cuda_runtime.h>"] if request.param == "cuda" else []
    lines += [*(f'#include "generated/{path}"' for path in headers), "namespace snnkern {", DRIVER, 'extern "C" {']
    for word in WORDS:
        struct = step.struct_name(neuron(word), "soft", "")
        for dtype, real in (("f32", "float"), ("f64", "double")):
            pointers = ", ".join(f"{real}* {name}" for name in ("x", "v", "out", "gx", "gv"))
            lines.append(f"void step_{word}_{dtype}(int64_t n, {pointers}) {{ step<{struct}>(n, x, v, out, gx, gv); }}")
            made = f"gradient<Surrogate_{word}<{real}>>(n, x, out)"
            lines.append(f"void gradient_{word}_{dtype}(int64_t n, {real}* x, {real}* out) {{ {made}; }}")
    (folder / "words.cpp").write_text("\n".join([*lines, "}", "}", ""]))
    flags = ["-O1", "-fPIC", "-shared", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    if request.param == "cuda":
        flags += ["-D__CUDACC__", "-I", str(HERE / "host_cuda")]
    command = [compiler, *flags, "words.cpp", "-o", "words.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "words.so"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("word", WORDS)
def test_in_cpp(compiled: ctypes.CDLL, word: str, dtype: str) -> None:
    x, y = arguments(word, DTYPES[dtype])
    found = [torch.empty_like(x) for _ in range(3)]
    getattr(compiled, f"step_{word}_{dtype}")(
        ctypes.c_int64(len(x)), *(ctypes.c_void_p(t.data_ptr()) for t in (x, y, *found))
    )
    check(word, found, x, y)
    gradient, half = torch.empty_like(x), torch.full_like(x, 0.5)
    getattr(compiled, f"gradient_{word}_{dtype}")(
        ctypes.c_int64(len(x)), ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(gradient.data_ptr())
    )
    torch.testing.assert_close(
        gradient, WORDS[word][1](x, half), rtol=1e-6 if dtype == "f32" else 1e-14, atol=5e-7, equal_nan=True
    )


@pytest.mark.parametrize("word", ["sqrt", "root"])
def test_a_square_root_is_correctly_rounded(compiled: ctypes.CDLL, word: str) -> None:
    """In float64 PyTorch's is not always."""
    x = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    found = [torch.empty_like(x) for _ in range(3)]
    getattr(compiled, f"step_{word}_f64")(
        ctypes.c_int64(len(x)), *(ctypes.c_void_p(t.data_ptr()) for t in (x, x, *found))
    )
    assert found[0].tolist() == [math.sqrt(a) for a in x.tolist()]
