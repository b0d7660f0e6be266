"""Robustness: any call of a public operator gives a right result or a Python exception."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnkern import functional, reference
from snnkern.codegen.specification.neurons import Float

from support import (
    DTYPES,
    NEURON_NAMES,
    SURROGATE_CLASSES,
    function,
    inputs,
    neuron_class,
    noise,
    operator,
    options_of,
    state_dtype,
)

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", NEURON_NAMES)
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)
NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1.0,
    0.0,
    -0.0,
    0.5,
    1.0,
    1e-45,
    1e30,
    1e39,
    1e308,
    3,
    True,
    "1",
    None,
    1 + 2j,
]
fuzz = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def overlapping(t: Tensor) -> Tensor:
    """The shape of t, in which every element is next to itself in memory."""
    room = torch.arange(t.numel() + t.dim() + 1, dtype=torch.float64, device=t.device).sin().to(t.dtype)
    return room.as_strided(t.shape, [1] * t.dim())


TENSORS: dict[str, Any] = {
    "no last dimension": lambda t: t[..., 0] if t.dim() and t.shape[-1] else t.sum(),
    "one more dimension": lambda t: t.unsqueeze(-1),
    "one more in front": lambda t: t.unsqueeze(0),
    "one longer": lambda t: torch.cat([t, t[..., :1]], -1) if t.dim() else t,
    "first dimension empty": lambda t: t[:0] if t.dim() else t.reshape(1)[:0],
    "last dimension empty": lambda t: t[..., :0] if t.dim() else t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() else t,
    "expanded": lambda t: t[..., :1].expand_as(t) if t.dim() and t.shape[-1] else t,
    "overlapping": overlapping,
    "scalar": lambda t: t.sum(),
    "int64": lambda t: t.nan_to_num(0, 0, 0).to(torch.int64),
    "bool": lambda t: t > 0,
    "complex": lambda t: torch.complex(t.float(), t.float()),
    "imaginary part": lambda t: torch.complex(t.float(), t.float()).conj().imag,  # a lazy negation
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float().nan_to_num(0, 0, 0).cpu(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "nan": lambda t: torch.full_like(t, math.nan),
    "inf": lambda t: torch.full_like(t, math.inf),
    "some -inf": lambda t: torch.where(t > 0, -math.inf, t),
    "largest": lambda t: torch.full_like(t, torch.finfo(t.dtype).max),
    "smallest": lambda t: torch.full_like(t, 5e-324),
    "wants grad": lambda t: t.detach().requires_grad_(),
    "none": lambda t: None,
    "number": lambda t: 1.0,
    "list": lambda t: [t],
    "text": lambda t: "tensor",
}
OTHERS: dict[type, list[Any]] = {
    float: NUMBERS,
    bool: [True, False, 2, None, "True", math.nan],
    str: ["", "sigmoid ", "Sigmoid", "sigmoid\0", "a" * 10_000, "é", *SURROGATE_CLASSES, None, 3],
    list: [None, [], [1.0, 2.0], [math.nan], [math.inf], [-1.0], [1e39], [2.5, 8.0], [1e30], [2], "x", [None], [[1.0]]],
}


def kind(argument: torch.Argument) -> type:
    text = str(argument.type)
    return {"Tensor": Tensor, "float": float, "bool": bool, "str": str, "List[float]": list}[
        text.removeprefix("Optional[").removesuffix("]") if text.startswith("Optional[") else text
    ]


@st.composite
def calls(draw: Any, role: str, device: str = "cpu") -> tuple[str, list[Any]]:
    """A good call of an operator, in which up to three arguments are replaced by others."""
    neuron = draw(st.sampled_from(NEURON_NAMES))
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    shape = (draw(st.sampled_from([1, 2, 16, 17, 40])), *draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    values: dict[str, Any] = {a.name: a.default_value for a in operator(neuron).default._schema.arguments}
    values |= {name: t.detach() for name, t in inputs(neuron, shape, dtype, device).items()}
    if "v_reset" in values:
        values["v_reset"] = draw(st.sampled_from([0.0, None, -0.25]))
    values["store_v_seq"] = draw(st.booleans())
    for p in neuron_class(neuron).numbers():
        if draw(st.integers(0, 5)) == 0 and (p.name != "v_reset" or values[p.name] is not None):
            value = 1 / p.number if p.inverse else p.number
            sizes = draw(st.sampled_from([(), (1,), shape[1:], shape[2:]]))
            values[f"{p.symbol}_tensor"] = torch.full(sizes, value, dtype=dtype, device=device)
    if role == "{}_backward":
        *outputs, checkpoints = operator(neuron, "_{}_train")(*values.values())
        grads = [noise(tuple(o.shape), o.dtype, i, device) for i, o in enumerate(outputs)]
        values = {f"g{i}": g for i, g in enumerate(grads)} | {"checkpoints": checkpoints} | values
    names = [a.name for a in operator(neuron, role).default._schema.arguments]
    values = dict(zip(names, values.values(), strict=True))
    kinds = {a.name: kind(a) for a in operator(neuron, role).default._schema.arguments}
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        if kinds[name] is not Tensor:
            values[name] = draw(st.sampled_from(OTHERS[kinds[name]]))
        elif isinstance(values[name], Tensor):
            values[name] = TENSORS[draw(st.sampled_from(list(TENSORS)))](values[name])
    tensors = [name for name in names if isinstance(values[name], Tensor) and not values[name].is_nested]
    if tensors and draw(st.integers(0, 4)) == 0:  # two arguments that share memory
        a, b = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        if values[a].layout == torch.strided and values[a].dim() and values[a].shape[0]:
            values[b] = draw(st.sampled_from([values[a], values[a][0], values[a].reshape(-1)[:1]]))
    return neuron, list(values.values())


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit for neurons of plain arithmetic, and within rounding for others; NaN equals NaN."""
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


