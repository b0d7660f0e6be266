"""From an equation to a trained network: a convolutional spiking network learns to read handwritten digits.

The neuron is three lines (codegen/specification/neurons.py states them once, and the kernels are made from there):

    h = v + (x - v) / tau              the membrane leaks, and the input charges it
    s = 1 if h >= v_threshold else 0   it fires
    v = 0 if s else h                  and is reset

snnkern.nn.LIF runs these lines over all time steps in one kernel (torch.ops.snnkern.lif_forward), forward and back
through time. Convolutions and linear layers have no memory: they see time as more samples. The data are the 1797
pictures of 8 x 8 pixels that come with scikit-learn; each is shown as a constant current for a few time steps.

The script trains on one core of a CPU in well under a minute, or on an NVIDIA GPU; the same seed gives the same result.
It compares the fused neuron with the plain PyTorch loop, and draws what the network does:

    python examples/train_digits.py --out demo
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

# Reproducible matrix products on a GPU need this before CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import snnkern

TIME_STEPS = 12
TAU, V_THRESHOLD = 2.0, 1.0
BATCH = 64
LEARNING_RATE = 4e-3
REQUIRED_ACCURACY = 0.97
BLUE, RED, GREEN, GREY = "#1f5f99", "#c8452f", "#3c8d40", "#8a8a8a"
COLOURS = (RED, BLUE, GREEN)


class SpikingNet(nn.Module):
    """Two convolutions and a hidden layer, with a spiking neuron after each; the output averages over time."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        atan = snnkern.surrogate.ATan()  # stands for the derivative of a spike
        self.features = nn.Sequential(
            snnkern.nn.PerStep(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)),
            snnkern.nn.LIF(surrogate=atan),
            snnkern.nn.PerStep(nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48)),
            snnkern.nn.LIF(surrogate=atan),
            snnkern.nn.PerStep(nn.Flatten(), nn.Linear(48 * 4 * 4, 96, bias=False), nn.BatchNorm1d(96)),
        )
        self.hidden = snnkern.nn.LIF(TAU, v_threshold=V_THRESHOLD, surrogate=atan)
        self.output = nn.Linear(96, classes)

    def forward(self, images: Tensor) -> Tensor:
        snnkern.nn.reset(self)  # a new batch: every membrane starts at rest
        x_seq = images.expand(TIME_STEPS, *images.shape)  # the picture as a constant current
        return self.output(self.hidden(self.features(x_seq))).mean(0)


@dataclass(frozen=True)
class Data:
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass
class History:
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Speed:
    """Median seconds of forward and backward of one neuron layer."""

    fused: float
    loop: float
    shape: tuple[int, int]


