"""Bad input gives an error that names the argument, what was expected and what came: in the operators, in the functions
and in the reference the same one. A value out of range is a ValueError, a wrong type or dtype a TypeError, a wrong shape or
device a RuntimeError.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkern import functional, nn, reference, surrogate

from support import NEURON_NAMES, SURROGATE_CLASSES, function, neuron_class

lif = torch.ops.snnkern.lif_forward
plif = torch.ops.snnkern.plif_forward
X = torch.zeros(4, 3)
FLOATING = "float32, float64, float16 or bfloat16"

CASES: dict[str, tuple[Any, type[Exception], dict[str, Any], str]] = {
    "x rank": (
        lif,
        RuntimeError,
        {"x_seq": torch.zeros(4)},
        "snnkern.lif_forward: x_seq must be [T, N, ...] with at least 2 dimensions, got 1 dimension",
    ),
    "x scalar": (
        lif,
        RuntimeError,
        {"x_seq": torch.tensor(1.0)},
        "x_seq must be [T, N, ...] with at least 2 dimensions, got 0 dimensions",
    ),
    "x dtype": (
        lif,
        TypeError,
        {"x_seq": torch.zeros(4, 3, dtype=torch.int64)},
        f"x_seq must be {FLOATING}, got torch.int64",
    ),
    "x complex": (
        lif,
        TypeError,
        {"x_seq": torch.zeros(4, 3, dtype=torch.complex64)},
        f"x_seq must be {FLOATING}, got torch.complex64",
    ),
    "no time": (lif, RuntimeError, {"x_seq": torch.zeros(0, 3)}, "x_seq must have T >= 1 time steps, got T = 0"),
    "v shape": (lif, RuntimeError, {"v_init": torch.zeros(4)}, "v_init must have the shape of x_seq[0], [3], got [4]"),
    "v rank": (
        lif,
        RuntimeError,
        {"v_init": torch.zeros(1, 3)},
        "v_init must have the shape of x_seq[0], [3], got [1, 3]",
    ),
    "v dtype": (
        lif,
        TypeError,
        {"v_init": torch.zeros(3, dtype=torch.int32)},
        f"v_init must be {FLOATING}, got torch.int32",
    ),
    "tau low": (lif, ValueError, {"tau": 0.5}, "tau must be a finite number >= 1 or inf, got 0.5"),
    "tau nan": (lif, ValueError, {"tau": math.nan}, "tau must be a finite number >= 1 or inf, got nan"),
    "threshold": (lif, ValueError, {"v_threshold": -math.inf}, "v_threshold must be a finite number or inf, got -inf"),
    "threshold of float32": (
        lif,
        ValueError,
        {"v_threshold": 1e39},
        "v_threshold must be within the range of float32 for x_seq of torch.float32, got 1e+39",
    ),
    "reset": (lif, ValueError, {"v_reset": math.nan}, "v_reset must be a finite number, got nan"),
    "surrogate": (
        lif,
        ValueError,
        {"surrogate": "tanh"},
        f"surrogate must be one of {', '.join(SURROGATE_CLASSES)}; got 'tanh'",
    ),
    "params range": (
        lif,
        ValueError,
        {"surrogate_params": [0.0]},
        "surrogate_params: alpha of surrogate 'sigmoid' must be a finite number > 0, got 0",
    ),
    "params nan": (
        lif,
        ValueError,
        {"surrogate_params": [math.nan]},
        "surrogate_params: alpha of surrogate 'sigmoid' must be a finite number > 0, got nan",
    ),
    "params many": (
        lif,
        ValueError,
        {"surrogate_params": [1.0, 2.0]},
        "surrogate_params must have 1 value for surrogate 'sigmoid', got 2",
    ),
    "params none": (
        lif,
        ValueError,
        {"surrogate_params": []},
        "surrogate_params must have 1 value for surrogate 'sigmoid', got 0",
    ),
    "params two": (
        lif,
        ValueError,
        {"surrogate": "s2nn", "surrogate_params": [1.0]},
        "surrogate_params must have 2 values for surrogate 's2nn', got 1",
    ),
    "params integer": (
        lif,
        ValueError,
        {"surrogate": "squarewave_fourier_series", "surrogate_params": [2.5, 8.0]},
        "surrogate_params: n of surrogate 'squarewave_fourier_series' must be an integer >= 2",
    ),
    "smooth half": (
        lif,
        TypeError,
        {"surrogate": "rect", "spiking": False, "x_seq": X.half()},
        "spiking=False needs float32 or float64 x_seq, got torch.float16",
    ),
    "no primitive": (
        lif,
        ValueError,
        {"surrogate": "triangle", "spiking": False},
        "spiking=False needs a surrogate with a smooth primitive; 'triangle' has none",
    ),
    "decay zero": (
        plif,
        ValueError,
        {"decay": torch.tensor(0.0)},
        "snnkern.plif_forward: decay must be a finite number > 0 and <= 1, got 0",
    ),
    "decay large": (
        plif,
        ValueError,
        {"decay": torch.tensor(1.5)},
        "decay must be a finite number > 0 and <= 1, got 1.5",
    ),
    "decay nan": (
        plif,
        ValueError,
        {"decay": torch.tensor(math.nan)},
        "decay must be a finite number > 0 and <= 1, got nan",
    ),
    "decay shape": (
        plif,
        RuntimeError,
        {"decay": torch.full((2,), 0.5)},
        "decay must broadcast against x_seq[0], [3], or with time against x_seq, [4, 3]; got shape [2]",
    ),
    "decay dtype": (plif, TypeError, {"decay": torch.tensor(1)}, f"decay must be {FLOATING}, got torch.int64"),
    "v device": (
        lif,
        RuntimeError,
        {"v_init": torch.zeros(3, device="meta")},
        "v_init must be on the device of x_seq, cpu, got meta",
    ),
    "decay device": (
        plif,
        RuntimeError,
        {"decay": torch.tensor(0.5, device="meta")},
        "decay must be on the device of x_seq, cpu, got meta",
    ),
    "tau tensor": (
        lif,
        ValueError,
        {"decay_tensor": torch.tensor(2.0)},
        "tau must be a finite number >= 1 or inf, got 0.5 (decay_tensor)",
    ),
    "tau tensor negative": (
        lif,
        ValueError,
        {"decay_tensor": torch.tensor([0.5, -0.0, 0.5])},
        "tau must be a finite number >= 1 or inf, got -inf (decay_tensor)",
    ),
    "tensor fraction": (
        lif,
        ValueError,
        {"max_spikes_tensor": torch.tensor([1.0, 2.5, 3.0])},
        "max_spikes must be an integer >= 1, got 2.5 (max_spikes_tensor)",
    ),
    "tensor dtype": (
        lif,
        TypeError,
        {"v_threshold_tensor": torch.ones(3, dtype=torch.uint8)},
        f"v_threshold must be {FLOATING}, got torch.uint8 (v_threshold_tensor)",
    ),
    "soft reset": (
        lif,
        ValueError,
        {"v_reset": None, "v_reset_tensor": torch.zeros(3)},
        "v_reset_tensor needs a hard reset: v_reset must be a number, got None",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_argument(case: str, training: bool) -> None:
    op, error, changed, message = CASES[case]
    arguments = {"x_seq": X, **changed}
    if op is plif and "decay" not in arguments:
        arguments["decay"] = torch.tensor(0.5)
    x = arguments["x_seq"]
    if training and x.is_floating_point():
        arguments["x_seq"] = x.clone().requires_grad_()
    with pytest.raises(error, match=re.escape(message)):
        op(**arguments)


@pytest.mark.parametrize("case", [c for c in CASES if "device" not in c and "tensor" not in c and CASES[c][0] is lif])
def test_the_same_on_meta_tensors(case: str) -> None:
    """So that torch.compile and torch.export refuse what running would refuse."""
    op, error, changed, message = CASES[case]
    arguments = {"x_seq": X, **changed}
    moved = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(error, match=re.escape(message)):
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


# ---- functional and reference ------------------------------------------------------------------------------------------

NO_NUMBERS = [True, False, "2", b"2", 1j, [1.0], (2.0,), {}, object, numpy.zeros(2), numpy.bool_(True)]
NUMBERS = [
    -math.inf, math.inf, math.nan, -1e300, -1.0, -0.5, 0, 0.5, 1, 1.5, 2, 7.25, 1e39, 1e300,
    numpy.float32(-2.5), numpy.float64(1.5), numpy.int64(-3), numpy.array(0.25),
]  # fmt: skip
NO_SWITCHES = ["no", "", 0, 1, 1.0, None, [True], torch.tensor(True)]
NO_TENSORS = [1.0, [[1.0]], numpy.zeros((4, 3)), "x"]
TENSORS = [
    torch.tensor(value, dtype=dtype).reshape(shape)
    for dtype in (torch.float32, torch.float64, torch.float16)
    for shape in ((), (1,), (1, 1))
    for value in (-2.0, 0.0, 0.5, 1.0, 1.5, 3.0, math.nan)
] + [
    *(torch.ones(shape) for shape in ((2,), (4, 3), (1, 1, 3), (0,))),
    *(torch.ones(3, dtype=dtype) for dtype in (torch.uint8, torch.bool, torch.int64, torch.complex64)),
    torch.ones(3, device="meta"),
]


def outcome(module: Any, neuron: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The class of the error and its words, without where it was raised and what the operator calls the argument."""
    try:
        function(module, neuron)(**arguments)
    except Exception as error:
        text = str(error).splitlines()[0]
        if "this build of snnkern leaves out" in text or type(error) not in (TypeError, ValueError, RuntimeError):
            raise
        return type(error), re.sub(r" \(\w+_tensor\)$", "", text.partition(": ")[2])
    return ()


