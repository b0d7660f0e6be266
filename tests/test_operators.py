"""The operators as PyTorch sees them: the fixed schemas, opcheck, strides on Meta, torch.compile, export and TorchScript."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch

import snnkern
from snnkern import functional

from support import NEURON_NAMES, inputs, neuron_class, noise
from test_layouts import channels_last

COMMON = (
    "bool decay_input=True, float v_threshold=1., float? v_reset=0., bool detach_reset=False, str surrogate='sigmoid', "
    "float[]? surrogate_params=None, bool store_v_seq=False, bool spiking=True) -> (Tensor spike_seq, Tensor v)"
)
# Written out here on purpose: users call these, so a change of the generator must not change them unnoticed.
SCHEMAS = {
    "if": "(Tensor x_seq, Tensor? v_init=None, " + COMMON.removeprefix("bool decay_input=True, "),
    "lif": "(Tensor x_seq, Tensor? v_init=None, float tau=2., " + COMMON,
    "plif": "(Tensor x_seq, Tensor decay, Tensor? v_init=None, " + COMMON,
}


@pytest.mark.parametrize("neuron", SCHEMAS)
def test_schema(neuron: str) -> None:
    found = getattr(torch.ops.snnkern, f"{neuron}_forward").default._schema
    assert found == torch._C.parse_schema(f"snnkern::{neuron}_forward{SCHEMAS[neuron]}")


def samples(neuron: str, device: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    out = []
    for x in (
        noise((3, 4, 5), torch.float32, 0, device),
        noise((20, 2), torch.float64, 1, device),
        channels_last(noise((2, 2, 3, 4, 5), torch.float32, 2, device)),
        noise((2, 6), torch.bfloat16, 3, device),
    ):
        learned = tuple(torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned)
        out.append(((x, *learned), {}))
        out.append(((x, *learned, noise(tuple(x.shape[1:]), torch.float32, 4, device)), {"store_v_seq": True}))
        out.append(((x, *learned), {"v_reset": None, "surrogate": "atan", "surrogate_params": [3.0]}))
    return out


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_opcheck(neuron: str, device: str) -> None:
    for args, kwargs in samples(neuron, device):
        for grad in (False, True):
            given = [a.detach().requires_grad_(grad and a.dtype != torch.bfloat16) for a in args]
            torch.library.opcheck(getattr(torch.ops.snnkern, f"{neuron}_forward").default, tuple(given), kwargs)
        torch.library.opcheck(getattr(torch.ops.snnkern, f"_{neuron}_train").default, args, kwargs)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_meta_gives_the_shapes_dtypes_and_strides_of_a_run(neuron: str) -> None:
    for args, kwargs in samples(neuron, "cpu"):
        for role in (f"{neuron}_forward", f"_{neuron}_train"):
            op = getattr(torch.ops.snnkern, role)
            for real, meta in zip(op(*args, **kwargs), op(*(a.to("meta") for a in args), **kwargs), strict=True):
                assert (real.shape, real.dtype, real.stride()) == (meta.shape, meta.dtype, meta.stride())


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_compile(neuron: str, device: str) -> None:
    torch._dynamo.reset()  # the cases before have filled the cache of `run`
    tensors = inputs(neuron, (20, 6), torch.float32, device)

    def run(**leaves: torch.Tensor) -> torch.Tensor:
        x = leaves.pop("x_seq")
        spikes, v = getattr(torch.ops.snnkern, f"{neuron}_forward")(x * 1.5, **leaves)
        return spikes.sum(0) + v

    expected = run(**tensors)
    grads = torch.autograd.grad(expected.sum(), list(tensors.values()))
    compiled = torch.compile(run, fullgraph=True)
    for shape in ((20, 6), (33, 6)):
        tensors = inputs(neuron, shape, torch.float32, device)
        expected = run(**tensors)
        grads = torch.autograd.grad(expected.sum(), list(tensors.values()))
        out = compiled(**tensors)
        assert torch.equal(out, expected)
        for a, b in zip(torch.autograd.grad(out.sum(), list(tensors.values())), grads, strict=True):
            torch.testing.assert_close(a, b)


def test_dynamic_shapes(device: str) -> None:
    """One compiled graph serves any T > 32 and any N. Shorter sequences have two more, for no and for one checkpoint."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: functional.lif(x)[0].sum(0), fullgraph=True, backend=counter)
    frames = []
    for shape in ((40, 7), (100, 3), (33, 9), (5, 7), (16, 4), (17, 4), (32, 9), (200, 2)):
        x = noise(shape, torch.float32, 0, device).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        assert torch.equal(compiled(x), functional.lif(x)[0].sum(0))
        frames.append(counter.frame_count)
    assert frames == [1, 1, 1, 2, 2, 3, 3, 3]


def test_export() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.lif(x)[0]

    dims = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("N", min=2)},)
    program = torch.export.export(Net(), (torch.ones(4, 3),), dynamic_shapes=dims)
    x = noise((37, 5), torch.float32, 0)
    assert torch.equal(program.module()(x), functional.lif(x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_module(device: str) -> None:
    net = torch.nn.Sequential(snnkern.nn.LIF(tau=3), snnkern.nn.ParametricLIF(v_reset=None), snnkern.nn.IF()).to(device)
    scripted = torch.jit.script(net)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for chunk in (5, 20):
        x = noise((chunk, 3, 4), torch.float32, chunk, device, 3.0).requires_grad_()
        (expected,) = torch.autograd.grad(net(x).sum(), x)
        for other in (scripted, loaded):
            (grad,) = torch.autograd.grad(other(x).sum(), x)
            assert torch.equal(grad, expected)
        for module in (net, scripted, loaded):
            for child in module.children():
                child.detach()


def test_the_library_loads_without_python_symbols() -> None:
    """A C++ program can load it: nothing of libpython or libtorch_python is needed."""
    library = snnkern._library._LIBRARY
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert "torch_python" not in needed and "libpython" not in needed
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert " Py" not in undefined


def test_importing_twice_and_from_a_thread() -> None:
    code = "import threading, snnkern; t = threading.Thread(target=lambda: __import__('snnkern')); t.start(); t.join(); print(len(snnkern.kernels()))"
    out = subprocess.run([sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                         capture_output=True, text=True, check=True, cwd="/")  # fmt: skip
    assert int(out.stdout) > 0
