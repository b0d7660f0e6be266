"""Building: a restricted build says what it leaves out, the CUDA rule is explained, and one package serves several torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import snnkern
from snnkern import cli
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


OTHER_TORCH = """
import torch
torch.__version__ = "{}"
import snnkern
x = torch.ones(2, 3, requires_grad=True)
snnkern.functional.lif(x, surrogate=snnkern.surrogate.ATan())[0].sum().backward()
print(snnkern._library.HOST)
"""


def test_a_torch_without_a_host_gets_one_once(restricted: Path, tmp_path: Path) -> None:
    """A pre-release is no release: its headers may be others."""
    code = OTHER_TORCH.format(torch.__version__.split("+")[0] + "a0+git")
    environment = {"PYTHONPATH": str(restricted), "SNNKERN_CACHE": str(tmp_path / "cache")}
    first = run(sys.executable, "-c", code, cwd=tmp_path, **environment)
    assert "snnkern: compiling its operators for torch" in first.stderr
    again = run(sys.executable, "-c", code, cwd=tmp_path, CXX="", **environment)
    assert again.stdout == first.stdout and Path(first.stdout.strip()).parent == tmp_path / "cache"
    assert "compiling" not in again.stderr


def test_a_torch_without_a_host_and_no_compiler_is_one_error(restricted: Path, tmp_path: Path) -> None:
    release = ".".join(torch.__version__.split(".")[:2])
    environment = {"PYTHONPATH": str(restricted), "SNNKERN_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    for other in (f"{release}0.0", f"{release}.0a0+git", "9.0.1"):
        out = run(sys.executable, "-c", OTHER_TORCH.format(other), cwd=tmp_path, check=False, **environment)
        said = out.stderr.splitlines()[-1]
        assert (
            f"ImportError: snnkern: this is torch {other}, and this snnkern has operators for torch {release}; " in said
        )
        assert (
            "needs a C++ compiler, and none was found. Install one of these torch, or build snnkern for yours" in said
        )
    for same in (f"{release}.9", f"{release}.0.post1", f"{release}.1+cu999"):
        out = run(sys.executable, "-c", OTHER_TORCH.format(same), cwd=tmp_path, **environment)
        assert Path(out.stdout.strip()).parent == restricted / "snnkern" / "lib"


def test_a_library_that_does_not_load_is_explained(restricted: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(restricted, broken)
    (host,) = (broken / "snnkern" / "lib").glob("libsnnkern_torch*.so")
    host.write_bytes(b"not a library")
    out = run(sys.executable, "-c", "import snnkern", cwd=tmp_path, check=False, PYTHONPATH=str(broken))
    assert f"{host.name} does not load with torch {torch.__version__}" in out.stderr
    assert "Build snnkern for this torch: `pip install --no-build-isolation" in out.stderr
    host.with_name("libsnnkern_kernels.so").unlink()
    out = run(sys.executable, "-c", "import snnkern", cwd=tmp_path, check=False, PYTHONPATH=str(broken))
    assert "libsnnkern_kernels.so is missing. Python found the source folder, or a build that did not" in out.stderr


def test_the_kernels_load_without_torch(restricted: Path, tmp_path: Path) -> None:
    library = restricted / "snnkern" / "lib" / "libsnnkern_kernels.so"
    code = f"import ctypes, sys; ctypes.CDLL({str(library)!r}); print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=tmp_path).stdout == "False\n"


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'setup.py'; exec(compile(open('setup.py').read().replace('__file__', repr('setup.py')), 'setup.py', 'exec'))"


def test_the_binding_is_built_alone_over_libraries_that_are_there(
    source: Path, restricted: Path, tmp_path: Path
) -> None:
    command = (
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "build",
        "--build-base",
        str(tmp_path),
        "--build-lib",
        str(tmp_path / "site"),
    )
    run(*command, cwd=source, SNNKERN_LIBRARIES=str(restricted / "snnkern" / "lib"))
    code = "import snnkern; print(snnkern.kernels(), snnkern._C.__file__)"
    for name in restricted.glob("snnkern-*.dist-info"):
        shutil.copytree(name, tmp_path / "site" / name.name)
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).stdout
    assert out.startswith(f"['lif:atan:hard:f32'] {tmp_path}")


def test_a_source_distribution_needs_no_torch_and_has_everything(source: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c", WITHOUT_TORCH, "sdist", "--dist-dir", str(tmp_path), cwd=source)
    (archive,) = tmp_path.glob("snnkern-*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wanted = {p.relative_to(source).as_posix() for part in ("codegen", "csrc") for p in (source / part).rglob("*.*")}
    made = {name for name in wanted if "generated/" in name or "__pycache__" in name}
    assert wanted - made <= names and not made & names


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


def test_the_metadata_leaves_an_installed_torch_alone() -> None:
    assert "torch>=2.11" in (metadata.requires("snnkern") or [])


def test_a_restricted_build_has_a_version_of_its_own(restricted: Path) -> None:
    (about,) = restricted.glob("snnkern-*.dist-info")
    assert "+only." in about.name


def test_build_info_and_kernels() -> None:
    info = snnkern.build_info()
    assert info["snnkern"] == snnkern.__version__ and info["torch"] == re.match(r"[\d.]+", torch.__version__)[0]
    assert info["cpu_instruction_set"] in ("baseline", "x86-64-v3", "x86-64-v4")
    built = Selection.parse(info["only"] or "").combinations()
    assert snnkern.kernels() == built
    assert snnkern.kernels("cuda") == (built if info["cuda"] else [])
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", got \'tpu\''):
        snnkern.kernels("tpu")


def test_command_line(tmp_path: Path) -> None:
    out = run(sys.executable, "-m", "snnkern", "info", cwd=tmp_path).stdout
    assert f"operators: {snnkern._library.HOST}\n  kernels: {snnkern._library.KERNELS}\n" in out
    assert (
        f"torch {torch.__version__}" in out
        and f"cpu: {len(snnkern.kernels())} combinations" in out
        and "surrogates: sigmoid atan" in out
    )
    out = run(sys.executable, "-m", "snnkern", cwd=tmp_path, check=False)
    assert out.returncode == 2 and "info" in out.stderr


def test_info_says_why_a_gpu_would_be_slow() -> None:
    there = "kernels for it are there"
    for architectures, capability, said in (
        ("7.5;8.0;9.0+PTX", (9, 0), there),
        ("7.5;8.0;9.0+PTX", (8, 9), there),  # of its generation, with a lower number
        ("75-real 80-real 90", (8, 6), there),
        ("7.5;8.0;9.0+PTX", (12, 0), "the driver compiles the kernels from PTX, once"),
        ("8.0;9.0", (12, 0), "not for its 12.0: build snnkern for it"),
        ("8.6;10.0+PTX", (8, 0), "not for its 8.0"),
        (None, (9, 0), "this build has no CUDA"),
    ):
        assert said in cli._slow_gpu(architectures, capability), (architectures, capability)
