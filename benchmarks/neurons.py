"""python -m benchmarks.neurons: forward and backward of a neuron against the plain loop, eager and under torch.compile.

The unit is a pass: half the time of y.copy_(x) on x_seq, that is, the time to read or to write the tensor once. Every
implementation is checked for equal spikes before it is timed; they are timed in turn, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import snnkern

SURROGATES = {"atan": snnkern.surrogate.ATan(), "sigmoid": snnkern.surrogate.Sigmoid()}
Run = Callable[[torch.Tensor], torch.Tensor]


class Spike(torch.autograd.Function):
    """The step function, as one writes it by hand; the gradient is a subclass's."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)


class ATanSpike(Spike):
    """With the gradient of ATan(alpha=2)."""

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (u,) = ctx.saved_tensors
        return grad / (1 + (math.pi * u) ** 2)


class SigmoidSpike(Spike):
    """With the gradient of Sigmoid(alpha=4)."""

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(4 * u)
        return grad * 4 * s * (1 - s)


def plain_loop(spike: Run) -> Run:
    """LIF with tau = 2, threshold 1 and hard reset to 0, as one writes it by hand."""

    def run(x_seq: torch.Tensor) -> torch.Tensor:
        v = torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            h = v + (x - v) * 0.5
            s = spike(h - 1.0)
            v = (1 - s) * h
            spikes.append(s)
        return torch.stack(spikes)

    return run


def implementations(name: str) -> dict[str, Run]:
    """x_seq -> spike_seq, each with gradients."""
    surrogate = SURROGATES[name]
    loop = plain_loop({"atan": ATanSpike, "sigmoid": SigmoidSpike}[name].apply)
    return {
        "snnkern": lambda x: snnkern.functional.lif(x, surrogate=surrogate)[0],
        "reference": lambda x: snnkern.reference.lif(x, surrogate=surrogate)[0],
        "plain loop": loop,
        "compiled loop": torch.compile(loop, fullgraph=True),
    }


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(runs: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Times of each, taken A B C A B C ..., so that a drift of the machine's speed meets all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in tqdm(range(repeats), leave=False):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return times


def measure(steps: int, count: int, surrogate: str, device: str, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, count, generator=generator).to(device).requires_grad_()
    incoming = torch.randn(steps, count, generator=generator).to(device)
    made = implementations(surrogate)
    expected = made["reference"](x)
    for name, run in made.items():
        if not torch.equal(run(x), expected):
            raise SystemExit(f"{name}: its spikes differ from the reference's")

    def inference(run: Run) -> Callable[[], object]:
        return torch.no_grad()(lambda: run(x))

    def training(run: Run) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(x), x, incoming)

    target = torch.empty_like(incoming)
    copy = {"copy": lambda: target.copy_(incoming)}
    results = {}
    for work, make in (("inference", inference), ("forward+backward", training)):
        times = in_turn({**copy, **{name: make(run) for name, run in made.items()}}, device, repeats)
        medians = {name: statistics.median(t) for name, t in times.items()}
        results[work] = {
            name: {
                "milliseconds": round(medians[name] * 1e3, 4),
                "spread": [round(min(t) * 1e3, 4), round(max(t) * 1e3, 4)],
                "passes": round(medians[name] / (medians["copy"] / 2), 2),
                "times snnkern": round(medians[name] / medians["snnkern"], 2),
            }
            for name, t in times.items()
        }
    return {"neuron": "lif", "surrogate": surrogate, "T": steps, "N": count, "dtype": "f32", "results": results}


def commit() -> str:
    out = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return out.stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neurons", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, nargs="+", default=[16], help="T, one or more")
    parser.add_argument("--neurons", type=int, nargs="+", default=[2**18], help="N, one or more")
    parser.add_argument("--surrogates", nargs="+", choices=SURROGATES, default=list(SURROGATES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = []
    for steps in options.steps:
        for count in options.neurons:
            for surrogate in options.surrogates:
                row = measure(steps, count, surrogate, options.device, options.repeats)
                rows.append(row)
                print(f"lif, {surrogate}, T={steps}, N={count}, f32, {options.device}, {options.threads} threads")
                for work, results in row["results"].items():
                    for name, r in results.items():
                        print(
                            f"  {work:17} {name:14} {r['milliseconds']:9.3f} ms {r['passes']:7.2f} passes {r['times snnkern']:7.2f} x snnkern"
                        )
    if options.json:
        about = {
            "command": "python -m benchmarks.neurons " + " ".join(argv if argv is not None else sys.argv[1:]),
            "commit": commit(),
            "build": snnkern.build_info(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
            "threads": options.threads,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about, "measurements": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
