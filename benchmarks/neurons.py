"""python -m benchmarks.neurons: time and memory of a neuron layer, beside other libraries and the plain loop.

The unit is a pass: half the time of y.copy_(x) on x_seq, that is, the time to read or to write the tensor once, taken
in the same process between the other measurements. Each peer runs in a process of its own, so that none disturbs the
others; its spikes are compared before it is timed. On a GPU, times are the device's own (CUDA events, with the queue
filled beforehand); `host` is how long the calling thread is busy with one call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import peers, process

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
STEPS = (4, 8, 16, 32, 128, 1000)
COUNTS = (2**10, 2**14, 2**18, 2**20, 2**22, 2**24)
LAYOUTS = ("time first", "batch first")
SAMPLES = 32  # of a batch that lies outside time: [SAMPLES, T, N / SAMPLES], transposed
WORKS = ("inference", "forward", "backward", "forward+backward")
Work = Callable[[], object]
DIFFERENT_AT_MOST = 1e-4  # share of spikes that rounding in another order may turn


# ---- in a peer's process ---------------------------------------------------------------------------------------------


class Clock:
    """Times pieces of work on a device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def host(self, work: Work) -> float:
        """Seconds until `work` returns; on a GPU that is before it is done."""
        self.synchronize()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def once(self, work: Work, host: float) -> float:
        """Seconds of the device."""
        if self.device.type == "cpu":
            return self.host(work)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((1.5 * host + 50e-6) * 2e9))  # meanwhile the host puts everything into the queue
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def medians(self, works: dict[str, Work], budget: float) -> dict[str, dict[str, float]]:
        """Taken A B C A B C ..., so that a drift of the device's speed meets all; fewer times where it takes long."""
        hosts: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(3):
            for name, work in works.items():
                hosts[name].append(self.host(work))
        self.synchronize()
        start = time.perf_counter()
        times: dict[str, list[float]] = {name: [] for name in works}
        for i in range(self.repeats):
            for name, work in works.items():
                times[name].append(self.once(work, hosts[name][-1]))
                hosts[name].append(self.host(work))
            if i >= 4 and time.perf_counter() - start > budget:
                break
        return {
            name: {
                "ms": statistics.median(t) * 1e3,
                "low": min(t) * 1e3,
                "high": max(t) * 1e3,
                "host_us": statistics.median(hosts[name]) * 1e6,
            }
            for name, t in times.items()
        }


def works(built: peers.Built, x: Tensor, incoming: Tensor) -> dict[str, Work]:
    inputs = [x, *built.learned]

    def inference() -> Tensor:
        with torch.no_grad():
            return built.run(x)

    def training() -> object:
        return torch.autograd.grad(built.run(x), inputs, incoming)

    output = built.run(x)

    def backward() -> object:
        return torch.autograd.grad(output, inputs, incoming, retain_graph=True)

    return dict(zip(WORKS, (inference, lambda: built.run(x), backward, training), strict=True))


