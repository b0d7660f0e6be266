"""CUDA code for elementary functions and surrogate gradients, as text, for the kernels of `base` and `neuron_kernel`.

Every function takes its result's place first, then its operands as code, then `dtype`: 'float', or 'half2' for two
half-precision numbers at once. It returns one or more statements that end in an assignment:

    >>> cfunction.add(z="z", x="x", y="a - b", dtype="float")
    'z = x + (a - b);'

The place may declare a variable: ``z="const float z"``. With None as the place, the expression alone comes back, in
parentheses, to be used as an operand of another function. Code of an operand that is not a single name or number is put in
parentheses. Masks are 1 where something holds and 0 elsewhere.

A statement may need temporary variables; they are called <function>__<name>. `base.CodeTyper` renames those that appear a
second time.

The arithmetic of 'half2' is in half precision: each operation rounds its result to half. Constants are rounded to the
nearest float (then half).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

from ..codegen.graph.expr import FUNCTIONS, Expr, Printer, lift, topological, var, where
from ..codegen.specification import surrogates

# What the functions of a graph are called in CUDA, for float and for half2; None: half2 goes by way of float.
_CALLS: dict[str, tuple[str, str | None]] = {
    "exp": ("expf", "h2exp"),
    "log": ("logf", "h2log"),
    "sin": ("sinf", "h2sin"),
    "cos": ("cosf", "h2cos"),
    "abs": ("fabsf", "__habs2"),
    "floor": ("floorf", "h2floor"),
    "round": ("rintf", None),
    "sqrt": ("sqrtf", None),
    "tanh": ("tanhf", None),
    "atan": ("atanf", None),
    "erfc": ("erfcf", None),
    "pow": ("powf", None),
    "power": ("powf", None),
    "min": ("fminf", "__hmin2"),
    "max": ("fmaxf", "__hmax2"),
}
# The _rn forms are never contracted to a fused multiply-add, so that results do not depend on the compiler.
_HALF2_ARITHMETIC = {"+": "__hadd2_rn", "-": "__hsub2_rn", "*": "__hmul2_rn", "/": "__h2div"}
_HALF2_COMPARISONS = {"<": "__hlt2", "<=": "__hle2", ">": "__hgt2", ">=": "__hge2"}
_LANES = ("low", "high")


def float_literal(x: float) -> str:
    """The shortest literal of the float nearest to x: 1 is 1.0f.

    Example:
        >>> cfunction.float_literal(0.1)
        '0.1f'
    """
    x = _number("x", x)
    try:
        (nearest,) = struct.unpack("f", struct.pack("f", x))
    except (struct.error, OverflowError):
        nearest = math.inf
    if not math.isfinite(nearest):
        raise ValueError(f"x must be a number that fits float, got {x!r}")
    text = next(t for t in (f"{nearest:.{digits}g}" for digits in range(1, 10)) if _as_float(t) == nearest)
    return text + ("f" if set(text) & set(".e") else ".0f")


def _as_float(text: str) -> float:
    value: float = struct.unpack("f", struct.pack("f", float(text)))[0]
    return value


class _FloatPrinter(Printer):
    """Prints expressions as CUDA code over float. Without a prefix for their names it declares no variables."""

    real = "float"
    _zero = "0.0f"

    def __init__(self, prefix: str = "") -> None:
        super().__init__(indent="")
        self.prefix = prefix

    def _count_uses(self, outputs: Any) -> None:
        if self.prefix:
            super()._count_uses(outputs)

    def _constant(self, value: float) -> str:
        text = float_literal(value)
        return f"({text})" if text.startswith("-") else text

    def _function(self, op: str) -> str:
        return _CALLS[op][0]

    def _operation(self, e: Expr) -> tuple[str, int]:
        if e.op == "spike":
            return f"{self._holds(e.args[0])} ? 1.0f : 0.0f", 0
        if e.op == "sigmoid":
            return self._operation(1 / (1 + (-e.args[0]).exp()))
        if e.op == "power":
            return f"{self._function(e.op)}({', '.join(self._text(a) for a in e.args)})", 9
        return super()._operation(e)

    def _holds(self, u: Expr) -> str:
        a, b = _difference(u)
        return f"{self._text(a, 1)} >= {self._text(b, 1)}"


def _difference(u: Expr) -> tuple[Expr, Expr]:
    """(a, b) such that u >= 0 is a >= b: for finite b the difference cannot round to 0 unless a is b."""
    return (u.args[0], u.args[1]) if u.op == "-" else (u, lift(0))


class _Half2Printer(Printer):
    """Prints expressions as CUDA code over half2.

    `scalars` names variables that are float, one for both lanes. An operation of one with a half2 is done in float and
    rounded once, so that parameters are never rounded to half themselves.
    """

    real = "half2"

    def __init__(self, prefix: str = "", scalars: Collection[str] = ()) -> None:
        super().__init__(indent="")
        self.prefix = prefix
        self.scalars = scalars
        self.uniform: dict[Expr, str] = {}

    def _kind(self, e: Expr) -> str:
        """const: no variable in it; float: the same for both lanes; else half2."""
        if e not in self.uniform:
            leaves = [n for n in topological([e]) if n.op == "var"]
            known = all(n.value in self.scalars for n in leaves)
            self.uniform[e] = ("float" if leaves else "const") if known else "half2"
        return self.uniform[e]

    def _by_lanes(self, e: Expr) -> bool:
        """Whether half2 has no operation for this node, or one operand is a float."""
        if e.op in _HALF2_ARITHMETIC:
            return "float" in map(self._kind, e.args)
        # A choice reads its condition and branches lane by lane.
        return (
            e.op in (*_HALF2_COMPARISONS, "where", "select", "spike", "sigmoid")
            or _CALLS.get(e.op, ("", ""))[1] is None
        )

    def _count_uses(self, outputs: Any) -> None:
        if not self.prefix:
            return
        super()._count_uses(outputs)
        for e in topological(outputs):
            if self._by_lanes(e):  # its operands are written once for each lane
                for a in _difference(e.args[0]) if e.op == "spike" else e.args:
                    self.uses[a] = self.uses.get(a, 0) + 2
                if e.op == "spike":
                    self.uses[e.args[0]] -= 1

    def _text(self, e: Expr, precedence: int = 0) -> str:
        if e not in self.texts and e.op not in _HALF2_COMPARISONS and self._kind(e) != "half2":
            return f"__float2half2_rn({_FloatPrinter()._text(e)})"
        return super()._text(e, precedence)

    def _lane(self, e: Expr, lane: str) -> str:
        """One lane of a value, as a float."""
        if self._kind(e) != "half2":
            return _FloatPrinter()._text(e, 9)
        return f"__{lane}2float({self._text(e)})"

    def _half_lane(self, e: Expr, lane: str) -> str:
        if self._kind(e) != "half2":
            return f"__float2half_rn({_FloatPrinter()._text(e)})"
        return f"__{lane}2half({self._text(e)})"

    def _operation(self, e: Expr) -> tuple[str, int]:
        if e.op in ("where", "select", "spike"):
            return self._choice(e), 9
        if e.op == "sigmoid":
            return self._operation(1 / (1 + (-e.args[0]).exp()))
        if e.op == "neg":
            return f"__hneg2({self._text(e.args[0])})", 9
        if not self._by_lanes(e):
            name = _HALF2_ARITHMETIC.get(e.op) or _CALLS[e.op][1]
            return f"{name}({', '.join(self._text(a) for a in e.args)})", 9
        if e.op in _CALLS:
            lanes = [f"{_CALLS[e.op][0]}({', '.join(self._lane(a, lane) for a in e.args)})" for lane in _LANES]
        else:
            a, b = e.args
            lanes = [f"{self._lane(a, lane)} {e.op} {self._lane(b, lane)}" for lane in _LANES]
        return f"__floats2half2_rn({', '.join(lanes)})", 9

    def _choice(self, e: Expr) -> str:
        if e.op == "spike":
            condition, a, b = Expr(">=", *_difference(e.args[0])), lift(1), lift(0)
        elif e.op == "select":
            condition, a, b = Expr("!=", e.args[0], lift(0)), *e.args[1:]
        else:
            condition, a, b = e.args
        p, q = condition.args
        if a is lift(1) and b is lift(0) and "float" not in (self._kind(p), self._kind(q)):
            return f"{_HALF2_COMPARISONS[condition.op]}({self._text(p)}, {self._text(q)})"
        lanes = [
            f"{self._lane(p, lane)} {condition.op} {self._lane(q, lane)}"
            f" ? {self._half_lane(a, lane)} : {self._half_lane(b, lane)}"
            for lane in _LANES
        ]
        return f"__halves2half2({', '.join(lanes)})"


def check_dtype(dtype: str) -> None:
    """Raises ValueError unless dtype is 'float' or 'half2'.

    Example:
        >>> cfunction.check_dtype("double")
        Traceback (most recent call last):
            ...
        ValueError: dtype must be 'float' or 'half2', got 'double'
    """
    if dtype not in ("float", "half2"):
        raise ValueError(f"dtype must be 'float' or 'half2', got {dtype!r}")


def code(
    y: str | None,
    e: Expr,
    dtype: str,
    temporaries: str = "",
    scalars: Collection[str] = (),
    known: Mapping[Expr, str] | None = None,
) -> str:
    """The code that computes a traced expression: what every function of this module prints with.

    temporaries: the first part of the names of temporary variables; without it, or where y is None, there are none.
    scalars: in half2 code, the variables that are float. known: nodes that the code around has in variables.

    Example:
        >>> cfunction.code("y", cfunction.operand("a") * 2 + 1, "float")
        'y = a * 2.0f + 1.0f;'
    """
    check_dtype(dtype)
    for node in topological([e]):
        if node.op in FUNCTIONS and node.op not in (*_CALLS, "sigmoid"):
            raise ValueError(f"the equations use {node.op!r}, for which cfunction has no code: write it with where")
    prefix = f"{temporaries}__" if temporaries and y is not None else ""
    printer = _FloatPrinter(prefix) if dtype == "float" else _Half2Printer(prefix, scalars)
    printer.texts.update(known or {})
    text = printer.value(e)
    return " ".join([*printer.lines, wrap_return_codes(y, text)])


_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[fF]?")
_NAME = re.compile(r"[A-Za-z_]\w*")


def operand(x: str, name: str = "x") -> Expr:
    """Code of the caller as a node of the graph: in parentheses, unless it is a single name, element, call or number.

    Example:
        >>> cfunction.operand("a + b")
        (a + b)
    """
    if not isinstance(x, str) or not x.strip():
        raise TypeError(
            f"{name} must be code, a str, got {x!r}; a number becomes code with constant(None, {x!r}, dtype)"
        )
    x = x.strip()
    return var(x if _NUMBER.fullmatch(x) or _is_primary(x) else f"({x})")


def _is_primary(x: str) -> bool:
    """Whether code is a name, or balanced brackets, each perhaps followed by more brackets or members."""
    head = _NAME.match(x)
    at = head.end() if head else 0
    while at < len(x):
        if x[at] == "." and (member := _NAME.match(x, at + 1)):
            at = member.end()
            continue
        if x[at] not in ("([" if at else "("):
            return False
        depth = 1
        while depth:  # to the bracket that closes
            at += 1
            if at == len(x):
                return False
            depth += (x[at] in "([{") - (x[at] in ")]}")
        at += 1
    return at > 0


def wrap_return_codes(y: str | None, codes: str) -> str:
    """An expression as a statement that assigns it to y, or in parentheses where y is None.

    Example:
        >>> cfunction.wrap_return_codes("y", "a + b")
        'y = a + b;'
        >>> cfunction.wrap_return_codes(None, "a + b")
        '(a + b)'
    """
    return f"({codes})" if y is None else f"{y} = {codes};"


def _number(name: str, x: Any) -> float:
    """A number of Python, NumPy or a tensor, as one of Python."""
    value: float = x.item() if hasattr(x, "item") else x
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {x!r}")
    return value


def constant(y: str | None, x: float, dtype: str) -> str:
    """y = x, a number.

    Example:
        >>> cfunction.constant("y", 0.5, "float")
        'y = 0.5f;'
        >>> cfunction.constant("y", 0.5, "half2")
        'y = __float2half2_rn(0.5f);'
    """
    x = _number("x", x)
    literal = float_literal(x)  # also where it is not used: it says what is wrong with x
    return code(y, lift(x), dtype) if x >= 0 or dtype != "float" else wrap_return_codes(y, literal)


def float2half2(y: str | None, x: str) -> str:
    """y = x in both lanes: x is code for a float, y a half2.

    Example:
        >>> cfunction.float2half2("y", "alpha")
        'y = __float2half2_rn(alpha);'
    """
    return wrap_return_codes(y, f"__float2half2_rn({operand(x).value})")


# ---- arithmetic -------------------------------------------------------------------------------------------------------


def add(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = x + y

    Example:
        >>> cfunction.add("z", "x", "a - b", "float")
        'z = x + (a - b);'
        >>> cfunction.add("z", "x", "y", "half2")
        'z = __hadd2_rn(x, y);'
    """
    return code(z, operand(x) + operand(y, "y"), dtype)


