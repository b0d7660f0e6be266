"""python -m benchmarks.networks: training steps of whole networks, with the neuron layer swapped.

A SEW-ResNet-18 (T=4, 3x224x224) and a spiking VGG-11 (T=8, 3x32x32); images a second, peak memory, and the loss after
three steps from the same weights, which must agree. Each case and peer runs in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnkern.nn import PerStep

from . import peers, process

Make = Callable[[], nn.Module]


class PlainLoop(nn.Module):
    """LIF as one writes it by hand: tau = 2, ATan, hard reset, which keeps out of the gradient."""

    def forward(self, x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0], dtype=torch.float32)
        spikes = []
        for x in x_seq:
            h = v + (x - v) * peers.DECAY
            s = peers.Spike.apply(h - 1.0)
            v = (1 - s.detach()) * h
            spikes.append(s.to(x_seq.dtype))
        return torch.stack(spikes)


class Stateless(nn.Module):
    """A neuron module that starts each sequence anew."""

    def __init__(self, neuron: nn.Module, reset: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.neuron, self.reset = neuron, reset

    def forward(self, x_seq: Tensor) -> Tensor:
        self.reset(self.neuron)
        return self.neuron(x_seq)


class Operator(nn.Module):
    def forward(self, x_seq: Tensor) -> Tensor:
        return torch.ops.snnkern.lif_forward(x_seq, surrogate="atan", detach_reset=True)[0]


def make_snnkern() -> nn.Module:
    import snnkern

    snnkern.build_info()  # the library is loaded
    return Operator()


def make_spikingjelly() -> nn.Module:
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        raise peers.Unavailable(f"spikingjelly 2 is not installed ({error})") from error
    made = neuron.LIFNode(tau=peers.TAU, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")
    return Stateless(made, functional.reset_net)


NEURONS: dict[str, Make] = {"snnkern": make_snnkern, "spikingjelly": make_spikingjelly, "plain-loop": PlainLoop}


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> PerStep:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return PerStep(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A basic block of SEW-ResNet: spikes are added to spikes."""

    def __init__(self, inputs: int, outputs: int, stride: int, make: Make) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride), make(), convolution(outputs, outputs, 3), make()
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(convolution(inputs, outputs, 1, stride), make())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Classifier(nn.Module):
    """Features of all steps, averaged over space and time."""

    def __init__(self, features: nn.Sequential, width: int, classes: int, steps: int) -> None:
        super().__init__()
        self.features, self.head, self.steps = features, nn.Linear(width, classes), steps

    def forward(self, images: Tensor) -> Tensor:
        repeated = images.unsqueeze(0).expand(self.steps, *images.shape)
        return self.head(self.features(repeated).mean((0, 3, 4)))


def sew_resnet18(make: Make) -> Classifier:
    layers: list[nn.Module] = [convolution(3, 64, 7, 2), make(), PerStep(nn.MaxPool2d(3, 2, 1))]
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width, outputs, stride, make), Block(outputs, outputs, 1, make)]
        width = outputs
    return Classifier(nn.Sequential(*layers), width, 1000, 4)


def vgg11(make: Make) -> Classifier:
    layers: list[nn.Module] = []
    width = 3
    for outputs, pool in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        layers += [convolution(width, outputs, 3), make()]
        layers += [PerStep(nn.MaxPool2d(2))] if pool else []
        width = outputs
    return Classifier(nn.Sequential(*layers), width, 10, 8)


NETWORKS: dict[str, tuple[Callable[[Make], Classifier], tuple[int, ...], int]] = {
    "sew-resnet18": (sew_resnet18, (32, 3, 224, 224), 1000),
    "vgg11": (vgg11, (128, 3, 32, 32), 10),
}


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    build, shape, classes = NETWORKS[case["network"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build(NEURONS[case["peer"]]).cuda()
    images, labels = torch.randn(shape, device="cuda"), torch.randint(classes, shape[:1], device="cuda")
    if case["layout"] == "channels_last":
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    model = torch.compile(network) if case["mode"] == "compile" else network

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=case["dtype"] == "bf16"):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def accelerate(fast: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = fast
        torch.backends.cudnn.deterministic = not fast

    accelerate(False)  # so that equal gradients show as equal losses
    losses = [step().item() for _ in range(3)]
    accelerate(True)
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(options["repeats"]):
        start = time.perf_counter()
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 5)
    return {
        "images_per_second": shape[0] / statistics.median(times),
        "low": shape[0] / max(times),
        "high": shape[0] / min(times),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "losses": losses,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--peers", nargs="+", choices=NEURONS, default=list(NEURONS))
    parser.add_argument("--dtypes", nargs="+", choices=("f32", "bf16"), default=["bf16", "f32"])
    parser.add_argument("--layouts", nargs="+", choices=("contiguous", "channels_last"), default=None)
    parser.add_argument("--modes", nargs="+", choices=("eager", "compile"), default=["eager", "compile"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.networks needs an NVIDIA GPU")
    options.device, options.threads = "cuda", torch.get_num_threads()
    cases = [
        {"network": network, "dtype": dtype, "layout": layout, "mode": mode}
        for network in options.networks
        for dtype in options.dtypes
        for layout in options.layouts or ("contiguous", "channels_last")
        for mode in options.modes
    ]
    # Case by case, so that an interrupted run can be compared as far as it came.
    tasks = [process.Task([{"peer": name, **case}]) for case in cases for name in options.peers]
    rows = process.collect("benchmarks.networks", tasks, argv, options)
    for row in rows:
        if row["peer"] == options.peers[0]:
            print("\n" + ", ".join(row[key] for key in cases[0]))
        if "unavailable" in row:
            print(f"  {row['peer']:14} {row['unavailable']}")
            continue
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        print(
            f"  {row['peer']:14} {row['images_per_second']:8.0f} images/s {row['peak_gib']:6.2f} GiB   losses {losses}"
        )
    return process.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