def arguments_of(neuron: str) -> dict[str, list[Any]]:
    """Every argument of a neuron, with values that may be wrong."""
    n = neuron_class(neuron)
    state = [*NO_TENSORS, torch.zeros(3), torch.zeros(4), torch.zeros(1, 3), *TENSORS[-4:]]
    inputs = [torch.zeros(4), torch.tensor(1.0), torch.zeros(0, 3), torch.zeros(4, 3, dtype=torch.int32)]
    out: dict[str, list[Any]] = {"x_seq": [*NO_TENSORS, *inputs], "store_v_seq": NO_SWITCHES}
    out |= {t.name: [*NO_TENSORS, *TENSORS] for t in n.learned}
    out |= {f"{s.name}_init": state for s in n.states}
    out |= {p.name: [*NO_NUMBERS, *NUMBERS, *TENSORS, None] for p in n.numbers()}
    out |= {p.name: NO_SWITCHES for p in n.flags()}
    if n.has_surrogate:
        chosen = [surrogate.Sigmoid(1e39), surrogate.Sigmoid(spiking=False), surrogate.S2NN(beta=-1e300)]
        out["surrogate"] = ["atan", surrogate.ATan, None, 2.0, *chosen]
    return out


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_the_reference_refuses_what_the_functions_refuse(neuron: str) -> None:
    choices = arguments_of(neuron)
    learned = {t.name: torch.tensor(0.5) for t in neuron_class(neuron).learned}
    wrong = st.sampled_from(sorted(choices)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(choices[name]))
    )
    refused = set()

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(wrong, st.sampled_from([torch.float32, torch.float64, torch.float16]), st.booleans())
    def run(wrong: tuple[str, Any], dtype: torch.dtype, soft: bool) -> None:
        name, value = wrong
        arguments = {"x_seq": torch.zeros(4, 3, dtype=dtype), **learned}
        if soft and "v_reset" in choices:
            arguments["v_reset"] = None
        arguments[name] = value
        found = outcome(functional, neuron, arguments)
        assert found == outcome(reference, neuron, arguments)
        if found:
            refused.add(found[0])

    run()
    assert refused == {TypeError, ValueError, RuntimeError}


