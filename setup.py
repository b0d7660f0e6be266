"""Builds snnkern: generates the kernels, compiles them into snnkern/lib/libsnnkern.so, and binds snnkern._C to it.

SNNKERN_CUDA=auto|0|1   auto builds CUDA kernels when torch is a CUDA build (whether a GPU is present does not matter)
SNNKERN_ONLY=...        restricts a development build, e.g. "lif:atan:hard:f32"
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME   as for every PyTorch extension
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    raise SystemExit(
        f"snnkern builds against the torch that will run it, and needs {error.name}. Install torch first, then:\n"
        "    pip install setuptools ninja pybind11\n"
        "    pip install --no-build-isolation ."
    ) from error

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build back-end does not put the project's folder on the path

from codegen.__main__ import generate  # noqa: E402
from codegen.emit.kernels import Selection, files  # noqa: E402

try:
    SELECTION = Selection.parse(os.environ.get("SNNKERN_ONLY", ""))
except ValueError as error:
    raise SystemExit(str(error)) from error
LIBRARY = "snnkern.lib.libsnnkern"
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0")


def find_nvcc() -> "Path | None":
    """cpp_extension forgets CUDA_HOME when torch is a CPU build, so this looks for itself."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), cpp_extension.CUDA_HOME, "/usr/local/cuda"):
        if home and (nvcc := Path(home) / "bin" / "nvcc").exists():
            return nvcc
    return None


def decide_cuda() -> bool:
    wish, torch_cuda, nvcc = os.environ.get("SNNKERN_CUDA", "auto"), torch.version.cuda, find_nvcc()
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"SNNKERN_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "1" and torch_cuda is None:
        raise SystemExit(
            f"SNNKERN_CUDA=1 needs a CUDA build of torch, and this is torch {torch.__version__}. "
            "Install one from pytorch.org, or set SNNKERN_CUDA=0."
        )
    cuda = wish != "0" and torch_cuda is not None
    if cuda and nvcc is None:
        raise SystemExit(
            f"torch {torch.__version__} is a CUDA build, but nvcc was not found. Install the CUDA toolkit {torch_cuda} and "
            "set CUDA_HOME to it, or set SNNKERN_CUDA=0 for a build without CUDA."
        )
    kind = f"CUDA {torch_cuda}, {nvcc}" if cuda else "CPU only"
    print(f"snnkern: torch {torch.__version__}, SNNKERN_CUDA={wish}: {kind}", flush=True)
    return cuda


def take_compiler() -> None:
    """PyTorch takes $CXX for the name of one program. One with arguments, as in CXX="ccache g++", becomes a script."""
    asked = os.environ.get("CXX", "")
    try:
        command = shlex.split(asked)
    except ValueError as error:
        raise SystemExit(f"CXX: {asked!r} is no command: {error}") from error
    if command and not shutil.which(command[0]):
        raise SystemExit(f"CXX: {command[0]} was not found: set CXX to a C++ compiler, or leave it unset")
    if len(command) > 1:
        script = ROOT / "build" / "cxx"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        os.environ |= {"CXX": str(script), "TORCH_NO_COMPILER_WRAPPER": "1"}  # no ccache of PyTorch's own around it


def architectures() -> str:
    """What the user asked for, or the default where this nvcc knows it; the last one also as PTX for GPUs to come."""
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return asked
    known = subprocess.run([str(find_nvcc()), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    chosen = [a for a in DEFAULT_ARCHITECTURES if f"compute_{a.replace('.', '')}" in known.split()]
    return ";".join(chosen) + "+PTX"


def compression() -> list[str]:
    """How nvcc makes kernels small. Drivers for CUDA 13 all read the second form, which is a fifth smaller."""
    version = subprocess.run([str(find_nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)", version)
    return ["--compress-mode=size"] if release and int(release[1]) >= 13 else ["-Xfatbin", "-compress-all"]


def sources(cuda: bool) -> list[str]:
    """The hand-written files, and from the generator's own list those of the devices that are built."""
    devices = ("cpu", "cuda") if cuda else ("cpu",)
    made = [p for p in files(SELECTION) if p.split("/")[0] in devices]
    written = ("ops", "host", "driver", "autograd")
    return [*(f"csrc/torch/{name}.cpp" for name in written), *(f"csrc/generated/{p}" for p in made)]


def headers() -> list[str]:
    made = [f"csrc/generated/{p}" for p in files(SELECTION) if p.endswith(".h")]
    written = [p for room in ("kernels", "torch") for p in sorted((ROOT / "csrc" / room).glob("*.*h"))]
    return [*(str(p.relative_to(ROOT)) for p in written), *made]


def extensions() -> list[Extension]:
    take_compiler()
    cuda = decide_cuda()
    macros: list[tuple[str, str | None]] = []
    # The results must not depend on contraction; errno and traps would keep loops from being vectorised.
    # OpenMP's run time comes with torch: linking it here too could bring in a second one.
    cxx = [
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-fopenmp",
        "-g0",
    ]
    nvcc = ["-O3", "-fmad=false", "-Xcompiler", "-fvisibility=hidden"]
    if cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
        cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME or str(find_nvcc().parent.parent)
        macros.append(("SNNKERN_WITH_CUDA", None))
        nvcc += compression()
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    library = make(
        LIBRARY,
        sources(cuda),
        depends=headers(),
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        # No library that is linked statically (libstdc++, with some toolchains) shows its symbols to the process.
        extra_link_args=["-s", "-Wl,-soname,libsnnkern.so", "-Wl,--exclude-libs,ALL"],
        py_limited_api=True,  # keeps libtorch_python out: a C++ program can load this library
    )
    about = [*macros, ("SNNKERN_TORCH", torch.__version__)]
    if only := os.environ.get("SNNKERN_ONLY"):
        about.append(("SNNKERN_ONLY", only))
    if cuda:
        about += [
            ("SNNKERN_CUDA_VERSION", torch.version.cuda),
            ("SNNKERN_CUDA_ARCHITECTURES", os.environ["TORCH_CUDA_ARCH_LIST"]),
        ]
    binding = Extension(
        "snnkern._C",
        ["csrc/torch/python.cpp"],
        depends=["csrc/torch/info.h"],
        include_dirs=[pybind11.get_include()],
        define_macros=[(name, f'"{value}"' if value else None) for name, value in about],
        extra_compile_args={"cxx": ["-O2", "-std=c++17", "-fvisibility=hidden", "-g0"]},
        libraries=["snnkern"],
        runtime_library_dirs=["$ORIGIN/lib"],
        language="c++",
    )
    return [library, binding]


class BuildExtension(cpp_extension.BuildExtension):
    def get_ext_filename(self, name: str) -> str:
        # The library is no Python module, so it has no suffix of one.
        return name.replace(".", "/") + ".so" if name in (LIBRARY, "libsnnkern") else super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "snnkern._C":
            ext.library_dirs.append(str(Path(self.get_ext_fullpath(LIBRARY)).parent))
        super().build_extension(ext)


# Before any command: setuptools looks for the generated package first of all.
print(generate(SELECTION, ROOT), flush=True)
release = re.match(r"\d+\.\d+", torch.__version__).group()
setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
    install_requires=[f"torch=={release}.*"],  # the library does not load with another release
)