def check_result(neuron: str, arguments: list[Any], outputs: tuple[Tensor, ...]) -> None:
    """Shapes and dtypes as promised, and the values of the reference."""
    schema = operator(neuron).default._schema.arguments
    # The dispatcher takes any number for a bool, as Python does.
    values = {a.name: bool(v) if kind(a) is bool else v for a, v in zip(schema, arguments, strict=True)}
    x, whole = values["x_seq"], values["store_v_seq"]
    assert x.dim() >= 2 and x.shape[0] >= 1 and x.dtype in DTYPES.values()
    spikes, *states = outputs
    assert spikes.shape == x.shape and spikes.dtype == x.dtype and spikes.device == x.device
    assert len(states) == len(neuron_class(neuron).states)
    for v in states:
        assert v.shape == (x.shape if whole else x.shape[1:]) and v.dtype == state_dtype(x.dtype)
    if any(isinstance(v, Tensor) and v.is_meta for v in arguments):
        assert x.is_meta
        return
    if "surrogate" in values:
        make = SURROGATE_CLASSES[values.pop("surrogate")]
        params = values.pop("surrogate_params")
        values["surrogate"] = make(*(params or []), spiking=values.pop("spiking"))
    tensors = {name: values.pop(name) for name in list(values) if name.endswith("_tensor")}
    for p in neuron_class(neuron).numbers():
        given = tensors[f"{p.symbol}_tensor"]
        if given is not None:
            values[p.name] = 1 / given.to(state_dtype(x.dtype)) if p.inverse else given
    if any(p.inverse and isinstance(values[p.name], Tensor) for p in neuron_class(neuron).numbers()):
        return  # 1 / (1 / decay) is not decay, and a spike may turn
    for got, expected in zip(outputs, function(reference, neuron)(**values), strict=True):
        assert same(got, expected)


def unchanged(arguments: list[Any], call: Any) -> Any:
    """The result of a call that must leave its arguments as they are, and give none of their memory back."""
    own = [a for a in arguments if isinstance(a, Tensor) and a.layout == torch.strided and a.device.type == "cpu"]
    own = [a for a in own if not a.is_quantized and not a.is_nested and a.dtype in DTYPES.values()]
    before = [a.detach().clone() for a in own]
    outputs = call()
    for a, b in zip(own, before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert all(o.untyped_storage().data_ptr() != a.untyped_storage().data_ptr() for o in outputs if o.numel())
    return outputs


@pytest.mark.parametrize("role", ["{}_forward", "_{}_train"])
def test_forward(role: str) -> None:
    results = {True: 0, False: 0}

    @fuzz
    @given(calls(role))
    def run(call: tuple[str, list[Any]]) -> None:
        neuron, arguments = call
        try:
            outputs = unchanged(arguments, lambda: operator(neuron, role)(*arguments))
        except REFUSALS as error:
            assert str(error)
            results[False] += 1
            return
        results[True] += 1
        check_result(neuron, arguments, outputs[:-1] if role == "_{}_train" else outputs)

    run()
    assert min(results.values()) > 20  # both happen, or this shows nothing


def test_backward() -> None:
    results = {True: 0, False: 0}

    @fuzz
    @given(calls("{}_backward"))
    def run(call: tuple[str, list[Any]]) -> None:
        neuron, arguments = call
        names = [a.name for a in operator(neuron, "{}_backward").default._schema.arguments]
        values = dict(zip(names, arguments, strict=True))
        try:
            grads = unchanged(arguments, lambda: operator(neuron, "{}_backward")(*arguments))
        except REFUSALS as error:
            assert str(error)
            results[False] += 1
            return
        results[True] += 1
        x = values["x_seq"]
        assert grads[0].shape == x.shape and grads[0].dtype == x.dtype
        for grad, name in zip(grads, operator(neuron, "{}_backward").default._schema.returns, strict=True):
            given_to = values[name.name.removeprefix("grad_")]
            if isinstance(given_to, Tensor):
                assert grad.shape == given_to.shape

    run()
    assert min(results.values()) > 20


def test_a_good_call_with_any_values_matches_the_reference() -> None:
    """NaN, infinities, the largest and the smallest numbers, in x, states and parameters, with a backward after it."""
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3e38, -3e38, 0.3, 5.0])

    @fuzz
    @given(
        st.sampled_from(NEURON_NAMES),
        st.sampled_from(["f32", "f64"]),
        st.lists(st.tuples(value, value, value), min_size=1, max_size=40),
        st.lists(value, min_size=3, max_size=3),
        st.sampled_from([1.0, 0.0, -1.0, 3e38, 1e-45]),
        st.sampled_from([None, 0.0, -3e38, 1e-45]),
    )
    def run(neuron: str, dtype: str, x: Any, v: Any, v_threshold: float, v_reset: float | None) -> None:
        tensors = inputs(neuron, (1, 1), DTYPES[dtype])
        for name, t in tensors.items():
            if t.dim():
                new = torch.tensor(x if name == "x_seq" else v, dtype=t.dtype)
                tensors[name] = new.requires_grad_()
        options = options_of(neuron, v_threshold=v_threshold, v_reset=v_reset)
        for p in neuron_class(neuron).firing:
            if isinstance(p, Float) and options[p.name] is not None and not p.range.holds(options[p.name]):
                options[p.name] = p.default
        outputs = function(functional, neuron)(**tensors, **options)
        for got, expected in zip(outputs, function(reference, neuron)(**tensors, **options), strict=True):
            assert same(got, expected)
        grads = torch.autograd.grad(sum(o.sum() for o in outputs), list(tensors.values()))
        assert all(g.shape == t.shape for g, t in zip(grads, tensors.values(), strict=True))

    run()


