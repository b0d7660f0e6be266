"""ONNX: networks with snnkern's neurons leave PyTorch by torch.onnx.export, and run where no snnkern is.

A neuron becomes a Scan, ONNX's loop over time, whose body is the step of the specification in ONNX's own operators: any runtime
can run it, and the dimensions of time and of neurons may be dynamic. The exporter finds the translations by itself. They are
for inference: a step in ONNX has no gradient.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._operators import Operator
from .._specification import NEURONS, SURROGATES
from .._when_imported import when_imported
from ..codegen.emit.schema import flags_of, floats_of
from ..codegen.emit.step import Traced, trace
from ..codegen.graph import expr
from ..codegen.graph.expr import Expr, flag, var
from ..codegen.specification.base import SURROGATE_TENSORS, Float, Input, Learned, Neuron
from ..codegen.specification.check import trace_surrogate

__all__ = ["translation_table"]

# What torch.onnx.export imports before it looks for translations, and not before it is called.
_EXPORTER = "torch.onnx._internal.exporter._torchlib.ops"
_INFINITY = var("R(INFINITY)")  # as the generator names it
_FED_BACK = var("spike of the step before")

# What each operation of a graph is called in ONNX; _Writer has those that are more than one operator.
_OPERATORS = {
    "+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "neg": "Neg",
    "<": "Less", "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "where": "Where",
    "exp": "Exp", "log": "Log", "sigmoid": "Sigmoid", "tanh": "Tanh", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos",
    "atan": "Atan", "abs": "Abs", "floor": "Floor", "round": "Round", "power": "Pow", "maximum": "Max", "minimum": "Min",
}  # fmt: skip


def _ir() -> Any:
    """The package with which the exporter builds a network."""
    import onnx_ir

    return onnx_ir


class _Writer:
    """Writes nodes of an ONNX graph that compute in one dtype. What they take are values of the graph, or numbers.

    With a prefix, the values have names of their own: those of a body must differ from those around it.
    """

    def __init__(self, dtype: Any, opset: int, prefix: str = "") -> None:
        self.tape = _ir().tape.Tape()
        self.dtype, self.opset, self.prefix = dtype, opset, prefix
        self.constants: dict[str, Any] = {}

    def op(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        values = [self.number(a) if isinstance(a, float) else a for a in inputs]
        value = self.tape.op(name, values, attributes, version=self.opset)
        if self.prefix:
            value.name = f"{self.prefix}{len(self.tape.nodes)}"
        return value

    def input(self, name: str, dtype: Any, sequence: Any) -> Any:
        """A value that is, in each step, that of the sequence."""
        ir = _ir()
        return ir.Value(name=self.prefix + name, type=ir.TensorType(dtype), shape=ir.Shape(sequence.shape[1:]))

    def number(self, number: float) -> Any:
        key = repr(number)  # -0.0 is another constant than 0.0
        if key not in self.constants:
            self.constants[key] = self.op("Constant", value=_ir().tensor(number, dtype=self.dtype))
        return self.constants[key]

    def cast(self, value: Any, to: Any = None) -> Any:
        dtype = self.dtype if to is None else to
        if value.dtype == dtype:
            return value
        out = self.op("Cast", value, to=dtype)
        out.dtype, out.shape = dtype, value.shape
        return out

    def rounded(self, value: Any, dtype: Any) -> Any:
        """The nearest values that a dtype has."""
        return self.cast(self.cast(value, dtype))

    def write(
        self, outputs: Sequence[Expr], known: Mapping[Expr, Any], primitive: Callable[[Any], Any] | None = None
    ) -> list[Any]:
        """The values of expressions, given those of their variables and flags; and a surrogate's primitive."""
        done = dict(known)

        def visit(e: Expr) -> Any:
            if e not in done:
                done[e] = compute(e)
            return done[e]

        def compute(e: Expr) -> Any:
            if e.op == "const":
                return float(e.value)
            if e.op == "series":
                n, term = e.args
                if not isinstance(visit(n), float):
                    raise TypeError(f"{n!r}, the number of terms of a sum, must be a number in ONNX, got a tensor")
                return self._series(visit(n), lambda i: self.write([term], {**known, expr.INDEX: i}))
            # Where a number chooses, what it leaves aside is not written.
            if e.op == "where" and isinstance(visit(e.args[0]), bool):
                return visit(e.args[1] if visit(e.args[0]) else e.args[2])
            args = [visit(a) for a in e.args]
            if e.op in expr.COMPARISONS and all(isinstance(a, float) for a in args):
                return bool(expr.NUMBERS[e.op](*args))
            if e.op == "primitive" and primitive is not None:
                return primitive(*args)
            if e.op in _OPERATORS:
                return self.op(_OPERATORS[e.op], *args)
            return getattr(self, f"_{e.op}")(*args)

        return [visit(e) for e in expr.value(outputs)]

    def _spike(self, u: Any) -> Any:
        return self.op("Cast", self.op("GreaterOrEqual", u, 0.0), to=self.dtype)

    def _select(self, s: Any, a: Any, b: Any) -> Any:
        return self.op("Where", self.op("Cast", s, to=_ir().DataType.BOOL), a, b)

    def _relu(self, a: Any) -> Any:  # ONNX does not say what its own makes of NaN
        return self.op("Where", self.op("LessOrEqual", a, 0.0), 0.0, a)

    def _erfc(self, a: Any) -> Any:
        return self.op("Sub", 1.0, self.op("Erf", a))

    def _softplus(self, a: Any) -> Any:
        return self.op("Where", self.op("Greater", a, expr.SOFTPLUS_LINEAR), a, self.op("Softplus", a))

    def _clamp(self, a: Any, low: Any, high: Any) -> Any:
        return self.op("Min", self.op("Max", a, low), high)

    def _series(self, n: float, term: Callable[[float], list[Any]]) -> Any:
        total: Any = 0.0
        for i in range(1, int(n)):
            total = self.op("Add", total, *term(float(i)))
        return total