def memory(built: peers.Built, x: Tensor, incoming: Tensor) -> dict[str, int]:
    """Bytes beyond x_seq: kept between forward and backward, and at most; the spikes count in both."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = built.run(x)
    kept = torch.cuda.memory_allocated() - before
    torch.autograd.grad(output, [x, *built.learned], incoming)
    return {"retained_bytes": kept, "peak_bytes": torch.cuda.max_memory_allocated() - before}


def different(built: peers.Built, neuron: str, x: Tensor) -> float:
    """The share of spikes that are not those of the reference."""
    with torch.no_grad():
        # It wants a gradient as x does, or a compiled peer would compile once more.
        part = x[:, : max(1, min(x.shape[1], 2**22 // x[:, :1].numel()))].contiguous().requires_grad_()
        expected = peers.build("reference", neuron, x.device, x.dtype).run(part)
        return (built.run(part) != expected).double().mean().item()


def measure(cell: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    device, dtype = torch.device(options["device"]), DTYPES[cell["dtype"]]
    shape, neuron, name = (cell["T"], cell["N"]), cell["neuron"], cell["peer"]
    if cell["T"] > peers.PEERS[name].longest:
        raise peers.Unavailable(f"T > {peers.PEERS[name].longest}")
    generator = torch.Generator(device).manual_seed(0)

    def sequence() -> Tensor:
        numbers = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        if cell["layout"] == "time first":
            return numbers
        return numbers.view(SAMPLES, cell["T"], -1).transpose(0, 1)

    if cell["layout"] == "batch first" and (cell["N"] % SAMPLES or neuron in peers.FORMS):
        raise peers.Unavailable(f"batch first: N in {SAMPLES} samples alone, and a neuron of one value")
    x, incoming = sequence().requires_grad_(), sequence()
    built = peers.build(name, neuron, device, dtype)
    differ = different(built, neuron, x)
    if differ > DIFFERENT_AT_MOST:
        raise peers.Unavailable(f"{differ:.2%} of its {cell['dtype']} spikes differ from the reference's")
    target = torch.empty_like(incoming)
    timed = Clock(device, options["repeats"]).medians(
        {"copy": lambda: target.copy_(incoming), **works(built, x, incoming)}, options["budget"]
    )
    unit = timed.pop("copy")["ms"] / 2
    for result in timed.values():
        result["passes"] = result["ms"] / unit
    extra = memory(built, x, incoming) if device.type == "cuda" else {}
    return {"pass_ms": unit, "spikes_that_differ": differ, "works": timed, **extra}


# ---- in the main process ---------------------------------------------------------------------------------------------


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The grid, as far as about ten tensors of a size fit the memory."""
    room = 2**33
    if options.device == "cuda":
        room = torch.cuda.get_device_properties(0).total_memory
    for neuron in options.neurons:
        for dtype in options.dtypes:
            for steps in options.steps:
                for count in options.counts:
                    if 10 * steps * count * DTYPES[dtype].itemsize < room and steps * count <= options.most:
                        for layout in options.layouts:
                            yield {"neuron": neuron, "dtype": dtype, "T": steps, "N": count, "layout": layout}


def task(name: str, grid: list[dict[str, Any]]) -> process.Task:
    """All cells of a peer."""
    peer = peers.PEERS[name]
    environment = dict(peer.environment)
    if peer.path and peer.path in os.environ:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ[peer.path], os.environ.get("PYTHONPATH"))))
    return process.Task([{"peer": name, **cell} for cell in grid], environment)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Passes of each peer, cell by cell; times in microseconds beside the total."""
    seen: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "works" in row:
            seen.setdefault((row["neuron"], row["dtype"], row["T"], row["N"], row["layout"]), []).append(row)
    for (neuron, dtype, steps, count, layout), group in seen.items():
        yield f"\n{neuron} {dtype} T={steps} N={count} {layout}   (a pass: {group[0]['pass_ms'] * 1e3:.1f} us)"
        yield f"  {'passes':20} {'inference':>10} {'forward':>10} {'backward':>10} {'both':>10} {'both, us':>10} {'host, us':>10}"
        for row in group:
            passes = " ".join(f"{row['works'][work]['passes']:10.2f}" for work in WORKS)
            both = row["works"]["forward+backward"]
            yield f"  {row['peer']:20} {passes} {both['ms'] * 1e3:10.1f} {both['host_us']:10.1f}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neurons", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--neurons", nargs="+", choices=peers.NEURONS, default=["lif"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="T, one or more")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="N, one or more")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["time first"])
    parser.add_argument("--most", type=int, default=2**28, help="the largest T * N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds after which a cell needs no more repeats")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    grid = list(cells(options))
    if not grid:
        raise SystemExit("nothing to measure: no cell fits the memory and --most")
    tasks = [task(name, grid) for name in options.peers]
    rows = process.collect("benchmarks.neurons", tasks, argv, options)
    print("\n".join(table(rows)))
    for peer, reason in dict.fromkeys((r["peer"], r["unavailable"]) for r in rows if "unavailable" in r):
        print(f"left out: {peer}: {reason}")
    return process.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