@each_neuron
def test_sizes_beyond_memory_are_refused(neuron: str) -> None:
    learned = [torch.tensor(0.4) for _ in neuron_class(neuron).learned]
    for shape in ((2**40, 3), (3, 2**40), (2**31, 2**31), (2**62, 1), (1, 2**62), (2**20, 2**20, 2**20)):
        x = torch.zeros((1,) * len(shape)).expand(shape)
        with pytest.raises(REFUSALS):
            operator(neuron)(x, *learned)


@each_neuron
def test_large_and_small_sizes_on_meta(neuron: str) -> None:
    """Shapes are worked out without memory, up to where PyTorch itself can count."""
    learned = [torch.empty((), device="meta") for _ in neuron_class(neuron).learned]
    for shape in ((2**31, 2**20), (1, 2**40), (2**40, 1), (17, 0), (1, 0, 5)):
        x = torch.empty(shape, device="meta")
        assert operator(neuron)(x, *learned)[0].shape == shape
        *_, checkpoints = operator(neuron, "_{}_train")(x, *learned)
        assert checkpoints.shape[0] == (shape[0] - 1) // 16 * len(neuron_class(neuron).states)


@each_neuron
def test_long_and_wide(neuron: str, device: str) -> None:
    """One neuron over many steps, and many neurons over few, agree with their parts."""
    learned = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]
    x = noise((300_001, 1), torch.float32, 0, device, 2.0)
    spikes, *states = operator(neuron)(x, *learned)
    first, *between = operator(neuron)(x[:100_000], *learned)
    second, *after = operator(neuron)(x[100_000:], *learned, *between)
    assert torch.equal(torch.cat([first, second]), spikes)
    assert all(torch.equal(a, b) for a, b in zip(after, states, strict=True))
    x = noise((3, 1_000_003), torch.float32, 0, device, 2.0)
    spikes = operator(neuron)(x, *learned)[0]
    assert torch.equal(operator(neuron)(x[:, 999_990:], *learned)[0], spikes[:, 999_990:])


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    """Indices beyond 32 bits: the last neurons get what they get alone, forward and backward."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    for neuron in NEURON_NAMES:
        learned = [torch.tensor(0.4, device="cuda") for _ in neuron_class(neuron).learned]
        x = torch.zeros(2, 2**30 + 24, dtype=torch.bfloat16, device="cuda")
        x[:, -16:] = noise((2, 16), torch.bfloat16, 0, "cuda", 3.0)
        x.requires_grad_()
        few = x.detach()[:, -16:].contiguous().requires_grad_()
        spikes, alone = (operator(neuron)(t, *learned)[0] for t in (x, few))
        assert torch.equal(spikes[:, -16:], alone) and alone.abs().sum() > 0
        (grad,) = torch.autograd.grad(spikes, x, torch.ones_like(spikes))
        (expected,) = torch.autograd.grad(alone, few, torch.ones_like(alone))
        assert torch.equal(grad[:, -16:], expected)
        del x, spikes, grad


@pytest.mark.gpu
@each_neuron
def test_tensors_of_two_devices_are_refused(neuron: str) -> None:
    tensors = {name: t.detach().cuda() for name, t in inputs(neuron, (5, 4), torch.float32).items()}
    for name in tensors:
        mixed = [t.cpu() if n == name else t for n, t in tensors.items()]
        with pytest.raises(RuntimeError, match="must be on the device of x_seq"):
            operator(neuron)(*mixed)
