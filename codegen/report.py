"""What the compiler makes of the generated CUDA kernels: registers, spills, size, time. Needs nvcc, and no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import build

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>[^']+)'.*?(?P<stores>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Compiled:
    """One .cu file: its kernels as (name, registers, bytes of spill stores), its machine code's size, seconds."""

    file: str
    kernels: list[tuple[str, int, int]]
    size: int
    seconds: float


def compile_all(csrc: Path, architecture: str) -> Iterator[Compiled]:
    """Compiles each generated .cu as it is built, one after the other on each core."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    sources = sorted((csrc / "generated" / "cuda").glob("*/*.cu"))

    def run(source: Path) -> Compiled:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "kernels.cubin"
            command = [nvcc, *build.NVCC, f"-arch={architecture}", "-Xptxas", "-v", "-cubin"]
            start = time.perf_counter()
            done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            text = subprocess.run(["c++filt"], input=done.stderr, capture_output=True, text=True, check=True).stdout
            kernels = [(m["name"], int(m["registers"]), int(m["stores"])) for m in _KERNEL.finditer(text)]
            name = str(source.relative_to(csrc / "generated" / "cuda"))
            return Compiled(name, kernels, made.stat().st_size, time.perf_counter() - start)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run, sources)


def report(csrc: Path, architecture: str) -> int:
    """Prints a line a file, and every kernel that spills. Returns how many do, without those of float64, for checking."""
    print(f"{'file':45} {'kernels':>8} {'registers':>12} {'spilling':>9} {'KiB':>7} {'s':>6}")
    spilling = failed = kernels = size = 0
    for made in compile_all(csrc, architecture):
        bad = [(name, stores) for name, _, stores in made.kernels if stores]
        registers = [r for _, r, _ in made.kernels]
        span = f"{min(registers)}-{max(registers)}"
        print(
            f"{made.file:45} {len(made.kernels):8} {span:>12} {len(bad):9} {made.size / 1024:7.0f} {made.seconds:6.1f}",
            flush=True,
        )
        for name, stores in bad:
            print(f"  spills {stores} bytes: {name}")
        failed += sum("<double>" not in name for name, _ in bad)
        spilling, kernels, size = spilling + len(bad), kernels + len(made.kernels), size + made.size
    print(f"{kernels} kernels, {spilling} spill; {size / 2**20:.1f} MiB of machine code for {architecture}")
    return failed
