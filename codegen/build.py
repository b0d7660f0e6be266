"""How the libraries are built: sources, flags, architectures, names. Standard library alone, since everything that compiles reads it.

libsnnkern_kernels.so        the kernels and their tables, for CPU and CUDA: no symbol of torch, and no need of it to compile
libsnnkern_torch2_13.so      the host: the operators, compiled against the headers of one release of torch; it needs no CUDA
snnkern/_C                   the binding, compiled for one Python; it finds the host that was loaded

setup.py, CMakeLists.txt (`python -m codegen --cmake`), snnkern._library, snnkern.jit, snnkern._nvrtc, codegen.report and
the tests take from here what they compile, and with what.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

VERSION = "0.1.0"

KERNELS = "snnkern_kernels"
"""The library of kernels, as a linker calls it."""

TORCH_LIBRARIES = ("c10", "torch_cpu")
"""What a host takes from torch: nothing of CUDA, so that it serves every build of a release."""

# Results must not depend on contraction; errno and traps would keep loops from being vectorised.
ARITHMETIC = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
CXX = ("-O3", *ARITHMETIC, "-fvisibility=hidden", "-g0")
KERNELS_STANDARD = "-std=c++17"
# torch's headers ask for it. OpenMP's run time comes with torch: linking it here too could bring in a second one.
HOST_CXX = ("-std=c++20", "-fopenmp")
NVCC_ARITHMETIC = ("-fmad=false",)
NVCC = (KERNELS_STANDARD, "-O3", *NVCC_ARITHMETIC, "-Xcompiler", "-fvisibility=hidden")
# No library that is linked statically (libstdc++, with some toolchains) shows its symbols to the process.
LINK = ("-s", "-Wl,--exclude-libs,ALL")

ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0")
"""GPUs that CUDA kernels are compiled for, where nvcc knows them; the last one also as PTX, for GPUs to come."""


HOST = "snnkern_torch"


def host_name(torch: str) -> str:
    """The host for a torch, as a linker calls it. One serves a release; others, such as 2.14.0a0+git, are each their own."""
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\.post\d+)?(\+.*)?", torch)
    return HOST + re.sub(r"\W", "_", release[1] if release else torch)


def version(only: str | None) -> str:
    """Of a build. One that SNNKERN_ONLY restricts has a name of its own, so that no cache takes it for a whole one."""
    return f"{VERSION}+only.{hashlib.sha256(only.encode()).hexdigest()[:8]}" if only else VERSION


def kernel_sources(made: Iterable[str], *, cuda: bool) -> list[str]:
    """Of the generated files, below csrc/generated, those that are compiled into the kernels."""
    rooms = ("cpu/", "cuda/") if cuda else ("cpu/",)
    return [p for p in made if p.startswith(rooms) and p.endswith((".cpp", ".cu")) and not (cuda and p == NO_CUDA)]


NO_CUDA = "cpu/no_cuda.cpp"
"""Stands for cuda/table.cpp in a build without CUDA."""


def host_sources(csrc: Path) -> list[Path]:
    """All of csrc/torch but the binding."""
    return sorted(p for p in (csrc / "torch").glob("*.cpp") if p.name != "python.cpp")


def compression(nvcc_release: str) -> str:
    """How nvcc makes kernels small. Drivers for CUDA 13 all read the second form, which is a fifth smaller."""
    return "--compress-mode=size" if int(nvcc_release.split(".", maxsplit=1)[0]) >= 13 else "-Xfatbin=-compress-all"


def nvcc_release(nvcc: str | Path) -> str:
    """Of an nvcc, as 13.0"""
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else "0.0"


def architectures(nvcc: str | Path) -> list[str]:
    """Those of ARCHITECTURES that an nvcc knows."""
    known = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in known]


def cuda_link_flags(nvcc: str | Path) -> list[str]:
    """What links CUDA's run time, statically: nvcc itself says where that is."""
    text = subprocess.run([str(nvcc), "--dryrun", "none.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ LIBRARIES=(.*)$", text, re.MULTILINE)
    return [*(found[1].replace('"', "").split() if found else []), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def link_flags(library: str) -> list[str]:
    """Of each of the libraries: it is found by its name, and finds the others beside itself."""
    return [*LINK, f"-Wl,-soname,lib{library}.so", "-Wl,-rpath,$ORIGIN"]


def host_link_flags(library: str) -> list[str]:
    """It needs these, also where what is linked with is a stand-in that has no symbol."""
    needed = [f"-l{name}" for name in (KERNELS, *TORCH_LIBRARIES)]
    return [*link_flags(library), "-Wl,--push-state,--no-as-needed", *needed, "-Wl,--pop-state"]


def stand_ins(folder: Path, libraries: Iterable[str]) -> Path:
    """A folder of empty libraries with these names, to link with in the place of a torch of which only the headers are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in libraries:
        soname = f"lib{name}.so"
        command = [
            "c++",
            "-shared",
            "-nostdlib",
            f"-Wl,-soname,{soname}",
            "-x",
            "c++",
            "/dev/null",
            "-o",
            str(folder / soname),
        ]
        subprocess.run(command, check=True)
    return folder


def build_source(cuda: str | None, cuda_architectures: str | None, only: str | None) -> str:
    """The file of the kernels that says how they were built: kBuild of csrc/kernels/multistep.h."""
    values = ", ".join(json.dumps(v) if v else "nullptr" for v in (cuda, cuda_architectures, only))
    return (
        '#include "multistep.h"\n\nnamespace snnkern {\n'
        f"const Build kBuild = {{{values}, __VERSION__}};\n"
        "}  // namespace snnkern\n"
    )


def cmake(made: Iterable[str], nvcc: str | None, only: str | None) -> str:
    """What CMakeLists.txt includes; it chooses between CPU and CUDA, so it gets both."""
    release = nvcc_release(nvcc) if nvcc else ""
    known = architectures(nvcc) if nvcc else []
    numbers = [a.replace(".", "") + ("" if a == known[-1] else "-real") for a in known]
    made = list(made)
    cpu, cuda = kernel_sources(made, cuda=False), kernel_sources(made, cuda=True)
    values = {
        "version": [VERSION],
        "only": [only or ""],
        "kernels": [KERNELS],
        "host": [HOST],
        "arithmetic": ARITHMETIC,
        "nvcc_arithmetic": NVCC_ARITHMETIC,
        "nvcc_compression": [compression(release)] if nvcc else [],
        "nvcc_release": [release],
        "architectures": numbers,
        "sources": [f"csrc/generated/{p}" for p in cpu],
        "sources_with_cuda": [f"csrc/generated/{p}" for p in cuda],
    }
    return "".join(f"set(snnkern_{name} {' '.join(json.dumps(v) for v in value)})\n" for name, value in values.items())