def _scan(operator: Operator, given: Mapping[str, Any]) -> list[Any]:
    """Writes a call of an operator, with its arguments by name, into the network that is being exported."""
    from onnxscript import evaluator

    ir, recorder = _ir(), evaluator.default()  # the exporter's
    neuron, x_seq = operator.neuron, given["x_seq"]
    spike_dtype = x_seq.dtype
    dtype = ir.DataType.DOUBLE if spike_dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    outside = _Writer(dtype, recorder.opset.version)
    body = _Writer(dtype, recorder.opset.version, f"snnkern.{neuron.name}.")

    normed: list[Any] = []
    if "channel_dim" in given:
        x_seq, normed = _batch_norm(outside, operator, given)

    kind = _kind(neuron, given)
    traced = trace(neuron, "soft" if given.get("v_reset") is None else "hard", kind)
    known, moving, first = _parameters(outside, neuron, kind, traced, given)
    sequences = {traced.x: x_seq, **moving}  # what is another in each step

    step_shape = outside.op("Shape", x_seq, start=1)
    starts = [
        outside.op("Expand", first[state.start], step_shape) if start is None else outside.cast(start)
        for state, start in ((state, given[f"{state.name}_init"]) for state in neuron.states)
    ]
    inputs = {e: body.input(repr(e), dtype, x_seq) for e in traced.old}
    if "weight_hh" in given:
        inputs[_FED_BACK] = body.input("spike", dtype, x_seq)
        before = given["spike_init"]
        starts.append(outside.op("Expand", 0.0, step_shape) if before is None else outside.rounded(before, spike_dtype))
    inputs.update({e: body.input(repr(e), sequence.dtype, sequence) for e, sequence in sequences.items()})
    known.update({e: body.cast(value) for e, value in inputs.items()})
    if _FED_BACK in known:
        known[traced.x] = body.op("Add", known[traced.x], _fed_back(outside, body, known[_FED_BACK], given))
    written = body.write([traced.spike, *traced.new], known, lambda u: _primitive(body, given, u))
    # A neuron that never spikes gives the number 0.
    spike, *states = (
        body.op("Expand", result, body.op("Shape", known[traced.x])) if isinstance(result, float) else result
        for result in written
    )
    # An output of its own for each result: what a step returns twice, ONNX takes once.
    last = [body.op("Identity", state) for state in (*states, *([spike] if _FED_BACK in known else []))]
    each = [body.op("Cast", spike, to=spike_dtype)]
    if given["store_v_seq"]:
        each += [body.op("Identity", state) for state in states]
    graph = ir.Graph(list(inputs.values()), [*last, *each], nodes=body.tape.nodes, name=f"{neuron.name}_step")
    results = outside.tape.op_multi_out(
        "Scan",
        [*starts, *sequences.values()],
        {"body": graph, "num_scan_inputs": len(sequences)},
        num_outputs=len(last) + len(each),
        version=outside.opset,
    )
    recorder.nodes.extend(outside.tape.nodes)
    final, (spike_seq, *state_seqs) = results[: len(last)], results[len(last) :]
    return [spike_seq, *(state_seqs or final[: len(states)]), *normed]


def _fed_back(outside: _Writer, body: _Writer, spike: Any, given: Mapping[str, Any]) -> Any:
    """What the neurons get of the spikes of the step before, in a recurrent layer."""
    weight, bias = (
        None if given[name] is None else outside.rounded(given[name], given["x_seq"].dtype)
        for name in ("weight_hh", "bias_hh")
    )
    if len(given["weight_hh"].shape) == 1:
        z = body.op("Mul", spike, weight)
    else:
        z = body.op("MatMul", spike, outside.op("Transpose", weight, perm=[1, 0]))
    return z if bias is None else body.op("Add", z, bias)


