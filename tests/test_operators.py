"""The operators as PyTorch sees them: the fixed schemas, opcheck, Meta, and a library without Python."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import snnkern

from support import KINDS, NEURON_NAMES, neuron_class, noise, operator, resets
from test_layouts import channels_last

pytestmark = pytest.mark.compatibility
COMMON = (
    "bool decay_input=True, float v_threshold=1., float? v_reset=0., bool detach_reset=False, str surrogate='sigmoid', "
    "float[]? surrogate_params=None, bool store_v_seq=False, bool spiking=True) -> (Tensor spike_seq, Tensor v)"
)
ONE_STATE = COMMON.removeprefix("bool decay_input=True, ")
# Written out here on purpose: users call these, so a change of the generator must not change them unnoticed.
FIRING = "float v_threshold=1., bool detach_reset=False"
SURROGATE = "str surrogate='sigmoid', float[]? surrogate_params=None, bool store_v_seq=False, bool spiking=True"
RECOVERY = "float w_rest=0., float tau_w=2., float a=0., float b=0., "
SCHEMAS = {
    "if": "(Tensor x_seq, Tensor? v_init=None, " + ONE_STATE,
    "lif": "(Tensor x_seq, Tensor? v_init=None, float tau=2., " + COMMON,
    "plif": "(Tensor x_seq, Tensor decay, Tensor? v_init=None, " + COMMON,
    "qif": "(Tensor x_seq, Tensor? v_init=None, float tau=2., float v_c=0.8, float a0=1., float v_rest=0., "
    + ONE_STATE.replace("v_reset=0.", "v_reset=-0.1"),
    "eif": "(Tensor x_seq, Tensor? v_init=None, float tau=2., float delta_T=1., float theta_rh=0.8, float v_rest=0., "
    + ONE_STATE.replace("v_reset=0.", "v_reset=-0.1"),
    "izhikevich": "(Tensor x_seq, Tensor? v_init=None, Tensor? w_init=None, float tau=2., float v_c=0.8, float a0=1., "
    "float v_rest=-0.1, " + RECOVERY + ONE_STATE.replace("Tensor v)", "Tensor v, Tensor w)"),
    "adex": "(Tensor x_seq, Tensor? v_init=None, Tensor? w_init=None, float tau=2., float delta_T=1., "
    "float theta_rh=0.8, float v_rest=0., "
    + RECOVERY
    + ONE_STATE.replace("v_reset=0.", "v_reset=-0.1").replace("Tensor v)", "Tensor v, Tensor w)"),
    "ilif": f"(Tensor x_seq, Tensor? v_init=None, float tau=1.3333333333333333, float max_spike_count=4., {FIRING}, "
    "bool store_v_seq=False) -> (Tensor spike_seq, Tensor v)",
    "cuba": "(Tensor x_seq, Tensor? v_init=None, Tensor? i_init=None, float alpha=0.9, float beta=0.9, "
    + ONE_STATE.replace("Tensor v)", "Tensor v, Tensor i)"),
    "alif": "(Tensor x_seq, Tensor? v_init=None, Tensor? b_init=None, float tau=2., float rho=0.95, float adapt=1.8, "
    + ONE_STATE.replace("Tensor v)", "Tensor v, Tensor b)"),
    "klif": "(Tensor x_seq, Tensor? v_init=None, float tau=2., bool decay_input=True, float k=1., "
    "bool scale_reset=False, " + ONE_STATE,
    "clif": f"(Tensor x_seq, Tensor? v_init=None, Tensor? m_init=None, float tau=2., {FIRING}, {SURROGATE}) -> "
    "(Tensor spike_seq, Tensor v, Tensor m)",
    "li": "(Tensor x_seq, Tensor? v_init=None, float tau=2., bool decay_input=True, bool store_v_seq=False) -> "
    "(Tensor v_seq, Tensor v)",
}


BOUNDS = "float? max_spikes=1., float? v_min=None, Tensor? max_spikes_tensor=None, Tensor? v_min_tensor=None"
CONVENTIONS = {
    **dict.fromkeys(("if", "lif", "plif", "cuba"), f", bool strict=False, bool delay_reset=False, {BOUNDS}"),
    "alif": f", bool strict=False, {BOUNDS}",
}


@pytest.mark.parametrize("neuron", SCHEMAS)
def test_schema(neuron: str) -> None:
    found = getattr(torch.ops.snnkern, f"{neuron}_forward").default._schema
    numbers = [name.replace("tau", "decay") for name in re.findall(r"float\?? (\w+)=", SCHEMAS[neuron])]
    tensors = "".join(f", Tensor? {name}_tensor=None" for name in numbers)  # each number may be a tensor instead
    tensors += CONVENTIONS.get(neuron, "")
    if neuron_class(neuron).has_surrogate:
        tensors += "".join(f", Tensor? surrogate_param{i}_tensor=None" for i in range(4))
    assert found == torch._C.parse_schema(
        f"snnkern::{neuron}_forward{SCHEMAS[neuron]}".replace(") ->", f"{tensors}) ->")
    )


def samples(neuron: str, device: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    out = []
    for x in (
        noise((3, 4, 5), torch.float32, 0, device),
        noise((20, 2), torch.float64, 1, device),
        channels_last(noise((2, 2, 3, 4, 5), torch.float32, 2, device)),
        noise((2, 6), torch.bfloat16, 3, device),
    ):
        learned = tuple(torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned)
        learned += tuple(torch.full_like(x, 0.4) for _ in neuron_class(neuron).inputs)
        out.append(((x, *learned), {}))
        out.append(((x, *learned, noise(tuple(x.shape[1:]), torch.float32, 4, device)), {"store_v_seq": True}))
        if neuron_class(neuron).has_surrogate:
            out.append(((x, *learned), {**resets(neuron)[-1], "surrogate": "atan", "surrogate_params": [3.0]}))
    return out


def some(all_of_them: list[Any], neuron: str) -> list[Any]:
    """Dtypes and layouts are worked on by the same code for all neurons, so all of them for one neuron will do."""
    return all_of_them if neuron == "lif" else all_of_them[::4]


@pytest.mark.parametrize("neuron", KINDS)
def test_opcheck(neuron: str, device: str) -> None:
    for args, kwargs in some(samples(neuron, device), neuron):
        for grad in (False, True):
            given = [a.detach().requires_grad_(grad and a.dtype != torch.bfloat16) for a in args]
            torch.library.opcheck(operator(neuron).default, tuple(given), kwargs)
        torch.library.opcheck(operator(neuron, "_{}_train").default, args, kwargs)


@pytest.mark.parametrize("neuron", KINDS)
def test_opcheck_of_backward(neuron: str, device: str) -> None:
    op = operator(neuron, "{}_backward").default
    for args, kwargs in some(samples(neuron, device), neuron):
        *outputs, checkpoints = operator(neuron, "_{}_train")(*args, **kwargs)
        incoming = [torch.ones_like(o) for o in outputs]
        for missing in (None, 0, 1):
            grads = [None if i == missing else g for i, g in enumerate(incoming)]
            values = [*grads, checkpoints, *args]
            own = operator(neuron).default._schema.arguments
            values += [kwargs.get(a.name, a.default_value) for a in own[len(args) :]]
            torch.library.opcheck(op, tuple(values))


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_meta_gives_the_shapes_dtypes_and_strides_of_a_run(neuron: str) -> None:
    for args, kwargs in samples(neuron, "cpu"):
        for role in (f"{neuron}_forward", f"_{neuron}_train"):
            op = getattr(torch.ops.snnkern, role)
            for real, meta in zip(op(*args, **kwargs), op(*(a.to("meta") for a in args), **kwargs), strict=True):
                assert (real.shape, real.dtype, real.stride()) == (meta.shape, meta.dtype, meta.stride())


def test_the_library_loads_without_python_symbols() -> None:
    """A C++ program can load it: nothing of libpython or libtorch_python is needed."""
    library = snnkern._library.HOST
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert "torch_python" not in needed and "libpython" not in needed
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert " Py" not in undefined


def test_importing_twice_and_from_a_thread() -> None:
    code = "import threading, snnkern; t = threading.Thread(target=lambda: __import__('snnkern')); t.start(); t.join(); print(len(snnkern.kernels()))"
    out = subprocess.run([sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                         capture_output=True, text=True, check=True, cwd="/")  # fmt: skip
    assert int(out.stdout) > 0