def load(device: torch.device) -> Data:
    """Real handwritten digits, a fifth of them for testing. The split is the same for every seed."""
    digits = load_digits()
    split = train_test_split(digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    train_x, test_x = (torch.tensor(x / 16, dtype=torch.float32, device=device).unsqueeze(1) for x in split[:2])
    train_y, test_y = (torch.tensor(y, dtype=torch.int64, device=device) for y in split[2:])
    return Data(train_x, train_y, test_x, test_y)


def make_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory would only cost time: every kernel here writes all of its output.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # One thread: the result and the speed-up then do not depend on the number of cores, nor on what else they do.
    torch.set_num_threads(1)


@torch.no_grad()
def accuracy(net: SpikingNet, images: Tensor, labels: Tensor) -> float:
    net.eval()
    return (net(images).argmax(1) == labels).double().mean().item()


def train(net: SpikingNet, data: Data, epochs: int, seed: int) -> History:
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    batches = len(data.train_y) // BATCH  # the rest of each shuffle is left out: batch statistics want full batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    shuffle = torch.Generator().manual_seed(seed)
    history = History()
    start = time.perf_counter()
    with tqdm(total=epochs * batches, desc="training", unit="batch") as bar:
        for _ in range(epochs):
            net.train()
            order = torch.randperm(len(data.train_y), generator=shuffle).to(data.train_y.device)
            losses = []
            for chosen in order.split(BATCH)[:batches]:
                loss = F.cross_entropy(net(data.train_x[chosen]), data.train_y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                bar.update()
            history.loss.append(torch.stack(losses).mean().item())
            history.accuracy.append(accuracy(net, data.test_x, data.test_y))
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}", test=f"{history.accuracy[-1]:.2%}")
    history.seconds = time.perf_counter() - start
    return history


def measure_speed(device: torch.device, shape: tuple[int, int] = (16, 2**18), repeats: int = 7) -> Speed:
    """The fused neuron against the plain PyTorch loop, in turns, on the same input: forward and backward."""
    random = torch.Generator().manual_seed(0)
    x_seq, grad = (torch.randn(shape, generator=random).to(device) for _ in range(2))
    x_seq.mul_(2).requires_grad_()  # strong enough for a lively layer

    def seconds(lif: Callable[..., tuple[Tensor, Tensor]]) -> float:
        start = time.perf_counter()
        spike_seq, _ = lif(x_seq, surrogate=snnkern.surrogate.ATan())
        torch.autograd.grad(spike_seq, x_seq, grad)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    neurons = (snnkern.functional.lif, snnkern.reference.lif)
    rounds = [[seconds(lif) for lif in neurons] for _ in range(repeats + 1)]
    fused, loop = (median(times) for times in zip(*rounds[1:], strict=True))  # the first round warms up
    return Speed(fused, loop, shape)


@dataclass(frozen=True)
class Recording:
    """What one image does: class scores [10], and of the hidden layer, [T, neurons] each, spikes and membrane potentials."""

    scores: Tensor
    spikes: Tensor
    charged: Tensor  # the potential before the reset, which is compared with the threshold
    v_seq: Tensor  # after it


@torch.no_grad()
def record(net: SpikingNet, image: Tensor) -> Recording:
    seen: list[tuple[Tensor, Tensor]] = []
    hook = net.hidden.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    net.eval()
    net.hidden.store_v_seq = True  # keep the potential after every step, not only the last
    scores = net(image.unsqueeze(0))
    v_seq = net.hidden.v_seq
    net.hidden.store_v_seq = False
    hook.remove()
    assert v_seq is not None
    ((x_seq, spikes),) = seen
    before = torch.cat([torch.zeros_like(v_seq[:1]), v_seq[:-1]])  # at rest before the first step
    charged = before + (x_seq - before) / TAU
    assert torch.equal(charged >= V_THRESHOLD, spikes > 0)
    return Recording(scores[0].cpu(), *(each[:, 0].cpu() for each in (spikes, charged, v_seq)))


def choose(spikes: Tensor) -> list[int]:
    """Three neurons that fire often, sometimes and rarely, but not at every step: those show the membrane at work."""
    counts = spikes.sum(0)
    ranked = counts.argsort(descending=True, stable=True).tolist()
    lively = [neuron for neuron in ranked if 0 < counts[neuron] <= len(spikes) / 2] or ranked
    return [lively[0], lively[len(lively) // 2], lively[-1]]


def draw_image(axes: Axes, image: Tensor, label: int, guess: int) -> None:
    axes.imshow(image.cpu(), cmap="gray_r")
    axes.set(title="Test sample", xticks=[], yticks=[], xlabel=f"label {label}, network says {guess}")
    axes.spines[:].set_visible(True)


def draw_raster(axes: Axes, spikes: Tensor, shown: list[int]) -> None:
    steps, neurons = spikes.nonzero(as_tuple=True)
    axes.scatter(steps + 1, neurons, s=30, marker="|", color=GREY, linewidths=1.6)
    for neuron, colour in zip(shown, COLOURS, strict=True):
        fired = spikes[:, neuron].nonzero()[:, 0] + 1
        axes.axhline(neuron, color=colour, linewidth=0.6, alpha=0.5)
        axes.scatter(fired, [neuron] * len(fired), s=70, marker="|", color=colour, linewidths=2.6)
    axes.set(title=f"Spikes of the hidden layer ({spikes.shape[1]} neurons)", xlabel="time step", ylabel="neuron")
    axes.set(xlim=(0.4, len(spikes) + 0.6), ylim=(-2, spikes.shape[1] + 1), xticks=range(1, len(spikes) + 1))


def draw_membrane(axes: Axes, seen: Recording, shown: list[int]) -> None:
    """Within a step the potential is charged; where that takes it to the threshold, the neuron fires and it falls to 0."""
    steps = len(seen.spikes)
    axes.axhline(V_THRESHOLD, color=GREY, linestyle="--", linewidth=1)
    axes.text(0, V_THRESHOLD, "threshold", color=GREY, fontsize=8, va="bottom")
    for neuron, colour in zip(shown, COLOURS, strict=True):
        potential = torch.stack([seen.charged, seen.v_seq], 1)[:, :, neuron].flatten().tolist()
        axes.plot([0, *(t for t in range(1, steps + 1) for _ in range(2))], [0.0, *potential], color=colour)
        fired = seen.spikes[:, neuron].nonzero()[:, 0]
        axes.scatter(fired + 1, seen.charged[fired, neuron], color=colour, s=28, zorder=3, label=f"neuron {neuron}")
    axes.set(
        title="Membrane potential of three of them, before and after reset (dots: their spikes)",
        xlabel="time step",
        ylabel="potential",
        xlim=(-0.3, steps + 0.6),
        xticks=range(steps + 1),
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(shown), frameon=False)


def draw_training(axes: Axes, history: History) -> None:
    epochs = range(1, len(history.loss) + 1)
    (loss,) = axes.plot(epochs, history.loss, color=RED, marker=".", label="training loss")
    axes.set(title=f"Training: {history.accuracy[-1]:.2%} of the test set", xlabel="epoch", ylim=(0, None))
    axes.set_ylabel("loss", color=RED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    (test,) = right.plot(epochs, [100 * a for a in history.accuracy], color=BLUE, marker=".", label="test accuracy")
    right.set_ylabel("accuracy, %", color=BLUE)
    right.set_ylim(0, 104)
    axes.legend(handles=[loss, test], loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def draw(net: SpikingNet, data: Data, history: History, path: Path) -> None:
    """One test sample as the network sees it, and how the network learned to."""
    image, label = data.test_x[0], int(data.test_y[0])
    seen = record(net, image)
    shown = choose(seen.spikes)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11})
    figure = plt.figure(figsize=(12, 7.6))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    grid = figure.add_gridspec(2, 5)
    draw_image(figure.add_subplot(grid[0, 0]), image[0], label, int(seen.scores.argmax()))
    draw_raster(figure.add_subplot(grid[0, 1:]), seen.spikes, shown)
    draw_membrane(figure.add_subplot(grid[1, :3]), seen, shown)
    draw_training(figure.add_subplot(grid[1, 3:]), history)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    summary = "Trains a spiking network on handwritten digits, compares the fused neuron with a plain loop, draws both."
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the samples")
    found = "cuda" if torch.cuda.is_available() and snnkern.kernels("cuda") else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=found, help="where to train and to measure")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture")
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    if arguments.device == "cuda" and found != "cuda":
        parser.error("--device cuda needs an NVIDIA GPU, and torch and snnkern built with CUDA")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    device = torch.device(arguments.device)
    make_deterministic(arguments.seed)
    data = load(device)
    net = SpikingNet().to(device)
    history = train(net, data, arguments.epochs, arguments.seed)
    speed = measure_speed(device)
    picture = arguments.out / "train_digits.png"
    draw(net, data, history, picture)

    final, (steps, neurons) = history.accuracy[-1], speed.shape
    where = "one CPU thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"accuracy   {final:.2%} of {len(data.test_y)} test digits")
    print(f"training   {history.seconds:.1f} s for {arguments.epochs} epochs on {where}")
    print(
        f"speed-up   {speed.loop / speed.fused:.1f}x: fused neuron {1e3 * speed.fused:.2f} ms, plain loop "
        f"{1e3 * speed.loop:.2f} ms (forward + backward, T={steps}, N={neurons}, float32, {where}, medians)"
    )
    print(f"picture    {picture}")
    if final < REQUIRED_ACCURACY:
        print(f"error: the accuracy {final:.2%} is below {REQUIRED_ACCURACY:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