def sub(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = x - y

    Example:
        >>> cfunction.sub("z", "x", "a - b", "float")
        'z = x - (a - b);'
    """
    return code(z, operand(x) - operand(y, "y"), dtype)


def mul(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = x * y

    Example:
        >>> cfunction.mul("z", "x", "a - b", "float")
        'z = x * (a - b);'
    """
    return code(z, operand(x) * operand(y, "y"), dtype)


def div(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = x / y

    Example:
        >>> cfunction.div("z", "x", "y", "half2")
        'z = __h2div(x, y);'
    """
    return code(z, operand(x) / operand(y, "y"), dtype)


def neg(y: str | None, x: str, dtype: str) -> str:
    """y = -x

    Example:
        >>> cfunction.neg("y", "x", "float")
        'y = -x;'
    """
    return code(y, -operand(x), dtype)


def abs(y: str | None, x: str, dtype: str) -> str:
    """y = ``|x|``

    Example:
        >>> cfunction.abs("y", "x", "float")
        'y = fabsf(x);'
    """
    return code(y, operand(x).abs(), dtype)


def exp(y: str | None, x: str, dtype: str) -> str:
    """y = e^x

    Example:
        >>> cfunction.exp("y", "-x", "float")
        'y = expf((-x));'
    """
    return code(y, operand(x).exp(), dtype)


def power(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = x^y. In half2 it is computed in float, since the logarithm of a half would lose the digits.

    Example:
        >>> cfunction.power("z", "x", "2.0f", "float")
        'z = powf(x, 2.0f);'
    """
    return code(z, Expr("pow", operand(x), operand(y, "y")), dtype)


def minimal(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = min(x, y); of a NaN and a number, the number

    Example:
        >>> cfunction.minimal("z", "x", "y", "float")
        'z = fminf(x, y);'
    """
    return code(z, Expr("min", operand(x), operand(y, "y")), dtype)


def maximum(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = max(x, y); of a NaN and a number, the number

    Example:
        >>> cfunction.maximum("z", "x", "0.0f", "float")
        'z = fmaxf(x, 0.0f);'
    """
    return code(z, Expr("max", operand(x), operand(y, "y")), dtype)


# ---- masks ------------------------------------------------------------------------------------------------------------


def _mask(condition: Expr) -> Expr:
    mask: Expr = where(condition, lift(1), lift(0))
    return mask


def _choose(mask: Expr, x: Expr, y: Expr) -> Expr:
    return x * mask + y * (1 - mask)


def greater_equal(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = 1 where x >= y, else 0

    Example:
        >>> cfunction.greater_equal("z", "x", "y", "float")
        'z = (x >= y) ? 1.0f : 0.0f;'
    """
    return code(z, _mask(operand(x) >= operand(y, "y")), dtype)


def greater_than(z: str | None, x: str, y: str, dtype: str) -> str:
    """z = 1 where x > y, else 0

    Example:
        >>> cfunction.greater_than("z", "x", "y", "half2")
        'z = __hgt2(x, y);'
    """
    return code(z, _mask(operand(x) > operand(y, "y")), dtype)


def heaviside(y: str | None, x: str, dtype: str) -> str:
    """y = 1 where x >= 0, else 0

    Example:
        >>> cfunction.heaviside("y", "x", "float")
        'y = (x >= 0.0f) ? 1.0f : 0.0f;'
    """
    return code(y, _mask(operand(x) >= lift(0)), dtype)


def if_else(z: str | None, x: str, y: str, mask: str, dtype: str) -> str:
    """z = x where the mask is 1, y where it is 0. This is arithmetic: what is not chosen must be finite.

    Example:
        >>> cfunction.if_else("z", "x", "y", "mask", "float")
        'z = x * mask + y * (1.0f - mask);'
    """
    return code(z, _choose(operand(mask, "mask"), operand(x), operand(y, "y")), dtype)


def if_else_else(w: str | None, x: str, y: str, z: str, mask_x: str, mask_y: str, dtype: str) -> str:
    """w = x where mask_x is 1, else y where mask_y is 1, else z. This is arithmetic: what is not chosen must be finite.

    Example:
        >>> cfunction.if_else_else("w", "x", "y", "z", "mask_x", "mask_y", "float")
        'w = x * mask_x + (y * mask_y + z * (1.0f - mask_y)) * (1.0f - mask_x);'
    """
    otherwise = _choose(operand(mask_y, "mask_y"), operand(y, "y"), operand(z, "z"))
    return code(w, _choose(operand(mask_x, "mask_x"), operand(x), otherwise), dtype)


# ---- surrogates -------------------------------------------------------------------------------------------------------


def sigmoid(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = 1 / (1 + e^(-alpha x))

    Example:
        >>> cfunction.sigmoid("y", "x", 4.0, "float")
        'y = 1.0f / (1.0f + expf(-(4.0f) * x));'
    """
    return code(y, _logistic(operand(x), _number("alpha", alpha), dtype), dtype)


def _logistic(x: Expr, alpha: float, dtype: str) -> Expr:
    return 1 / (1 + (-var(constant(None, alpha, dtype)) * x).exp())


def sigmoid_backward(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = alpha s (1 - s), s = sigmoid(alpha x)

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.sigmoid_backward("y", "x", 4.0, "float"))
        >>> print(typer.codes.strip())
        const float sigmoid_backward__sigmoid_ax = 1.0f / (1.0f + expf(-(4.0f) * x));
        y = (1.0f - sigmoid_backward__sigmoid_ax) * sigmoid_backward__sigmoid_ax * (4.0f);
    """
    _check_range(surrogates.Sigmoid, {"alpha": alpha})
    if y is None:
        first, s = "", _logistic(operand(x), alpha, dtype)
    else:
        name = "sigmoid_backward__sigmoid_ax"
        first, s = sigmoid(f"const {dtype} {name}", x, alpha, dtype) + " ", var(name)
    return first + code(y, (1 - s) * s * var(constant(None, alpha, dtype)), dtype)


def _check_range(surrogate: type[surrogates.Surrogate], values: Mapping[str, float]) -> None:
    names = [p.name for p in surrogate.parameters]
    if sorted(values) != sorted(names):
        raise TypeError(f"{surrogate.name}_backward takes {names}, got {list(values)}")
    for p in surrogate.parameters:
        if not p.range.holds(_number(p.name, values[p.name])):
            raise ValueError(f"{surrogate.name}_backward: {p.name} must be {p.range}, got {values[p.name]!r}")


def surrogate_backward(
    surrogate: type[surrogates.Surrogate], y: str | None, x: str, dtype: str, **parameters: float
) -> str:
    """y = the gradient of any surrogate of `surrogates` at x, from its equation there.

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.surrogate_backward(snnkern.surrogate.ATan.equations, "y", "x", "float", alpha=2.0))
        >>> print(typer.codes.strip())
        const float atan_backward__t0 = 1.5707964f * 2.0f * x;
        y = 2.0f * 0.5f / (1.0f + atan_backward__t0 * atan_backward__t0);
    """
    _check_range(surrogate, parameters)
    # A number of terms stays a number: the sum is written out.
    values = {
        p.name: int(v) if p.range.integer else lift(v) for p in surrogate.parameters for v in [parameters[p.name]]
    }
    gradient = lift(surrogate.gradient(operand(x), SimpleNamespace(**values)))
    return code(y, gradient, dtype, f"{surrogate.name}_backward")


def atan_backward(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = (alpha/2) / (1 + (pi/2 alpha x)^2)

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.atan_backward("y", "x", 2.0, "float"))
        >>> print(typer.codes.strip())
        const float atan_backward__t0 = 1.5707964f * 2.0f * x;
        y = 2.0f * 0.5f / (1.0f + atan_backward__t0 * atan_backward__t0);
    """
    return surrogate_backward(surrogates.ATan, y, x, dtype, alpha=alpha)


def piecewise_leaky_relu_backward(y: str | None, x: str, w: float, c: float, dtype: str) -> str:
    """y = 1/w for ``|x| <= w``, else c: twice as high as snnkern.surrogate.PiecewiseLeakyReLU, as it has always been here

    Example:
        >>> cfunction.piecewise_leaky_relu_backward("y", "x", 1.0, 0.01, "float")
        'y = (fabsf(x) <= 1.0f) ? 1.0f : 0.01f;'
    """
    _check_range(surrogates.PiecewiseLeakyReLU, {"w": w, "c": c})
    gradient: Expr = where(operand(x).abs() <= lift(w), 1 / lift(w), lift(c))
    return code(y, gradient, dtype, "piecewise_leaky_relu_backward")


def s2nn_backward(y: str | None, x: str, alpha: float, beta: float, dtype: str) -> str:
    """y = alpha s (1 - s), s = sigmoid(alpha x), for x < 0, else beta / (x + 1)

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.s2nn_backward("y", "x", 4.0, 1.0, "float"))
        >>> print(typer.codes.strip())
        const float s2nn_backward__t0 = expf(-fabsf(4.0f * x));
        const float s2nn_backward__t1 = 1.0f + s2nn_backward__t0;
        const float s2nn_backward__t2 = s2nn_backward__t0 / (s2nn_backward__t1 * s2nn_backward__t1) * 4.0f;
        const float s2nn_backward__t3 = 1.0f / (fabsf(x) + 1.0f);
        y = (x < 0.0f) ? s2nn_backward__t2 : s2nn_backward__t3;
    """
    return surrogate_backward(surrogates.S2NN, y, x, dtype, alpha=alpha, beta=beta)


def q_pseudo_spike_backward(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = ``(1 + 2|x| / (alpha - 1))^-alpha``

    Example:
        >>> cfunction.q_pseudo_spike_backward("y", "x", 2.0, "float")
        'y = expf(logf(1.0f + 2.0f * fabsf(x) / (2.0f - 1.0f)) * (-2.0f));'
    """
    return surrogate_backward(surrogates.QPseudoSpike, y, x, dtype, alpha=alpha)


def leaky_k_relu_backward(y: str | None, x: str, leak: float, k: float, dtype: str) -> str:
    """y = k for x >= 0, else leak

    Example:
        >>> cfunction.leaky_k_relu_backward("y", "x", 0.0, 1.0, "float")
        'y = (x >= 0.0f) ? 1.0f : 0.0f;'
    """
    return surrogate_backward(surrogates.LeakyKReLU, y, x, dtype, leak=leak, k=k)


def fake_numerical_gradient_backward(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = min((2 H(x) - 1) / x, alpha), alpha at 0

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.fake_numerical_gradient_backward("y", "x", 0.3, "float"))
        >>> print(typer.codes.strip())
        const float fake_numerical_gradient_backward__t0 = 1.0f / fabsf(x);
        y = (fake_numerical_gradient_backward__t0 > 0.3f) ? 0.3f : fake_numerical_gradient_backward__t0;
    """
    return surrogate_backward(surrogates.FakeNumericalGradient, y, x, dtype, alpha=alpha)


def log_tailed_relu_backward(y: str | None, x: str, alpha: float, dtype: str) -> str:
    """y = alpha for x <= 0, 1 for x <= 1, else 1/x

    Example:
        >>> typer = base.CodeTyper(0)
        >>> typer.append(cfunction.log_tailed_relu_backward("y", "x", 0.0, "float"))
        >>> print(typer.codes.strip())
        const float log_tailed_relu_backward__t0 = 1.0f / x;
        const float log_tailed_relu_backward__t1 = (x <= 1.0f) ? 1.0f : log_tailed_relu_backward__t0;
        y = (x <= 0.0f) ? 0.0f : log_tailed_relu_backward__t1;
    """
    return surrogate_backward(surrogates.LogTailedReLU, y, x, dtype, alpha=alpha)
