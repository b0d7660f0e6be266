"""The figures of the documentation: what the installed snnkern computes, drawn when the pages are built."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("svg")  # draws to files alone, before pyplot looks for a screen
import matplotlib.pyplot as plt

import snnkern
from snnkern.codegen.emit.docs import RESPONSES
from snnkern.codegen.specification.base import Neuron, Surrogate
from snnkern.codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.surrogates import SURROGATES

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "snnkern",  # the same figure is the same file
}
STEPS, ON, OFF = 60, 5, 45
AMPLITUDES = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0)
ENOUGH = 5
"""A figure takes the first amplitude with so many spikes; where spikes are integers, with one above 1."""


def draw(folder: Path) -> None:
    """Draws every figure of the generated pages and of the guide."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for n in NEURONS:
            _response(n, folder / f"{n.name}.svg")
        for s in SURROGATES:
            _curves(s, folder / f"surrogate_{s.name}.svg")
        _choose_neurons(folder / "choose_neurons.svg")
        _choose_surrogates(folder / "choose_surrogates.svg")


@torch.no_grad()
def _response(neuron: type[Neuron], path: Path) -> None:
    """The input, every state and the spikes over time; a neuron that never fires has no spikes to show."""
    fires = bool(neuron.firing)
    module = getattr(snnkern.nn, neuron.module)(**RESPONSES.get(neuron.name, {}))
    x = torch.zeros(STEPS, len(AMPLITUDES))
    x[ON:OFF] = torch.tensor(AMPLITUDES)
    out: list[torch.Tensor] = []
    states: dict[str, list[torch.Tensor]] = {s.name: [] for s in neuron.states}
    for x_t in x:  # step by step, since the module keeps the last states alone
        out.append(module(x_t[None])[0])
        for name, values in states.items():
            values.append(getattr(module, name))
    spikes = torch.stack(out) if fires else torch.zeros_like(x)
    counts = spikes.sum(0)
    enough = ((counts >= ENOUGH) & (spikes.amax(0) > (0 if neuron.has_surrogate else 1))).nonzero()
    if fires and not len(enough):
        raise RuntimeError(
            f"{neuron.name}: no step current in {AMPLITUDES} makes {ENOUGH} spikes; the most is {counts.max()}"
        )
    column = int(enough[0]) if fires else AMPLITUDES.index(1.2)

    rows = 1 + len(states) + fires
    figure, axes = plt.subplots(
        rows,
        sharex=True,
        figsize=(7, 1 + 1.1 * rows),
        height_ratios=[1, *[2] * len(states), *[0.7] * fires],
        layout="constrained",
    )
    axes[0].step(range(STEPS), x[:, column], where="mid", color="C7")
    axes[0].set_ylabel("x")
    for axis, (i, (name, values)) in zip(axes[1:], enumerate(states.items()), strict=False):
        axis.plot(torch.stack(values)[:, column], ".-", markersize=3, color=f"C{i}")
        axis.set_ylabel(name)
        if name == "v" and fires:
            axis.axhline(module.v_threshold, linestyle="--", linewidth=1, color="C3", label="v_threshold")
            axis.legend(loc="center right", frameon=False)
    if fires:
        times = spikes[:, column].nonzero().flatten()
        axes[-1].vlines(times, 0, spikes[times, column], color="black")
        axes[-1].set_ylabel("s")
        axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("time step")
    figure.align_ylabels(axes)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _curves(surrogate: type[Surrogate], path: Path) -> None:
    """The gradient, and beside it the primitive, over the step that it stands for."""
    default = getattr(snnkern.surrogate, surrogate.__name__)()
    x = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    columns = 1 + surrogate.has_primitive()
    figure, axes = plt.subplots(1, columns, figsize=(3.5 * columns, 2.4), layout="constrained", squeeze=False)
    axes[0, 0].plot(x, default.gradient(x))
    axes[0, 0].set_title("gradient g(x)")
    axes[0, 0].set_ylim(bottom=min(0, axes[0, 0].get_ylim()[0]))
    if surrogate.has_primitive():
        axes[0, 1].step(x, x >= 0, linewidth=1, color="C7", label="spike")
        axes[0, 1].plot(x, default.primitive(x), color="C1", label="primitive")
        axes[0, 1].set_title("primitive f(x)")
        axes[0, 1].legend(frameon=False)
    for axis in axes.flat:
        axis.set_xlabel("x = h - v_threshold")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


@torch.no_grad()
def _choose_neurons(path: Path) -> None:
    """Neurons side by side, under a current that flows for a while."""
    nn = snnkern.nn
    chosen = {
        "IF": nn.IF(),
        "LIF, tau=5": nn.LIF(tau=5.0, decay_input=False),
        "CuBaLIF, alpha=0.8, beta=0.8": nn.CuBaLIF(alpha=0.8, beta=0.8),
        "ALIF, tau=5, adapt=10": nn.ALIF(tau=5.0, adapt=10.0),
    }
    scale = {
        "CuBaLIF, alpha=0.8, beta=0.8": 0.25,
        "ALIF, tau=5, adapt=10": 5.0,
    }  # so that all are charged about as much
    figure, axes = plt.subplots(len(chosen), sharex=True, figsize=(7, 6), layout="constrained")
    for axis, (title, module) in zip(axes, chosen.items(), strict=True):
        x = torch.zeros(STEPS, 1)
        x[ON:OFF] = 0.35 * scale.get(title, 1.0)
        module.store_v_seq = True
        spikes = module(x)[:, 0]
        axis.plot(module.v_seq[:, 0], ".-", markersize=3)
        axis.vlines(spikes.nonzero().flatten(), 1.65, 1.9, color="black")
        axis.axvspan(ON, OFF - 1, color="C7", alpha=0.12, linewidth=0)
        axis.set_title(f"{title}: {int(spikes.sum())} spikes", loc="left", fontsize=9)
        axis.set_ylabel("v")
        axis.set_ylim(-0.1, 2)
    axes[-1].set_xlabel("time step; the current flows while the ground is grey, and the ticks are spikes")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _choose_surrogates(path: Path) -> None:
    """Gradients of surrogates in one place: their width and height."""
    s = snnkern.surrogate
    chosen = (
        s.ATan(),
        s.ATan(8.0),
        s.Sigmoid(),
        s.Sigmoid(10.0),
        s.Triangle(),
        s.Gaussian(),
        s.FastSigmoid(),
        s.Rect(),
    )
    x = torch.linspace(-2, 2, 1601, dtype=torch.float64)
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for i, surrogate in enumerate(chosen):
        values = ", ".join(f"{value:g}" for value in surrogate.params)
        axis.plot(x, surrogate.gradient(x), color=f"C{i}", label=f"{type(surrogate).__name__}({values})")
    axis.set_xlabel("x = h - v_threshold")
    axis.set_title("gradient", loc="left", fontsize=9)
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
