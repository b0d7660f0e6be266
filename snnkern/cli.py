"""python -m snnkern info"""

from __future__ import annotations

import argparse
import platform
import re
import sys

import torch

from . import _library, build_info, kernels


def info() -> str:
    """Versions, build, devices and compiled combinations, as text."""
    build = build_info()
    lines = [f"snnkern {build.pop('snnkern')}, Python {platform.python_version()}, torch {torch.__version__}", "build:"]
    lines += [f"  {key}: {value}" for key, value in build.items()]
    lines.append(f"libraries:\n  operators: {_library.HOST}\n  kernels: {_library.KERNELS}")
    lines.append(f"devices:\n  cpu: {torch.get_num_threads()} threads; {_slow_cpu(build['cpu_instruction_set'])}")
    for i in range(torch.cuda.device_count()):
        note = _slow_gpu(build["cuda_architectures"], torch.cuda.get_device_capability(i))
        lines.append(f"  cuda:{i}: {torch.cuda.get_device_name(i)}; {note}")
    for device in ("cpu", "cuda"):
        names = kernels(device)
        lines.append(f"{device}: {len(names)} combinations")
        parts = [list(dict.fromkeys(part)) for part in zip(*(name.split(":") for name in names), strict=True)]
        for title, part in zip(("neurons", "surrogates", "resets", "dtypes"), parts, strict=False):
            lines.append(f"  {title}: {' '.join(part)}")
    return "\n".join(lines)


def _slow_cpu(instruction_set: str) -> str:
    if instruction_set == "baseline" and platform.machine() == "x86_64":
        return "slow: this processor, or this build, has no AVX2"
    return "kernels for it are there"


def _slow_gpu(architectures: str | None, capability: tuple[int, int]) -> str:
    """Whether there is machine code for a GPU: that of its own generation, up to its own number, runs on it."""
    major, minor = capability
    if architectures is None:
        return "this build has no CUDA: each kernel is compiled when it is first needed, and one with a BatchNorm is an error"
    known = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\.?(\d)\b", architectures)]
    if any(a == major and b <= minor for a, b in known):
        return "kernels for it are there"
    if "PTX" in architectures and max(known) < capability:
        return "a slow first call: the driver compiles the kernels from PTX, once"
    return f"kernels are for compute capability {architectures}, not for its {major}.{minor}: build snnkern for it"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m snnkern", description="Spiking-neuron kernels for PyTorch.")
    parser.add_subparsers(dest="command", required=True).add_parser(
        "info", help="versions, build, devices, combinations"
    )
    parser.parse_args(argv)
    print(info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
