"""A recurrent spiking network learns to tell spoken digits from the spikes of a cochlea, or what looks like them.

The Spiking Heidelberg Digits (SHD) are spikes of 700 channels, one for each frequency, and 20 words. Without the files, the
script generates spikes of that shape. Each class has three ridges, as the formants of a vowel: lines that move through the
channels in a way of their own, each in a time of its own. A channel spikes in a step with the probability

    p = 0.01 + sum over ridges of 0.35 * exp(-((channel - centre(t)) / 25)^2 / 2) * exp(-((t - peak) / 18)^2 / 2)

and each sample has all ridges shifted by some channels (sd 20) and steps (sd 5), so that no channel and no step alone tells the
class. Two recurrent layers of 128 neurons and a readout then learn the classes:

    python examples/recurrent.py
    python examples/recurrent.py --data shd_train.h5 --test shd_test.h5

It takes about a minute on two cores of a CPU, prints the accuracy on samples that were not trained on, and the time of a
layer beside that of a loop over the same steps in plain PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import snnkern

STEPS, CHANNELS, CLASSES = 100, 700, 20
HIDDEN, BATCH, LEARNING_RATE = 128, 64, 5e-3
SAMPLES, SECONDS = 2000, 1.4  # that are generated, a fifth more for testing; how long a sample of SHD is
REQUIRED_ACCURACY = 0.9

Data = tuple[Tensor, Tensor]  # spikes [samples, STEPS, CHANNELS] of uint8, and classes


class Network(nn.Module):
    """Two recurrent layers, and a readout whose potential is averaged over time. Time is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        surrogate = snnkern.surrogate.FastSigmoid(10.0)
        self.layers = nn.Sequential(
            nn.Linear(CHANNELS, HIDDEN),
            snnkern.nn.RecurrentCuBaLIF(HIDDEN, alpha=0.8, beta=0.9, surrogate=surrogate, batch_first=True),
            nn.Linear(HIDDEN, HIDDEN),
            snnkern.nn.RecurrentALIF(HIDDEN, tau=10.0, surrogate=surrogate, batch_first=True),
            nn.Linear(HIDDEN, CLASSES),
            snnkern.nn.LI(tau=10.0, batch_first=True),
        )

    def forward(self, spikes: Tensor) -> Tensor:
        snnkern.nn.reset(self)
        potential: Tensor = self.layers(spikes.float())
        return potential.mean(1)


def generate(samples: int, seed: int) -> Data:
    """Spikes of the process above: the classes are the same for every seed."""
    classes = torch.Generator().manual_seed(0)
    ridges = 3
    start = torch.rand(CLASSES, ridges, generator=classes) * CHANNELS
    slope = (torch.rand(CLASSES, ridges, generator=classes) - 0.5) * 6  # channels a step
    peak = (0.2 + 0.6 * torch.rand(CLASSES, ridges, generator=classes)) * STEPS
    own = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=own)
    channels, steps = torch.arange(CHANNELS), torch.arange(STEPS)
    spikes = torch.empty(samples, STEPS, CHANNELS, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        away, late = torch.randn(2, generator=own).tolist()
        p = torch.full((STEPS, CHANNELS), 0.01)
        for r in range(ridges):
            t = steps - late * 5 - peak[label, r]
            centre = start[label, r] + away * 20 + slope[label, r] * t
            across = torch.exp(-(((channels - centre[:, None]) / 25) ** 2) / 2)
            p += 0.35 * across * torch.exp(-((t / 18) ** 2) / 2)[:, None]
        spikes[i] = torch.rand(p.shape, generator=own) < p
    return spikes, labels


def read(path: Path) -> Data:
    """A file of SHD: https://zenkelab.org/resources/spiking-heidelberg-datasets-shd"""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path) as file:
        labels = torch.tensor(file["labels"][:].astype("int64"))
        spikes = torch.zeros(len(labels), STEPS, CHANNELS, dtype=torch.uint8)
        for i in range(len(labels)):
            step = torch.tensor(file["spikes"]["times"][i].astype("float64") / SECONDS * STEPS).long()
            spikes[i, step.clamp(max=STEPS - 1), torch.tensor(file["spikes"]["units"][i].astype("int64"))] = 1
    return spikes, labels


def accuracy(network: Network, data: Data) -> float:
    with torch.no_grad():
        right = [
            (network(x).argmax(1) == y).double()
            for x, y in zip(data[0].split(BATCH), data[1].split(BATCH), strict=True)
        ]
    return float(torch.cat(right).mean())


def train(network: Network, data: Data, epochs: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    batches = (len(data[1]) + BATCH - 1) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * LEARNING_RATE, total_steps=epochs * batches)
    progress = tqdm(total=epochs * batches, unit="batch", file=sys.stderr)
    for _ in range(epochs):
        for which in torch.randperm(len(data[1]), generator=generator).split(BATCH):
            loss = F.cross_entropy(network(data[0][which]), data[1][which])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.2f}")
    progress.close()


class Spike(torch.autograd.Function):
    """For the loop: the step function with the gradient of FastSigmoid."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient / (1 + 10 * u.abs()) ** 2


def loop(x_seq: Tensor, weight: Tensor) -> Tensor:
    """A recurrent layer of leaky integrate-and-fire neurons as one writes it by hand."""
    v = s = torch.zeros_like(x_seq[0])
    spikes = []
    for x in x_seq:
        v = v + (x + s @ weight.t() - v) / 2
        s = Spike.apply(v - 1)  # type: ignore[no-untyped-call]
        v = (1 - s) * v
        spikes.append(s)
    return torch.stack(spikes)


def seconds(run: object, x_seq: Tensor, weight: Tensor) -> float:
    """The median of forward and backward."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run(x_seq, weight).sum().backward()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="shd_train.h5, to train on SHD itself")
    parser.add_argument("--test", type=Path, help="shd_test.h5; without it, a fifth of --data")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    begin = time.perf_counter()
    data = read(arguments.data) if arguments.data else generate(SAMPLES, 1)
    if arguments.data and not arguments.test:
        order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(0))
        some, rest = order[: len(order) // 5], order[len(order) // 5 :]
        data, test = (data[0][rest], data[1][rest]), (data[0][some], data[1][some])
    else:
        test = read(arguments.test) if arguments.test else generate(SAMPLES // 5, 2)
    network = Network()
    train(network, data, arguments.epochs, torch.Generator().manual_seed(arguments.seed))
    reached = accuracy(network, test)
    print(f"accuracy {reached:.1%} on {len(test[1])} samples, after {time.perf_counter() - begin:.0f} s")

    x_seq = torch.randn(STEPS, BATCH, HIDDEN, requires_grad=True)
    weight = (torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5).requires_grad_()
    surrogate = snnkern.surrogate.FastSigmoid(10.0)

    def layer(x_seq: Tensor, weight: Tensor) -> Tensor:
        return snnkern.functional.recurrent_lif(x_seq, weight, surrogate=surrogate)[0]

    fused, by_hand = seconds(layer, x_seq, weight), seconds(loop, x_seq, weight)
    print(
        f"a layer of {HIDDEN} neurons, {STEPS} steps, batch {BATCH}, forward and backward: {fused * 1e3:.1f} ms, "
        f"as a loop {by_hand * 1e3:.1f} ms ({by_hand / fused:.1f}x)"
    )
    if not arguments.data and reached < REQUIRED_ACCURACY:
        sys.exit(f"accuracy must be at least {REQUIRED_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
