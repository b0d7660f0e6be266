"""Builds snnkern from source: generates the kernels, compiles them, the host for the torch that is there, and the binding.
codegen/build.py says what is compiled, and with what.

SNNKERN_CUDA=auto|0|1   auto builds CUDA kernels when torch is a CUDA build (whether a GPU is present does not matter)
SNNKERN_ONLY=...        restricts a development build, e.g. "lif:atan:hard:f32"
SNNKERN_TORCH_HEADERS=folder   builds hosts for other releases of torch as well, from folder/2.11/torch/include and so on
SNNKERN_LIBRARIES=folder       takes the kernels and the hosts from there, and compiles the binding alone, without torch
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME   as for every PyTorch extension
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARIES = os.environ.get("SNNKERN_LIBRARIES")
# What only looks at the sources compiles nothing, and so needs no torch.
COMPILES = not {"sdist", "egg_info", "dist_info"} & set(sys.argv)

if not sys.platform.startswith("linux"):
    raise SystemExit(
        f"snnkern's kernels build on Linux, not on {sys.platform} (on Windows use WSL 2). The equations of its neurons in "
        "plain PyTorch are snnkern.reference."
    )
if COMPILES:
    try:
        import pybind11

        if not LIBRARIES:
            import torch
            from torch.utils import cpp_extension
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"snnkern builds against the torch that will run it, and needs {error.name}. Install torch first, then:\n"
            "    pip install setuptools ninja pybind11\n"
            "    pip install --no-build-isolation ."
        ) from error

sys.path.insert(0, str(ROOT))  # a build back-end does not put the project's folder on the path

from codegen import build  # noqa: E402
from codegen.__main__ import generate  # noqa: E402
from codegen.emit.kernels import Selection, files  # noqa: E402

try:
    SELECTION = Selection.parse(os.environ.get("SNNKERN_ONLY", ""))
except ValueError as error:
    raise SystemExit(str(error)) from error


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
    """What the user asked for, or the default where this nvcc knows it."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(build.architectures(find_nvcc())) + "+PTX"


def headers() -> list[str]:
    made = [f"csrc/generated/{p}" for p in files(SELECTION) if p.endswith(".h")]
    written = [p for room in ("kernels", "torch") for p in sorted((ROOT / "csrc" / room).glob("*.*h"))]
    return [*(str(p.relative_to(ROOT)) for p in written), *made]


def kernels(cuda: bool) -> Extension:
    """The library of kernels. It is linked to nothing of torch."""
    nvcc = [*build.NVCC]
    release = architecture_list = None
    if cuda:
        release, architecture_list = build.nvcc_release(find_nvcc()), architectures()
        os.environ["TORCH_CUDA_ARCH_LIST"] = architecture_list
        cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME or str(find_nvcc().parent.parent)
        nvcc.append(build.compression(release))
    about = ROOT / "build" / "about_kernels.cpp"
    text = build.build_source(release, architecture_list, os.environ.get("SNNKERN_ONLY"))
    if not about.exists() or about.read_text(encoding="utf-8") != text:
        about.parent.mkdir(exist_ok=True)
        about.write_text(text, encoding="utf-8")
    made = build.kernel_sources(files(SELECTION), cuda=cuda)
    return Extension(
        f"snnkern.lib.lib{build.KERNELS}",
        [*(f"csrc/generated/{p}" for p in made), "build/about_kernels.cpp"],
        depends=headers(),
        include_dirs=[str(ROOT / "csrc" / "kernels")],
        extra_compile_args={"cxx": [build.KERNELS_STANDARD, *build.CXX], "nvcc": nvcc},
        extra_link_args=[*build.link_flags(build.KERNELS), *(build.cuda_link_flags(find_nvcc()) if cuda else [])],
        language="c++",
    )


def host(torch_version: str, include: list[str], library_dirs: list[str]) -> Extension:
    """The operators, for a torch."""
    name = build.host_name(torch_version)
    return Extension(
        f"snnkern.lib.lib{name}",
        [str(p.relative_to(ROOT)) for p in build.host_sources(ROOT / "csrc")],
        depends=headers(),
        include_dirs=include,
        library_dirs=library_dirs,
        extra_compile_args={"cxx": [*build.HOST_CXX, *build.CXX]},
        extra_link_args=build.host_link_flags(name),
        language="c++",
    )


def hosts() -> list[Extension]:
    """For the torch that is there, and for those of which $SNNKERN_TORCH_HEADERS has 2.11/torch/include and so on."""
    made = {
        build.host_name(torch.__version__): host(
            torch.__version__, cpp_extension.include_paths(), cpp_extension.library_paths()
        )
    }
    if folder := os.environ.get("SNNKERN_TORCH_HEADERS"):
        stand_ins = str(build.stand_ins(ROOT / "build" / "stand_ins", build.TORCH_LIBRARIES))
        for include in sorted(Path(folder).resolve().glob("*/torch/include")):
            version = f"{include.parent.parent.name}.0"
            made.setdefault(build.host_name(version), host(version, [str(include)], [stand_ins]))
    return list(made.values())


def binding() -> Extension:
    return Extension(
        "snnkern._C",
        ["csrc/torch/python.cpp"],
        depends=["csrc/torch/info.h", "csrc/kernels/multistep.h"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args={"cxx": ["-O2", build.KERNELS_STANDARD, "-fvisibility=hidden", "-g0"]},
        language="c++",
    )


def extensions() -> list[Extension]:
    if not COMPILES:
        return []
    take_compiler()
    return [binding()] if LIBRARIES else [kernels(decide_cuda()), *hosts(), binding()]


class BuildExtension(build_ext if LIBRARIES or not COMPILES else cpp_extension.BuildExtension):
    def run(self) -> None:
        super().run()
        if LIBRARIES:  # as another build made them: only the binding depends on the version of Python
            target = Path(self.build_lib) / "snnkern" / "lib"
            target.mkdir(parents=True, exist_ok=True)
            for library in Path(LIBRARIES).glob("lib*.so"):
                shutil.copy(library, target)

    def get_ext_filename(self, name: str) -> str:
        # A library is no Python module, so it has no suffix of one.
        is_library = name.rpartition(".")[2].startswith("lib")
        return name.replace(".", "/") + ".so" if is_library else super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        if f"-l{build.KERNELS}" in ext.extra_link_args:
            ext.library_dirs.append(str(Path(self.get_ext_fullpath(f"snnkern.lib.lib{build.KERNELS}")).parent))
        if LIBRARIES:  # setuptools knows flags for one compiler
            ext.extra_compile_args = ext.extra_compile_args["cxx"]
        shared, self.build_temp = self.build_temp, str(Path(self.build_temp) / ext.name)  # hosts have the same sources
        super().build_extension(ext)
        self.build_temp = shared


# Before any command: setuptools looks for the generated package first of all.
print(generate(SELECTION, ROOT), flush=True)
setup(
    version=build.version(os.environ.get("SNNKERN_ONLY")),
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
)
