"""Building: a restricted build says what it leaves out, the CUDA rule is explained, the wheel pins its torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import snnkern
from snnkern.codegen.emit.kernels import Selection

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("codegen", "csrc", "snnkern", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the sources: a build with SNNKERN_ONLY must not touch the tree."""
    folder = tmp_path_factory.mktemp("source")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("generated", "_generated", "__pycache__")
            )
        else:
            shutil.copy(ROOT / part, folder / part)
    yield folder
    shutil.rmtree(folder)


def run(*command: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    out = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert not check or out.returncode == 0, out.stdout + out.stderr
    return out


@pytest.fixture(scope="module")
def restricted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """snnkern built for one combination."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(target),
        ".",
    ]
    # A compiler may have arguments: CXX="ccache g++", say.
    compiler = f"env SNNKERN_UNUSED=1 {shutil.which('g++') or 'c++'}"
    run(*command, cwd=source, SNNKERN_ONLY="lif:atan:hard:f32", SNNKERN_CUDA="0", CXX=compiler)
    return target


def test_a_restricted_build_says_what_it_leaves_out(restricted: Path, tmp_path: Path) -> None:
    code = """
import torch, snnkern
print(snnkern.kernels(), snnkern.kernels("cuda"))
x = torch.ones(2, 3, requires_grad=True)
spikes, _ = torch.ops.snnkern.lif_forward(x, surrogate="atan")
spikes.sum().backward()
for call in (lambda: torch.ops.snnkern.if_forward(x), lambda: torch.ops.snnkern.lif_forward(x.double(), surrogate="atan"),
             lambda: torch.ops.snnkern.lif_forward(x)[0].sum().backward()):
    try:
        call()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    lines = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(restricted)).stdout.splitlines()
    assert lines[0] == "['lif:atan:hard:f32'] []"
    assert lines[1].startswith(
        "snnkern.if_forward: this build of snnkern leaves out if:sigmoid:hard:f32 (SNNKERN_ONLY was set"
    )
    assert "leaves out lif:atan:hard:f64" in lines[2]
    assert lines[3].startswith("snnkern.lif_backward: this build of snnkern leaves out lif:sigmoid:hard:f32")


def test_another_torch_is_refused_before_the_library_loads(tmp_path: Path) -> None:
    """A library that was built for another release may load, and compute something else."""
    code = """
import torch
torch.__version__ = "{}"
try:
    import snnkern
except ImportError as error:
    print(error, hasattr(torch.ops.snnkern, "lif_forward"))
else:
    print("loaded")
"""
    major, minor = torch.__version__.split(".")[:2]
    for other in (f"{major}.{int(minor) + 1}.0", f"{major}.{minor}0.0+cpu", f"{int(major) + 1}.{minor}.0a0+git"):
        out = run(sys.executable, "-P", "-c", code.format(other), cwd=tmp_path).stdout
        assert f"this snnkern was built for torch {major}.{minor}, and this is torch {other}. Rebuild it" in out
        assert f"or install torch=={major}.{minor}.*" in out and out.split()[-1] == "False"
    for same in (f"{major}.{minor}.9", f"{major}.{minor}.0a0+git"):
        assert run(sys.executable, "-P", "-c", code.format(same), cwd=tmp_path).stdout == "loaded\n"


