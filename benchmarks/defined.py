"""python -m benchmarks.defined: built-in neurons, defined again at run time, beside the built-in ones.

Seconds from the definition to the end of the first forward and backward pass, with an empty cache and with what it left
there; and the passes of both neurons, taken in turn, in the unit of benchmarks.neurons. Results are compared to the bit first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnkern
from codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.neurons import NEURONS as INSTALLED

from . import neurons, peers, process

WORKS = ("inference", "training forward", "backward")


def define(name: str) -> str:
    """The same class under another name; returns that."""
    base = next(n for n in INSTALLED if n.name == name)
    mine = {"name": f"my_{name}", "module": f"My{base.module}", "__doc__": base.__doc__}
    return snnkern.define_neuron(type(f"My{base.module}", (base,), mine)).name


def works(name: str, given: dict[str, str], x: Tensor, incoming: Tensor) -> dict[str, neurons.Work]:
    """The operators themselves, without autograd, with which both would use memory in other places."""
    roles = ("{}_forward", "_{}_train", "{}_backward")
    forward, train, backward = (getattr(torch.ops.snnkern, role.format(name)).default for role in roles)
    *outputs, checkpoints = train(x, **given)
    values = [given.get(a.name, a.default_value) for a in forward._schema.arguments[1:]]
    saved = [incoming, *(None for _ in outputs[1:]), checkpoints, x, *values]
    calls = (lambda: forward(x, **given), lambda: train(x, **given), lambda: backward(*saved))
    return dict(zip(WORKS, calls, strict=True))


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    device, dtype = torch.device(options["device"]), neurons.DTYPES[case["dtype"]]
    generator = torch.Generator(device).manual_seed(0)
    shape = (case["T"], case["N"])
    x = torch.randn(shape, device=device, dtype=dtype, generator=generator).requires_grad_()
    incoming = torch.randn(shape, device=device, dtype=dtype, generator=generator)
    clock = neurons.Clock(device, options["repeats"])
    # Starts what PyTorch starts: a gradient that is given makes it import sympy, which takes two seconds.
    torch.autograd.grad(x * 2, x, incoming)
    clock.synchronize()
    start = time.perf_counter()
    mine = define(case["neuron"])
    defined = time.perf_counter()
    given = {"surrogate": "atan"} if peers.has_surrogate(case["neuron"]) else {}

    def gradient(name: str) -> Tensor:
        operator = getattr(torch.ops.snnkern, f"{name}_forward")
        return torch.autograd.grad(operator(x, **given)[0], x, incoming)[0]

    found = gradient(mine)
    clock.synchronize()
    used = time.perf_counter()
    if not torch.equal(found, gradient(case["neuron"])):
        raise peers.Unavailable("its gradients are not those of the built-in neuron")
    target = torch.empty_like(incoming)
    names = {"built-in": case["neuron"], "defined": mine}
    both = {kind: works(name, given, x.detach(), incoming) for kind, name in names.items()}
    every: dict[str, neurons.Work] = {}
    for work in WORKS:
        for kind, calls in both.items():
            # Each runs after the same, since what ran before leaves its mark on caches.
            every[f"copy before {kind} {work}"] = lambda: target.copy_(incoming)
            every[f"{kind} {work}"] = calls[work]
    timed = clock.medians(every, options["budget"])
    unit = statistics.median(timed.pop(name)["ms"] for name in every if name.startswith("copy")) / 2
    for result in timed.values():
        result["passes"] = result["ms"] / unit
    return {"define_s": defined - start, "first_use_s": used - start, "pass_ms": unit, "works": timed}


def cases(options: argparse.Namespace, cache: str) -> list[dict[str, Any]]:
    """All in one process: the first one waits for what compiles to be loaded."""
    common = {"peer": "snnkern", "cache": cache, "T": options.steps, "N": options.elements // options.steps}
    return [{**common, "neuron": neuron, "dtype": dtype} for neuron in options.neurons for dtype in options.dtypes]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':32} {'define, s':>10} {'first, s':>10}   passes, built-in | defined: {', '.join(WORKS)}"
    for row in rows:
        name = f"{row['neuron']} {row['dtype']} T={row['T']} N={row['N']} {row['cache']}"
        if "unavailable" in row:
            yield f"{name:32} {row['unavailable']}"
            continue
        pairs = [[row["works"][f"{kind} {work}"]["passes"] for kind in ("built-in", "defined")] for work in WORKS]
        passes = "   ".join(f"{a:.2f} | {b:.2f} ({b / a - 1:+.1%})" for a, b in pairs)
        yield f"{name:32} {row['define_s']:10.2f} {row['first_use_s']:10.2f}   {passes}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defined", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--neurons", nargs="+", choices=[n.name for n in NEURONS], default=["lif", "alif", "adex"])
    parser.add_argument("--dtypes", nargs="+", choices=neurons.DTYPES, default=["f32", "bf16"])
    parser.add_argument("--steps", type=int, default=16, help="T")
    parser.add_argument("--elements", type=int, default=2**26, help="T * N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds after which a case needs no more repeats")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [process.Task(cases(options, cache), {"SNNKERN_CACHE": folder}) for cache in ("empty", "filled")]
        rows = process.collect("benchmarks.defined", tasks, argv, options)
    print("\n".join(table(rows)))
    return process.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
