"""Bad input gives an error that names the argument, what was expected and what came."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from support import NEURON_NAMES, SURROGATE_CLASSES, neuron_class

lif = torch.ops.snnkern.lif_forward
plif = torch.ops.snnkern.plif_forward
X = torch.zeros(4, 3)
FLOATING = "float32, float64, float16 or bfloat16"

CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "x rank": (
        lif,
        {"x_seq": torch.zeros(4)},
        "snnkern.lif_forward: x_seq must be [T, N, ...] with at least 2 dimensions, got 1 dimension",
    ),
    "x scalar": (
        lif,
        {"x_seq": torch.tensor(1.0)},
        "x_seq must be [T, N, ...] with at least 2 dimensions, got 0 dimensions",
    ),
    "x dtype": (lif, {"x_seq": torch.zeros(4, 3, dtype=torch.int64)}, f"x_seq must be {FLOATING}, got Long"),
    "x complex": (
        lif,
        {"x_seq": torch.zeros(4, 3, dtype=torch.complex64)},
        f"x_seq must be {FLOATING}, got ComplexFloat",
    ),
    "no time": (lif, {"x_seq": torch.zeros(0, 3)}, "x_seq must have T >= 1 time steps, got T = 0"),
    "v shape": (lif, {"v_init": torch.zeros(4)}, "v_init must have the shape of x_seq[0], [3], got [4]"),
    "v rank": (lif, {"v_init": torch.zeros(1, 3)}, "v_init must have the shape of x_seq[0], [3], got [1, 3]"),
    "v dtype": (lif, {"v_init": torch.zeros(3, dtype=torch.int32)}, f"v_init must be {FLOATING}, got Int"),
    "tau low": (lif, {"tau": 0.5}, "tau must be a finite number >= 1, got 0.5"),
    "tau nan": (lif, {"tau": math.nan}, "tau must be a finite number >= 1, got nan"),
    "threshold": (lif, {"v_threshold": math.inf}, "v_threshold must be a finite number, got inf"),
    "threshold of float32": (
        lif,
        {"v_threshold": 1e39},
        "v_threshold must be within the range of float32 for x_seq of Float, got 1e+39",
    ),
    "reset": (lif, {"v_reset": math.nan}, "v_reset must be a finite number, got nan"),
    "surrogate": (lif, {"surrogate": "tanh"}, f"surrogate must be one of {', '.join(SURROGATE_CLASSES)}; got 'tanh'"),
    "params range": (
        lif,
        {"surrogate_params": [0.0]},
        "surrogate_params: alpha of surrogate 'sigmoid' must be a finite number > 0, got 0",
    ),
    "params nan": (
        lif,
        {"surrogate_params": [math.nan]},
        "surrogate_params: alpha of surrogate 'sigmoid' must be a finite number > 0, got nan",
    ),
    "params many": (
        lif,
        {"surrogate_params": [1.0, 2.0]},
        "surrogate_params must have 1 value for surrogate 'sigmoid', got 2",
    ),
    "params none": (lif, {"surrogate_params": []}, "surrogate_params must have 1 value for surrogate 'sigmoid', got 0"),
    "params two": (
        lif,
        {"surrogate": "s2nn", "surrogate_params": [1.0]},
        "surrogate_params must have 2 values for surrogate 's2nn', got 1",
    ),
    "params integer": (
        lif,
        {"surrogate": "squarewave_fourier_series", "surrogate_params": [2.5, 8.0]},
        "surrogate_params: n of surrogate 'squarewave_fourier_series' must be an integer >= 2",
    ),
    "no primitive": (
        lif,
        {"surrogate": "rect", "spiking": False, "x_seq": X.half()},
        "spiking=False needs float32 or float64 x_seq, got Half",
    ),
    "smooth half": (
        lif,
        {"surrogate": "triangle", "spiking": False},
        "spiking=False needs a surrogate with a smooth primitive; 'triangle' has none",
    ),
    "decay zero": (
        plif,
        {"decay": torch.tensor(0.0)},
        "snnkern.plif_forward: decay must be a finite number > 0 and <= 1, got 0",
    ),
    "decay large": (plif, {"decay": torch.tensor(1.5)}, "decay must be a finite number > 0 and <= 1, got 1.5"),
    "decay nan": (plif, {"decay": torch.tensor(math.nan)}, "decay must be a finite number > 0 and <= 1, got nan"),
    "decay shape": (
        plif,
        {"decay": torch.full((2,), 0.5)},
        "decay must broadcast against x_seq[0], [3]; got shape [2]",
    ),
    "decay dtype": (plif, {"decay": torch.tensor(1)}, f"decay must be {FLOATING}, got Long"),
    "v device": (
        lif,
        {"v_init": torch.zeros(3, device="meta")},
        "v_init must be on the device of x_seq, cpu, got meta",
    ),
    "decay device": (
        plif,
        {"decay": torch.tensor(0.5, device="meta")},
        "decay must be on the device of x_seq, cpu, got meta",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_argument(case: str, training: bool) -> None:
    op, changed, message = CASES[case]
    arguments = {"x_seq": X, **changed}
    if op is plif and "decay" not in arguments:
        arguments["decay"] = torch.tensor(0.5)
    x = arguments["x_seq"]
    if training and x.is_floating_point():
        arguments["x_seq"] = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op(**arguments)


@pytest.mark.parametrize("case", [c for c in CASES if "device" not in c and CASES[c][0] is lif])
def test_the_same_on_meta_tensors(case: str) -> None:
    """So that torch.compile and torch.export refuse what running would refuse."""
    op, changed, message = CASES[case]
    arguments = {"x_seq": X, **changed}
    moved = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op(**moved)


BACKWARD = {
    "grad_spike_seq": (torch.zeros(4, 2), "grad_spike_seq must have the shape of x_seq, [4, 3], got [4, 2]"),
    "grad_v": (torch.zeros(4, 3), "the gradient of a state must have the shape of x_seq[0], [3], got [4, 3]"),
    "checkpoints": (torch.zeros(1, 3), "checkpoints must have the shape [0, 3], got [1, 3]"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_argument(name: str) -> None:
    value, message = BACKWARD[name]
    arguments = {
        "grad_spike_seq": None, "grad_v": None, "checkpoints": torch.zeros(0, 3), "x_seq": X, "v_init": None, "tau": 2.0,
        "decay_input": True, "v_threshold": 1.0, "v_reset": 0.0, "detach_reset": False, "surrogate": "sigmoid",
        "surrogate_params": None, "store_v_seq": False, "spiking": True,
    }  # fmt: skip
    torch.ops.snnkern.lif_backward(**arguments)
    with pytest.raises(RuntimeError, match=re.escape(f"snnkern.lif_backward: {message}")):
        torch.ops.snnkern.lif_backward(**{**arguments, name: value})


@pytest.mark.gpu
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_mixed_devices(neuron: str) -> None:
    op = getattr(torch.ops.snnkern, f"{neuron}_forward")
    more = {t.name: torch.tensor(0.5, device="cuda") for t in neuron_class(neuron).learned}
    with pytest.raises(RuntimeError, match=re.escape("v_init must be on the device of x_seq, cuda:0, got cpu")):
        op(X.cuda(), v_init=torch.zeros(3), **more)
