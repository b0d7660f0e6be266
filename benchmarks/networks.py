"""python -m benchmarks.networks: training steps of SpikingJelly's own networks, with nothing but the neurons swapped.

SpikingJelly runs as it comes and as its PrecisionConfig makes it, with fused kernels that keep float32 or bfloat16; snnkern
runs behind `snnkern.convert`, behind `snnkern.fuse` too, and within `snnkern.packed_spikes` as well. Images a second, time on the
GPU, time that the calling thread is busy, peak memory, and the losses of three deterministic steps from the same weights. Each case and peer runs in a process
of its own, which may take a limited time. `--table` writes a file of results as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import signal
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import snnkern

from . import peers, process

# The module of spikingjelly.activation_based.model, its function, arguments. All take [T, N, C, H, W] of 224 x 224.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sew_resnet18": ("sew_resnet", "sew_resnet18", {"cnf": "ADD"}),
    "spikformer_ti": ("spikformer", "spikformer_ti", {"T": 4}),
    "qkformer_10_384": ("qkformer", "qkformer_10_384", {"T": 4}),
    "spike_driven_transformer": ("spike_driven_transformer", "sdt_8_384", {"T": 4}),
    "ms_resnet18": ("ms_resnet", "ms_resnet18", {"T": 4}),
}
STEPS, CLASSES = 4, 1000
MODES = ("eager", "graph", "compile", "reduce-overhead")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Of a profile: what a kernel's name holds, the first that fits.
KINDS = {
    "snnkern": ("snnkern",),
    "SpikingJelly": ("_fused_", "lif", "sj_"),
    "BatchNorm": ("batch_norm", "batchnorm", "bn_"),
    "convolution, matrix product": ("conv", "gemm", "cutlass", "xmma", "nvjet", "wgrad", "dgrad", "fprop", "implicit"),
    "layout": ("nchwtonhwc", "nhwctonchw"),
    "pooling": ("pool",),
    "optimizer": ("multi_tensor_apply", "foreach"),
    "elementwise": ("elementwise", "reduce", "copy", "cat"),
}


# ---- networks and peers ----------------------------------------------------------------------------------------------


def spikingjelly_network(name: str) -> nn.Module:
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        # Some models import its function that downloads weights.
        loads = types.ModuleType("torchvision._internally_replaced_utils")
        loads.load_state_dict_from_url = None  # type: ignore[attr-defined]
        sys.modules.update({"torchvision": types.ModuleType("torchvision"), loads.__name__: loads})
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        raise peers.Unavailable(f"spikingjelly 2 is not installed ({error})") from error
    module, function, arguments = NETWORKS[name]
    if name == "sew_resnet18":  # the others have a neuron of their own
        arguments = {
            **arguments,
            "spiking_neuron": neuron.LIFNode,
            "tau": peers.TAU,
            "detach_reset": True,
            "surrogate_function": surrogate.ATan(),
        }
    make = getattr(importlib.import_module(f"spikingjelly.activation_based.model.{module}"), function)
    net: nn.Module = make(num_classes=CLASSES, **arguments)
    functional.set_step_mode(net, "m")
    return net


def with_precision(storage: str) -> Callable[[nn.Module, str], nn.Module]:
    def prepared(net: nn.Module, dtype: str) -> nn.Module:
        from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

        mode = {"f32": "fp32", "bf16": "bf16"}[dtype]
        config = PrecisionConfig(mode=mode, neuron_storage=storage, neuron_fwd="fp32", neuron_bwd="fp32")
        artifacts = prepare_model_for_precision(net, "cuda", config)
        converted = artifacts.describe()["triton_neurons"]["converted_modules"]
        if not converted:
            raise peers.Unavailable("no neuron was converted")
        return artifacts.model

    return prepared


def converted(net: nn.Module, dtype: str) -> nn.Module:
    return snnkern.convert(net)


def fused(net: nn.Module, dtype: str) -> nn.Module:
    return snnkern.fuse(snnkern.convert(net))


PEERS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "snnkern": converted,
    "snnkern-fused": fused,
    "snnkern-packed": fused,  # and its steps run within packed_spikes
    "spikingjelly": lambda net, dtype: net,
    "spikingjelly-fp32": with_precision("fp32"),
    "spikingjelly-bf16": with_precision("bf16"),
}


# ---- one case --------------------------------------------------------------------------------------------------------


class Training:
    """A network with its optimizer, images and labels; a call is a step, and returns the loss."""

    def __init__(self, case: dict[str, Any]) -> None:
        from spikingjelly.activation_based import functional

        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = PEERS[case["peer"]](spikingjelly_network(case["network"]).cuda(), case["dtype"])
        images = torch.randn(case["batch"], 3, 224, 224, device="cuda")
        self.labels = torch.randint(CLASSES, (case["batch"],), device="cuda")
        if case["layout"] == "channels_last":
            net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
        self.images = images.expand(STEPS, *images.shape)
        self.kept = snnkern.packed_spikes if case["peer"] == "snnkern-packed" else contextlib.nullcontext
        self.net, self.reset, self.autocast = net, functional.reset_net, case["dtype"] == "bf16"
        mode = {"compile": "default"}.get(case["mode"], case["mode"])
        self.model = net if case["mode"] in ("eager", "graph") else torch.compile(net, mode=mode)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> Tensor:
        self.reset(self.net)
        with self.kept(), torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
            scores = self.model(self.images)
            scores = scores.mean(0) if scores.dim() == 3 else scores
            loss = nn.functional.cross_entropy(scores, self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def captured(self) -> Callable[[], Any]:
        """The same as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def accelerate(fast: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.deterministic = not fast


def kinds(step: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds on the GPU of each kind of kernel in a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        times[kind] = times.get(kind, 0.0) + event.self_device_time_total / 1000
    return times


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    signal.alarm(options["limit"])  # a case that hangs must not cost the others
    step: Callable[[], Any]
    training = Training(case)
    accelerate(False)  # so that equal gradients show as equal losses
    losses = [training().item() for _ in range(3)]
    accelerate(True)
    step = training.captured() if case["mode"] == "graph" else training
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    walls, hosts = [], []
    for _ in range(options["repeats"]):
        start = time.perf_counter()
        for _ in range(5):
            step()
        hosts.append((time.perf_counter() - start) / 5)
        torch.cuda.synchronize()
        walls.append((time.perf_counter() - start) / 5)
    # A graph's memory is reserved when it is captured, and a replay allocates none.
    graph = case["mode"] in ("graph", "reduce-overhead")
    peak = torch.cuda.max_memory_reserved() if graph else torch.cuda.max_memory_allocated()
    kernels = kinds(step)
    return {
        "images_per_second": case["batch"] / statistics.median(walls),
        "low": case["batch"] / max(walls),
        "high": case["batch"] / min(walls),
        "device_ms": sum(kernels.values()),
        "kernels_ms": kernels,
        # Of a step that waits for the device, the wait is in it.
        "host_ms": statistics.median(hosts) * 1000,
        "peak_gib": peak / 2**30,
        "losses": losses,
    }


# ---- all cases -------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Cases as rows and peers as columns, in Markdown: images a second, peak GiB."""
    rows = results["rows"]
    columns = [name for name in PEERS if any(row["peer"] == name for row in rows)]
    cases: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        case = tuple(row[key] for key in ("network", "dtype", "layout", "batch", "mode"))
        value = row.get("unavailable") or f"{row['images_per_second']:.0f}, {row['peak_gib']:.2f}"
        cases.setdefault(case, {})[row["peer"]] = value
    lines = ["| network | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for case, values in cases.items():
        cells = [values.get(name, "") for name in columns]
        lines.append("| " + ", ".join(map(str, case)) + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layouts", nargs="+", choices=("contiguous", "channels_last"), default=["channels_last"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager"])
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=int, default=300, help="seconds that a case of one peer may take")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--table", type=Path, help="print the table of this file of results, and measure nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.networks needs an NVIDIA GPU")
    options.device, options.threads = "cuda", torch.get_num_threads()
    cases = [
        {"network": network, "dtype": dtype, "layout": layout, "mode": mode, "batch": options.batch}
        for network in options.networks
        for dtype in options.dtypes
        for layout in options.layouts
        for mode in options.modes
    ]
    # Case by case, so that an interrupted run can be compared as far as it came.
    tasks = [process.Task([{"peer": name, **case}]) for case in cases for name in options.peers]
    rows = process.collect("benchmarks.networks", tasks, argv, options)
    for row in rows:
        if row["peer"] == options.peers[0]:
            print("\n" + ", ".join(str(row[key]) for key in cases[0]))
        if "unavailable" in row:
            print(f"  {row['peer']:18} {row['unavailable']}")
            continue
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        print(
            f"  {row['peer']:18} {row['images_per_second']:7.0f} images/s, GPU {row['device_ms']:.1f} ms, host "
            f"{row['host_ms']:.1f} ms, {row['peak_gib']:.2f} GiB, losses {losses}"
        )
        for kind, ms in sorted(row["kernels_ms"].items(), key=lambda item: -item[1]):
            print(f"    {ms:7.2f} ms {kind}")
    return process.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