def _parameters(
    writer: _Writer, neuron: type[Neuron], kind: str, traced: Traced, given: Mapping[str, Any]
) -> tuple[dict[Expr, Any], dict[Expr, Any], dict[str, Any]]:
    """What the equations get of the parameters: numbers and tensors, sequences of those with time, and by name the first step's."""

    def value_of(p: Input | Learned | Float) -> Any:
        name = f"{p.symbol}_tensor" if isinstance(p, Float) else p.name
        if given[name] is not None or not isinstance(p, Float):
            return writer.cast(given[name])
        number = float((p.none or 0.0) if given[p.name] is None else given[p.name])
        return 1 / number if p.inverse else number

    known: dict[Expr, Any] = {flag(f"p.{f.name}"): given[f.name] for f in flags_of(neuron, kind)}
    known[_INFINITY] = math.inf
    moving: dict[Expr, Any] = {}
    first: dict[str, Any] = {"0": 0.0}
    for p, e in zip(floats_of(neuron, kind), traced.floats, strict=True):
        value = value_of(p)
        if not isinstance(value, float) and len(value.shape) == len(given["x_seq"].shape):
            if value.shape[0] != 1:
                moving[e] = value
            value = writer.op("Gather", value, writer.op("Constant", value=_ir().tensor(0)), axis=0)
        known[e] = first[p.name] = value
    return known, moving, first


def _primitive(writer: _Writer, given: Mapping[str, Any], u: Any) -> Any:
    """The surrogate's primitive at u."""
    surrogate, numbers = SURROGATES[given["surrogate"]], given["surrogate_params"]
    known = {var("x"): u}
    for i, p in enumerate(surrogate.parameters):
        tensor = given[SURROGATE_TENSORS[i]]
        number = float(p.number if numbers is None else numbers[i])
        known[var(p.name)] = number if tensor is None else writer.cast(tensor)
    return writer.write([trace_surrogate(surrogate)["primitive"]], known)[0]


def _batch_norm(writer: _Writer, operator: Operator, given: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """What the neuron gets behind a BatchNorm; and what the operator returns of it, sum_seq and statistics."""
    ir, x_seq = _ir(), given["x_seq"]
    if given["mean"] is None:
        raise ValueError(
            f"snnkern.{operator.name}: a BatchNorm in training has no counterpart in ONNX: call net.eval() before"
        )
    shape = writer.op("Constant", value=ir.tensor([-1] + [1] * (len(x_seq.shape) - given["channel_dim"] - 1)))

    def of_channels(name: str) -> Any:
        return None if given[name] is None else writer.op("Reshape", writer.cast(given[name]), shape)

    mean, var, weight, bias = map(of_channels, ("mean", "var", "weight", "bias"))
    scale = writer.op("Div", 1.0, writer.op("Sqrt", writer.op("Add", var, float(given["eps"]))))
    if weight is not None:
        scale = writer.op("Mul", weight, scale)
    y = writer.op("Mul", writer.op("Sub", writer.cast(x_seq), mean), scale)
    for term in (bias, given["residual_seq"]):
        if term is not None:
            y = writer.op("Add", y, writer.cast(term))
    y.dtype, y.shape = writer.dtype, x_seq.shape
    none = writer.op("Constant", value=ir.tensor([], dtype=writer.dtype))
    return y, [writer.op("Cast", y if given["with_sum"] else none, to=x_seq.dtype), none]


def _kind(neuron: type[Neuron], given: Mapping[str, Any]) -> str:
    """The kind of pass that a call needs, with all that parameters may be."""
    if not given.get("spiking", True):
        return "smooth"
    tensors = [given[f"{p.symbol}_tensor"] for p in neuron.conventions if isinstance(p, Float)]
    is_plain = all(given[p.name] == p.default for p in neuron.conventions) and all(t is None for t in tensors)
    return "tensor" if is_plain else "general"


def _translation(operator: Operator) -> Callable[..., list[Any]]:
    def translate(*args: Any, **kwargs: Any) -> list[Any]:
        return _scan(operator, {**dict(zip(operator.arguments, operator.complete(args), strict=True)), **kwargs})

    return translate


def translation_table() -> dict[Any, Callable[..., list[Any]]]:
    """What writes the operators of all neurons in ONNX, those of neurons defined at run time too.

    torch.onnx.export uses it without being told. Where a release of torch has another place for that, it warns, and takes the
    table as an argument: ``torch.onnx.export(net, (x,), dynamo=True, custom_translation_table=translation_table())``.

    Example:
        >>> torch.ops.snnkern.lif_forward.default in snnkern.compat.onnx.translation_table()
        True
    """
    roles = ("{}_forward", "{}_norm_forward", "{}_recurrent_forward")
    operators = [
        Operator(neuron, getattr(torch.ops.snnkern, name).default)
        for key, neuron in NEURONS.items()
        for name in (role.format(key) for role in roles)
        if hasattr(torch.ops.snnkern, name)
    ]
    return {operator.overload: _translation(operator) for operator in operators}


_registered: set[Any] = set()


def register() -> None:
    """Tells the exporter of the operators that it does not know yet, if it has been imported."""
    if _EXPORTER not in sys.modules:
        return
    try:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

        for overload, translation in translation_table().items():
            if overload not in _registered:
                onnx_impl(overload, no_compile=True)(translation)
                _registered.add(overload)
    except (ImportError, TypeError) as error:
        warnings.warn(
            f"snnkern: torch.onnx.export of this torch does not find its neurons by itself ({error}): "
            "pass custom_translation_table=snnkern.compat.onnx.translation_table()",
            stacklevel=2,
        )


when_imported(_EXPORTER, register)
