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

import snnkern
from codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.neurons import NEURONS as INSTALLED

from . import neurons, peers, process

WORKS = ("inference", "forward", "backward")


def define(name: str) -> str:
    """The same class under another name; returns that."""
    base = next(n for n in INSTALLED if n.name == name)
    mine = {"name": f"my_{name}", "module": f"My{base.module}", "__doc__": base.__doc__}
    return snnkern.define_neuron(type(f"My{base.module}", (base,), mine)).name


def built(name: str, has_surrogate: bool) -> peers.Built:
    operator = getattr(torch.ops.snnkern, f"{name}_forward")
    options = {"surrogate": "atan"} if has_surrogate else {}
    return peers.Built(lambda x: operator(x, **options)[0])


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    device, dtype = torch.device(options["device"]), neurons.DTYPES[case["dtype"]]
    generator = torch.Generator(device).manual_seed(0)
    shape = (case["T"], case["N"])
    x = torch.randn(shape, device=device, dtype=dtype, generator=generator).requires_grad_()
    incoming = torch.randn(shape, device=device, dtype=dtype, generator=generator)
    clock = neurons.Clock(device, options["repeats"])
    torch.autograd.grad((x * 2).sum(), x)  # starts what PyTorch starts
    clock.synchronize()
    start = time.perf_counter()
    mine = define(case["neuron"])
    defined = time.perf_counter()
    has_surrogate = peers.has_surrogate(case["neuron"])
    both = {"built-in": built(case["neuron"], has_surrogate), "defined": built(mine, has_surrogate)}
    results = {"defined": torch.autograd.grad(both["defined"].run(x), x, incoming)[0]}
    clock.synchronize()
    used = time.perf_counter()
    results["built-in"] = torch.autograd.grad(both["built-in"].run(x), x, incoming)[0]
    if not torch.equal(results["defined"], results["built-in"]):
        raise peers.Unavailable("its gradients are not those of the built-in neuron")
    target = torch.empty_like(incoming)
    works: dict[str, Any] = {}
    for work in WORKS:
        for (
            name,
            layer,
        ) in both.items():  # each after the same, since what ran before leaves its mark on caches and memory
            works[f"copy before {name} {work}"] = lambda: target.copy_(incoming)
            works[f"{name} {work}"] = neurons.works(layer, x, incoming)[work]
    timed = clock.medians(works, options["budget"])
    unit = statistics.median(timed.pop(name)["ms"] for name in works if name.startswith("copy")) / 2
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