def test_messages_name_what_the_user_wrote() -> None:
    for call, error, message in (
        (
            lambda: functional.lif(X, tau=torch.tensor(0.5)),
            ValueError,
            "tau must be a finite number >= 1 or inf, got 0.5 (",
        ),
        (
            lambda: functional.lif(X, tau=True),
            TypeError,
            "snnkern.functional.lif: tau must be a number or a tensor, got True",
        ),
        (
            lambda: functional.lif(X, v_min="0"),
            TypeError,
            "snnkern.functional.lif: v_min must be a number, a tensor or None, got '0'",
        ),
        (
            lambda: functional.lif(X, detach_reset="no"),
            TypeError,
            "snnkern.functional.lif: detach_reset must be True or False, got 'no'",
        ),
        (
            lambda: functional.lif(X, surrogate="atan"),
            TypeError,
            "snnkern.functional.lif: surrogate must be a surrogate of snnkern.surrogate, such as "
            "snnkern.surrogate.ATan(), got 'atan'",
        ),
        (lambda: functional.lif(X.numpy()), TypeError, "snnkern.functional.lif: x_seq must be a tensor, got array("),
        (lambda: functional.lif(X.byte()), TypeError, f"x_seq must be {FLOATING}, got torch.uint8"),
        (
            lambda: nn.LIF(surrogate="atan"),
            TypeError,
            "snnkern.nn.LIF: surrogate must be a surrogate of snnkern.surrogate",
        ),
        (lambda: surrogate.Sigmoid("4"), TypeError, "Sigmoid: alpha must be a number, got '4'"),
        (lambda: surrogate.Sigmoid(True), TypeError, "Sigmoid: alpha must be a number, got True"),
        (lambda: surrogate.Sigmoid(spiking=0), TypeError, "Sigmoid: spiking must be True or False, got 0"),
        (
            lambda: functional.lif(X, max_spikes=torch.tensor(1.5)),
            ValueError,
            "max_spikes must be an integer >= 1, got 1.5 (",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_numbers_of_numpy_are_numbers(module: Any, neuron: str) -> None:
    """A NumPy scalar, or an array without a dimension, gives what the same number of Python gives."""
    n = neuron_class(neuron)
    x = torch.linspace(-2, 3, 24).reshape(4, 6)
    learned = {t.name: torch.tensor(0.4) for t in n.learned}
    run = function(module, neuron)
    for p in n.numbers():
        value = (p.number if math.isfinite(p.number) else -0.5) + (
            1 if p.range.integer else 0.125 if p.range.high > 1 else 0
        )
        for kind in (numpy.float32, numpy.float64, numpy.float16, numpy.array):
            given = kind(value)
            found, expected = (run(x, **learned, **{p.name: v}) for v in (given, float(given)))
            assert all(map(torch.equal, found, expected))
    for p in n.flags():
        assert all(
            map(torch.equal, run(x, **learned, **{p.name: numpy.bool_(True)}), run(x, **learned, **{p.name: True}))
        )


def test_numbers_of_numpy_in_a_surrogate() -> None:
    made = surrogate.SquarewaveFourierSeries(n=numpy.int64(3), T_period=numpy.float32(5.5))
    assert made == surrogate.SquarewaveFourierSeries(3, 5.5)
    assert (type(made.n), type(made.T_period)) == (int, float)
    assert surrogate.ATan(numpy.array(3)) == surrogate.ATan(3)


@pytest.mark.gpu
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_mixed_devices(neuron: str) -> None:
    op = getattr(torch.ops.snnkern, f"{neuron}_forward")
    more = {t.name: torch.tensor(0.5, device="cuda") for t in neuron_class(neuron).learned}
    with pytest.raises(RuntimeError, match=re.escape("v_init must be on the device of x_seq, cuda:0, got cpu")):
        op(X.cuda(), v_init=torch.zeros(3), **more)
