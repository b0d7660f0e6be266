"""libtorch: a C++ program finds snnkern with CMake, runs a saved network and calls an operator, without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snnkern
from snnkern import functional, nn, surrogate

from support import KINDS, network, noise

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake was not found"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
ROOT = Path(__file__).resolve().parent.parent
TORCH = torch.utils.cmake_prefix_path
PARTS = ("codegen", "csrc", "examples", "CMakeLists.txt", "pyproject.toml")


def run(*command: object, **environment: str) -> str:
    # A CUDA torch makes CMake look for nvcc, which is often not on the path.
    path = f"{os.environ['PATH']}:{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    out = subprocess.run(
        [str(c) for c in command],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Your installed Caffe2 version uses CUDA but I cannot find the CUDA" in out.stderr:
        pytest.skip("find_package(Torch) of a CUDA torch needs a full CUDA toolkit")
    assert out.returncode == 0, (out.stdout + out.stderr)[-8000:]
    return out.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, against the installed Python package."""
    folder = tmp_path_factory.mktemp("libtorch")
    run(
        "cmake",
        "-S",
        ROOT / "examples" / "cpp",
        "-B",
        folder,
        f"-DCMAKE_PREFIX_PATH={snnkern.cmake_prefix_path};{TORCH}",
    )
    run("cmake", "--build", folder)
    return folder / "spiking_net"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs no GPU, and takes time")
def test_a_library_for_cpp_alone(tmp_path: Path) -> None:
    """CMake builds and installs kernels and operators, and the example finds them, with no Python package."""
    folder = tmp_path
    source, installed = folder / "source", folder / "installed"
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("generated", "__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    options = [
        f"-DCMAKE_PREFIX_PATH={installed};{TORCH}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DSNNKERN_CUDA=OFF",
    ]
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
    only = {"SNNKERN_ONLY": "lif:atan:hard:f32"}
    run("cmake", "-S", source, "-B", folder / "library", *options, **only)
    run("cmake", "--build", folder / "library", "-j", jobs, **only)
    run("cmake", "--install", folder / "library", "--prefix", installed)
    shutil.rmtree(folder / "library")  # what is installed must do
    run("cmake", "-S", source / "examples" / "cpp", "-B", folder / "example", *options[:1])
    run("cmake", "--build", folder / "example")
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), nn.LIF(surrogate=surrogate.ATan()))
    x = noise((6, 3, 5), torch.float32, 0, "cpu")
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    torch.save(x, tmp_path / "x.pt")
    run(folder / "example" / "spiking_net", tmp_path / "net.pt", tmp_path / "x.pt", tmp_path / "out.pt")
    assert torch.equal(torch.load(tmp_path / "out.pt")[0], net(x))


def test_no_python_in_the_process(program: Path) -> None:
    libraries = run("ldd", program)
    assert (
        "libsnnkern_kernels.so" in libraries
        and "libsnnkern_torch" in libraries
        and "libpython" not in libraries
        and "torch_python" not in libraries
    )


@pytest.mark.parametrize("neuron", KINDS)
def test_forward_and_backward(neuron: str, program: Path, device: str, tmp_path: Path) -> None:
    net = network(neuron, device)
    x = noise((20, 3, 5), torch.float32, 0, device).requires_grad_()
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    torch.save(x.detach(), tmp_path / "x.pt")
    print(run(program, tmp_path / "net.pt", tmp_path / "x.pt", tmp_path / "out.pt"))
    spikes, grad, fired, current_grad = torch.load(tmp_path / "out.pt")
    out = net(x)
    assert torch.equal(spikes, out) and torch.equal(grad, torch.autograd.grad(out.sum(), x)[0])
    current = (3 * x).detach().requires_grad_()
    expected, v = functional.lif(current, surrogate=surrogate.ATan())
    assert torch.equal(fired, expected) and 0 < fired.mean() < 1
    assert torch.equal(current_grad, torch.autograd.grad(expected.sum() + v.sum(), current)[0])


def test_an_error_of_the_operator_arrives(program: Path, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(network("lif")[1]), tmp_path / "net.pt")
    torch.save(torch.zeros(4), tmp_path / "x.pt")
    command = [program, tmp_path / "net.pt", tmp_path / "x.pt", tmp_path / "out.pt"]
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert out.returncode == 1 and "x_seq must be [T, N, ...] with at least 2 dimensions" in out.stderr