def test_a_library_that_does_not_load_is_explained(restricted: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(restricted, broken)
    library = broken / "snnkern" / "lib" / "libsnnkern.so"
    library.write_bytes(b"not a library")
    out = run(sys.executable, "-c", "import snnkern", cwd=tmp_path, check=False, PYTHONPATH=str(broken))
    release = ".".join(torch.__version__.split(".")[:2])
    assert (
        f"the library was built for torch=={release}.* and does not load with torch {torch.__version__}" in out.stderr
    )
    assert "Rebuild it with this torch: `pip install --no-build-isolation" in out.stderr
    library.unlink()
    out = run(sys.executable, "-c", "import snnkern", cwd=tmp_path, check=False, PYTHONPATH=str(broken))
    assert "libsnnkern.so is missing. Python found the source folder, or a build that did not finish" in out.stderr


def test_the_cuda_rule(source: Path) -> None:
    command = (sys.executable, "setup.py", "--version")
    if torch.version.cuda is None:
        out = run(*command, cwd=source, SNNKERN_CUDA="auto")
        assert "SNNKERN_CUDA=auto: CPU only" in out.stdout
        out = run(*command, cwd=source, check=False, SNNKERN_CUDA="1")
        assert out.returncode != 0 and "SNNKERN_CUDA=1 needs a CUDA build of torch" in out.stderr
    else:
        assert f"SNNKERN_CUDA=auto: CUDA {torch.version.cuda}" in run(*command, cwd=source, SNNKERN_CUDA="auto").stdout
    assert "SNNKERN_CUDA=0: CPU only" in run(*command, cwd=source, SNNKERN_CUDA="0").stdout
    out = run(*command, cwd=source, check=False, SNNKERN_CUDA="yes")
    assert "SNNKERN_CUDA must be auto, 0 or 1, got 'yes'" in out.stderr


def test_a_cuda_torch_without_nvcc_is_an_error_not_a_cpu_wheel(source: Path) -> None:
    code = """
import sys, torch
torch.version.cuda = "13.0"
from torch.utils import cpp_extension
cpp_extension.CUDA_HOME = None
import pathlib
real = pathlib.Path.exists
pathlib.Path.exists = lambda self: False if self.name == "nvcc" else real(self)
sys.argv = ["setup.py", "--version"]
exec(compile(open("setup.py").read().replace("__file__", "'setup.py'"), "setup.py", "exec"))
"""
    out = run(sys.executable, "-c", code, cwd=source, check=False, SNNKERN_CUDA="auto")
    assert (
        out.returncode != 0
        and "is a CUDA build, but nvcc was not found" in out.stderr
        and "SNNKERN_CUDA=0" in out.stderr
    )


def test_a_selection_of_nothing_or_of_the_unknown_is_one_line(source: Path) -> None:
    for text, message in (
        ("li:atan", "SNNKERN_ONLY: 'li:atan' selects nothing: no neuron in it has such a surrogate and reset; "),
        ("ilif:none:hard", "SNNKERN_ONLY: 'ilif:none:hard' selects nothing"),
        ("lif:tanh", "SNNKERN_ONLY: unknown surrogate 'tanh'; expected one of none, sigmoid, atan, "),
        ("a:b:c:d:e", "SNNKERN_ONLY: expected neuron:surrogate:reset:dtype, got 'a:b:c:d:e'"),
    ):
        out = run(sys.executable, "setup.py", "--version", cwd=source, check=False, SNNKERN_ONLY=text, SNNKERN_CUDA="0")
        assert out.returncode == 1 and out.stderr.startswith(message) and len(out.stderr.splitlines()) == 1
        out = run(sys.executable, "-m", "codegen", "--list", cwd=source, check=False, SNNKERN_ONLY=text)
        assert out.returncode == 2 and message in out.stderr


def test_a_compiler_that_is_none_is_one_line(source: Path) -> None:
    for text, message in (
        ("no-such-compiler -O2", "CXX: no-such-compiler was not found"),
        ("g++ '", 'CXX: "g++ \'" is no'),
    ):
        out = run(sys.executable, "setup.py", "--version", cwd=source, check=False, CXX=text, SNNKERN_CUDA="0")
        assert out.returncode == 1 and out.stderr.startswith(message) and len(out.stderr.splitlines()) == 1


def test_the_metadata_pins_the_torch_of_the_build() -> None:
    release = ".".join(torch.__version__.split(".")[:2])
    assert f"torch=={release}.*" in (metadata.requires("snnkern") or [])


def test_build_info_and_kernels() -> None:
    info = snnkern.build_info()
    assert info["snnkern"] == snnkern.__version__ and info["torch"] == torch.__version__
    assert info["cpu_instruction_set"] in ("baseline", "x86-64-v3", "x86-64-v4")
    built = Selection.parse(info["only"] or "").combinations()
    assert snnkern.kernels() == built
    assert snnkern.kernels("cuda") == (built if info["cuda"] else [])
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", got \'tpu\''):
        snnkern.kernels("tpu")


def test_command_line(tmp_path: Path) -> None:
    out = run(sys.executable, "-m", "snnkern", "info", cwd=tmp_path).stdout
    assert (
        f"torch {torch.__version__}" in out
        and f"cpu: {len(snnkern.kernels())} combinations" in out
        and "surrogates: sigmoid atan" in out
    )
    out = run(sys.executable, "-m", "snnkern", cwd=tmp_path, check=False)
    assert out.returncode == 2 and "info" in out.stderr
