"""A step may ask for its surrogate at several places, also where one depends on another: the CPU's loops answer them in turn."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import surrogate
from snnkern.codegen.emit.kernels import PASSES, Selection, files
from snnkern.codegen.specification.base import Float, Neuron, State, Step, blend
from snnkern.codegen.specification.surrogates import ATan

from test_cuda_kernels_on_host import CSRC, KernelArgs

T, N = 9, 1500  # a whole block of neurons, and a part of one


class Cascade(Neuron):
    """A spike of the second membrane needs one of the first, and that of the third both."""

    name = "cascade"
    module = "Cascade"
    source = "none"
    equations = ("v = keep * v + x",)
    firing_equations = ()
    states = (State("v", "potential"), State("w", "potential of the second"))
    parameters = (Float("keep", 0.75, "what stays"),)
    firing = (Float("v_threshold", 0.5, "threshold"),)

    @classmethod
    def step(cls, x: Any, states: Any, p: Any, step: Step) -> Any:
        v, w = states
        v = p.keep * v + x
        first = step.spike(v - p.v_threshold)
        w = w + first * x
        second = step.spike(w - first * p.v_threshold)
        third = step.spike(v * second - w * first)
        return first + 2 * second - 3 * third, [v - first * p.v_threshold, w - second * third]


DRIVER = """
#include "kernels/multistep.h"
namespace snnkern::cpu {
extern const Row<CpuKernel> cascade_kernels;
extern const CpuSurrogate atan_surrogate;
}
extern "C" {
size_t size() { return sizeof(snnkern::KernelArgs); }
void run(int pass, const snnkern::KernelArgs* a) {
  snnkern::cpu::cascade_kernels.kernel[pass][snnkern::kSoft][snnkern::kF64](*a, &snnkern::cpu::atan_surrogate, 0, a->N);
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ was not found: it compiles the kernels")
    folder = tmp_path_factory.mktemp("cascade")
    for part in CSRC.iterdir():  # laid out as in the repository
        if part.name != "generated":
            (folder / part.name).symlink_to(part)
    sources = ["driver.cpp"]
    (folder / "driver.cpp").write_text(DRIVER)
    for path, text in files(Selection((Cascade,), (ATan,), ("soft",), ("f64",))).items():
        target = folder / "generated" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        if path.startswith(("cpu/neurons", "cpu/surrogates")):
            sources.append(str(target))
    flags = ["-O1", "-fPIC", "-shared", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    command = [compiler, *flags, "-DSNNKERN_NO_CLONES", "-I", str(folder), *sources, "-o", "cascade.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = ctypes.CDLL(str(folder / "cascade.so"))
    assert made.size() == ctypes.sizeof(KernelArgs)
    return made


class _Spike(torch.autograd.Function):
    """The step, with the surrogate's gradient."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * surrogate.ATan().gradient(ctx.saved_tensors[0])


@pytest.mark.parametrize("smooth", [False, True], ids=["spikes", "smooth"])
def test_each_place_gets_its_own_answer(library: ctypes.CDLL, smooth: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gs = (torch.randn(T, N, generator=generator, dtype=torch.float64) for _ in range(2))
    grads = [torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(2)]

    leaf = x.clone().requires_grad_()
    p = SimpleNamespace(keep=torch.tensor(0.75).double(), v_threshold=torch.tensor(0.5).double())
    step = Step(surrogate.ATan().primitive if smooth else _Spike.apply, blend, "soft")
    states = [torch.zeros(N, dtype=torch.float64)] * 2
    outputs = []
    for x_t in leaf:
        s, states = Cascade.step(x_t, states, p, step)
        outputs.append(s)
    expected = torch.stack(outputs)
    (expected_grad,) = torch.autograd.grad([expected, *states], leaf, [gs, *grads])

    out, after, grad_x = torch.empty_like(x), [torch.empty(N).double() for _ in range(2)], torch.empty_like(x)
    args = KernelArgs(
        T=T, N=N, inner=N, x=x.data_ptr(), spike=out.data_ptr(), grad_spike=gs.data_ptr(), grad_x=grad_x.data_ptr()
    )
    args.params[0], args.params[1], args.surrogate[0] = 0.75, 0.5, 2.0
    for k in range(2):
        args.state[k], args.grad_state[k] = after[k].data_ptr(), grads[k].data_ptr()
    kind = "smooth" if smooth else "tensor"
    library.run(list(PASSES).index(f"{kind}_forward"), ctypes.byref(args))
    torch.testing.assert_close(out, expected.detach(), rtol=1e-12, atol=1e-12)
    for state, theirs in zip(after, states, strict=True):
        torch.testing.assert_close(state, theirs.detach(), rtol=1e-12, atol=1e-12)
    library.run(list(PASSES).index(f"{kind}_backward"), ctypes.byref(args))
    torch.testing.assert_close(grad_x, expected_grad, rtol=1e-11, atol=1e-11)
