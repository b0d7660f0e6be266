"""python -m snnkern info"""

from __future__ import annotations

import argparse
import platform
import sys

import torch

from . import build_info, kernels


def info() -> str:
    """Versions, build, devices and compiled combinations, as text."""
    build = build_info()
    lines = [f"snnkern {build.pop('snnkern')}, Python {platform.python_version()}, torch {torch.__version__}", "build:"]
    lines += [f"  {key}: {value}" for key, value in build.items()]
    lines.append(f"devices:\n  cpu: {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        lines.append(f"  cuda:{i}: {torch.cuda.get_device_name(i)}")
    for device in ("cpu", "cuda"):
        names = kernels(device)
        lines.append(f"{device}: {len(names)} combinations")
        parts = [list(dict.fromkeys(part)) for part in zip(*(name.split(":") for name in names), strict=True)]
        for title, part in zip(("neurons", "surrogates", "resets", "dtypes"), parts, strict=False):
            lines.append(f"  {title}: {' '.join(part)}")
    return "\n".join(lines)


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
