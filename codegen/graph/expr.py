"""Symbols: traced expressions, reverse-mode differentiation, printing as C++.

An equation is a Python function of values. Called with `Expr` it records a graph; called with torch tensors it computes.
To serve both, an equation uses operators, comparisons, the tensor methods listed in `METHODS`, and the functions of this
module: `where`, `maximum`, `minimum`, `clamp`, `softplus`, `straight_through` and `series`.

Two rules keep every device and the reference equal to the bit: a printed expression is evaluated in the order in which
it was written, and only exact rewrites are made (0 + x, 1 * x, x - 0, one node for equal subexpressions).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Union

Value = Union["Expr", float, int]

COMPARISONS = ("<", "<=", ">", ">=")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}


class Expr:
    """A node of a traced graph. Equal nodes are one object, so identity is equality of structure."""

    __slots__ = ("args", "op", "value")
    __array_ufunc__ = None  # a number of NumPy leaves the operation to the Expr
    _nodes: ClassVar[dict[tuple[Any, ...], Expr]] = {}
    op: str
    args: tuple[Expr, ...]
    value: Any  # the number of a const, the text of a var or a flag

    def __new__(cls, op: str, *args: Expr, value: Any = None) -> Expr:
        key = (op, args, repr(value))
        node = cls._nodes.get(key)
        if node is None:
            node = super().__new__(cls)
            node.op, node.args, node.value = op, args, value
            cls._nodes[key] = node
        return node

    def __add__(self, other: Value) -> Expr:
        return add(self, lift(other))

    def __radd__(self, other: Value) -> Expr:
        return add(lift(other), self)

    def __sub__(self, other: Value) -> Expr:
        return sub(self, lift(other))

    def __rsub__(self, other: Value) -> Expr:
        return sub(lift(other), self)

    def __mul__(self, other: Value) -> Expr:
        return mul(self, lift(other))

    def __rmul__(self, other: Value) -> Expr:
        return mul(lift(other), self)

    def __truediv__(self, other: Value) -> Expr:
        return div(self, lift(other))

    def __rtruediv__(self, other: Value) -> Expr:
        return div(lift(other), self)

    def __neg__(self) -> Expr:
        return neg(self)

    def __lt__(self, other: Value) -> Expr:
        return Expr("<", self, lift(other))

    def __le__(self, other: Value) -> Expr:
        return Expr("<=", self, lift(other))

    def __gt__(self, other: Value) -> Expr:
        return Expr(">", self, lift(other))

    def __ge__(self, other: Value) -> Expr:
        return Expr(">=", self, lift(other))

    def __pow__(self, exponent: float) -> Expr:
        return power(self, exponent)

    def __rpow__(self, base: float) -> Expr:
        raise TypeError(f"a power takes a number as its exponent: write (a * log({base})).exp() for {base} ** a")

    def __abs__(self) -> Expr:
        return Expr("abs", self)

    # Nodes are compared by `is` alone, and found in dicts and sets by identity, before Python asks for equality.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        raise TypeError(
            "an equation cannot ask whether a traced value equals another: rounded numbers seldom do; use <= or >= with "
            "where(condition, a, b)"
        )

    __ne__ = __eq__

    def __bool__(self) -> bool:
        raise TypeError("an equation cannot branch in Python on a traced value: use where(condition, a, b)")

    def detach(self) -> Expr:
        """The value without its gradient, as torch.Tensor.detach."""
        return Expr("detach", self)

    def __getattr__(self, name: str) -> Callable[[], Expr]:
        if name in METHODS:
            return lambda: Expr(name, self)
        raise AttributeError(
            f"an equation uses the method {name!r}, which the generator does not know; it knows the methods "
            f"{', '.join(METHODS)}, the power a ** c, and the functions {', '.join(WORDS)}"
        )

    def __repr__(self) -> str:
        if self.op in ("const", "var", "flag"):
            return str(self.value)
        return f"{self.op}({', '.join(map(repr, self.args))})"


def lift(value: Value) -> Expr:
    """A number as a constant; an Expr as it is."""
    if isinstance(value, Expr):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"an equation takes numbers and traced values, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"a number in an equation must be finite, got {value!r}")
    return Expr("const", value=number)


def var(text: str) -> Expr:
    """A number that C++ code calls `text`."""
    return Expr("var", value=text)


def flag(text: str) -> Expr:
    """A run-time switch, the same for all neurons of a launch, that C++ code calls `text`."""
    return Expr("flag", value=text)


def _is(e: Expr, number: float) -> bool:
    return e.op == "const" and e.value == number


def add(a: Expr, b: Expr) -> Expr:
    if _is(a, 0):
        return b
    if _is(b, 0):
        return a
    if a.op == b.op and a.op in ("where", "select") and a.args[0] is b.args[0]:  # one of the two terms is 0
        condition, (x, y), (z, w) = a.args[0], a.args[1:], b.args[1:]
        if _is(x, 0) and _is(w, 0):
            return Expr(a.op, condition, z, y)
        if _is(y, 0) and _is(z, 0):
            return Expr(a.op, condition, x, w)
    return Expr("-", a, b.args[0]) if b.op == "neg" else Expr("+", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    if _is(b, 0):
        return a
    return neg(b) if _is(a, 0) else Expr("-", a, b)


def neg(a: Expr) -> Expr:
    if a.op == "const":
        return lift(-a.value if a.value else 0.0)
    return a.args[0] if a.op == "neg" else Expr("neg", a)


def mul(a: Expr, b: Expr) -> Expr:
    if _is(a, 0) or _is(b, 0):
        return lift(0)
    if _is(a, 1):
        return b
    return a if _is(b, 1) else Expr("*", a, b)


def div(a: Expr, b: Expr) -> Expr:
    if _is(a, 0):
        return lift(0)
    return a if _is(b, 1) else Expr("/", a, b)


def power(a: Expr, exponent: float) -> Expr:
    """a ** exponent. Those that PyTorch works out as products, quotients and roots are the same here, to the bit."""
    if isinstance(exponent, Expr):
        raise TypeError("a power takes a number as its exponent: write (a.log() * b).exp() for a ** b")
    c = lift(exponent).value
    if c in (0.0, 1.0):
        return a if c else lift(1)
    if c in (2.0, 3.0):
        return a * a if c == 2 else a * a * a
    if c == -1:
        return 1 / a
    return a.sqrt() if c == 0.5 else Expr("power", a, lift(c))


def spike(u: Expr) -> Expr:
    """1 where u >= 0, else 0. Its derivative is the surrogate gradient at u."""
    return Expr("spike", u)


def primitive(u: Expr) -> Expr:
    """The surrogate's smooth primitive at u. Its derivative is the surrogate gradient at u."""
    return Expr("primitive", u)


def select(s: Expr, a: Value, b: Value) -> Expr:
    """a where the spike s is 1, else b: a choice, not arithmetic. Its derivative in s is a - b, as of s * a + (1 - s) * b."""
    a, b = lift(a), lift(b)
    return a if a is b else Expr("select", s, a, b)


def straight_through(value: Any, carrier: Any) -> Any:
    """The value with the gradient of the carrier, for a value that the carrier was rounded to."""
    if isinstance(value, Expr):
        return Expr("straight_through", value, carrier)
    return (
        carrier + (value - carrier).detach()
    )  # the value itself: the difference of a number and its rounding is exact


@functools.singledispatch
def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b. A torch condition is served by the implementation that snnkern.reference registers."""
    raise TypeError(f"where: no implementation for a condition of type {type(condition).__name__}")


@where.register
def _(condition: bool, a: Any, b: Any) -> Any:
    return a if condition else b


@where.register
def _(condition: Expr, a: Value, b: Value) -> Expr:
    a, b = lift(a), lift(b)
    return a if a is b else Expr("where", condition, a, b)


@functools.singledispatch
def call(kind: Any, name: str, *args: Any) -> Any:
    """A function of FUNCTIONS, for arguments of this kind. torch tensors are served by what snnkern.reference registers."""
    raise TypeError(f"{name}: no implementation for an argument of type {type(kind).__name__}")


@call.register
def _(kind: Expr, name: str, *args: Value) -> Expr:
    return Expr(name, *map(lift, args))


@call.register(int)
@call.register(float)
def _(kind: float, name: str, *args: float) -> float:
    return float(NUMBERS[name](*args))


def _call(name: str, *args: Any) -> Any:
    return call(next((a for a in args if not isinstance(a, (int, float))), 0.0), name, *args)


def maximum(a: Any, b: Any) -> Any:
    """The larger one; NaN if one is. Equal ones get half of the gradient each."""
    return _call("maximum", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one; NaN if one is. Equal ones get half of the gradient each."""
    return _call("minimum", a, b)


def clamp(a: Any, low: Any, high: Any) -> Any:
    """a within its bounds, where the gradient is that of a; beyond them it is the bound's."""
    return _call("clamp", a, low, high)


def softplus(a: Any) -> Any:
    """log(1 + e^a); a itself above 20."""
    return _call("softplus", a)


def series(n: Any, term: Callable[[Any], Any]) -> Any:
    """The sum of term(i) for i = 1 .. n - 1. n may be a run-time parameter: the printed code holds a loop."""
    if not isinstance(n, Expr):
        total = term(1.0)
        for i in range(2, int(n)):
            total = total + term(float(i))
        return total
    return Expr("series", n, lift(term(INDEX)))


INDEX = var("R(i)")  # of a term of a series


# What equations may call, each with the gradients in its arguments, given the gradient d of the node e = f(a, ...). They are
# those of PyTorch, also where a derivative does not exist.
FUNCTIONS: dict[str, Callable[..., tuple[Value, ...]]] = {
    "exp": lambda d, e, a: (d * e,),
    "log": lambda d, e, a: (d / a,),
    "sigmoid": lambda d, e, a: (d * e * (1 - e),),
    "tanh": lambda d, e, a: (d * (1 - e * e),),
    "sqrt": lambda d, e, a: (d / (2 * e),),
    "sin": lambda d, e, a: (d * a.cos(),),
    "cos": lambda d, e, a: (-(d * a.sin()),),
    "atan": lambda d, e, a: (d / (1 + a * a),),
    "abs": lambda d, e, a: (where(a < 0, -d, where(a <= 0, 0.0, d)),),
    "relu": lambda d, e, a: (where(a <= 0, 0.0, d),),
    "floor": lambda d, e, a: (0.0,),
    "round": lambda d, e, a: (0.0,),  # half to even
    "erfc": lambda d, e, a: (d * ((-(a * a)).exp() * -1.1283791670955126),),  # -2 / sqrt(pi)
    "softplus": lambda d, e, a: (where(a > SOFTPLUS_LINEAR, d, d * a.sigmoid()),),
    "power": lambda d, e, a, c: (d * (c * a ** (c.value - 1)), 0.0),  # c is a constant
    # Equal arguments share the gradient.
    "maximum": lambda d, e, a, b: (
        where(a < b, 0.0, where(a <= b, d * 0.5, d)),
        where(a > b, 0.0, where(a >= b, d * 0.5, d)),
    ),
    "minimum": lambda d, e, a, b: (
        where(a > b, 0.0, where(a >= b, d * 0.5, d)),
        where(a < b, 0.0, where(a <= b, d * 0.5, d)),
    ),
    "clamp": lambda d, e, a, low, high: (
        where(a >= low, where(a <= high, d, 0.0), 0.0),
        where(a < low, where(low < high, d, 0.0), 0.0),
        where(a > high, d, where(high < low, d, 0.0)),
    ),
}

METHODS = tuple(f for f in FUNCTIONS if f not in ("softplus", "power", "maximum", "minimum", "clamp"))
"""Those that are methods of an Expr, as of torch.Tensor; a power is written a ** c."""

EXACT = ("abs", "floor", "maximum", "minimum", "clamp", "relu", "round")
"""Those that give the same bits everywhere; libraries differ in the last bits of the others. Our sqrt is correctly rounded, as
on every device, but in float64 PyTorch's is not always."""

WORDS = ("where", "maximum", "minimum", "clamp", "softplus", "straight_through", "series")
"""The functions of this module that equations may call."""

SOFTPLUS_LINEAR = 20.0  # above this softplus(a) is a, as in PyTorch
PRODUCTS = 8  # powers with whole exponents up to this are products


def topological(outputs: Iterable[Expr]) -> list[Expr]:
    """Every node that the outputs need, arguments before users, in a fixed order."""
    order: dict[Expr, None] = {}

    def visit(e: Expr) -> None:
        if e not in order:
            for a in e.args:
                visit(a)
            order[e] = None

    for e in outputs:
        visit(e)
    return list(order)


def backward(incoming: Sequence[tuple[Expr, Expr]], inputs: Sequence[Expr]) -> list[Expr]:
    """Reverse mode: the gradient in each of `inputs`, given (output, gradient that comes into it)."""
    grads: dict[Expr, Expr] = {}

    def give(e: Expr, d: Value) -> None:
        grads[e] = grads[e] + d if e in grads else lift(d)

    for e, d in incoming:
        give(e, d)
    for e in reversed(topological([e for e, _ in incoming])):
        d = grads.get(e, lift(0))
        if _is(d, 0):
            continue
        if e.op == "+":
            give(e.args[0], d)
            give(e.args[1], d)
        elif e.op == "-":
            give(e.args[0], d)
            give(e.args[1], -d)
        elif e.op == "neg":
            give(e.args[0], -d)
        elif e.op == "*":
            give(e.args[0], d * e.args[1])
            give(e.args[1], d * e.args[0])
        elif e.op == "/":
            give(e.args[0], d / e.args[1])
            give(e.args[1], -(d * e / e.args[1]))
        elif e.op in ("where", "select"):
            choose = where if e.op == "where" else select
            condition, a, b = e.args
            if e.op == "select":
                give(condition, d * (a - b))
            give(a, choose(condition, d, 0))
            give(b, choose(condition, 0, d))
        elif e.op == "straight_through":
            give(e.args[1], d)
        elif e.op in ("spike", "primitive"):
            give(e.args[0], d * Expr("gradient", e.args[0]))
        elif e.op in FUNCTIONS:
            for a, gradient in zip(e.args, FUNCTIONS[e.op](d, e, *e.args), strict=True):
                give(a, gradient)
        elif e.op not in ("const", "var", "detach"):
            raise TypeError(f"the generator cannot differentiate {e.op!r}")
    return [grads.get(e, lift(0)) for e in inputs]


def smallest_cut(outputs: Sequence[Expr], sources: Sequence[Expr], incoming: Sequence[Expr]) -> list[Expr]:
    """The fewest values of the forward pass that replace its `sources` in computing the gradients `outputs`.

    The forward pass is what depends on the sources and not on the `incoming` gradients. Of equally small cuts this is the
    one nearest to the outputs, which leaves least to compute again. Comparisons are no numbers and are never cut.
    """
    order = topological(outputs)
    entries = set(sources)
    forward, back = set(sources), set(incoming)
    for e in order:
        if any(a in back for a in e.args):
            back.add(e)
        elif any(a in forward for a in e.args):
            forward.add(e)
    # The largest flow from the sources to what the gradients need, through a pipe of width 1 for each value, is as wide as
    # the smallest cut (Ford and Fulkerson). `left` is what more may flow from one end of a pipe to another.
    values = [*sources, *(e for e in order if e in forward and e not in entries)]
    number = {e: i for i, e in enumerate(values)}
    left: dict[Any, dict[Any, float]] = {}

    def pipe(a: Any, b: Any, width: float = math.inf) -> None:
        left.setdefault(a, {})[b] = width
        left.setdefault(b, {}).setdefault(a, 0)

    for e in values:
        pipe(("in", number[e]), ("out", number[e]), math.inf if e.op in COMPARISONS else 1)
        for a in ["start"] if e in entries else [("out", number[a]) for a in e.args if a in forward]:
            pipe(a, ("in", number[e]))
    wanted = {a: None for e in order if e in back for a in e.args if a in forward} | dict.fromkeys(outputs)
    for e in wanted:
        if e in forward:
            pipe(("out", number[e]), "end")

    while "end" in (path := _search("start", lambda a: (b for b, width in left.get(a, {}).items() if width > 0))):
        end: Any = "end"
        while end != "start":
            before = path[end]
            left[before][end] -= 1
            left[end][before] += 1
            end = before
    # From behind the cut that is nearest to the end, the end can still be reached.
    behind = _search("end", lambda b: (a for a in left.get(b, ()) if left[a][b] > 0))
    return [e for e in order if e in forward and ("out", number[e]) in behind and ("in", number[e]) not in behind]


def _search(start: Any, neighbours: Callable[[Any], Iterable[Any]]) -> dict[Any, Any]:
    """All that can be reached, the nearest first, each with where it was reached from."""
    reached: dict[Any, Any] = {start: None}
    queue = [start]
    for place in queue:
        for other in neighbours(place):
            if other not in reached:
                reached[other] = place
                queue.append(other)
    return reached


def value(outputs: Sequence[Expr], known: Mapping[Expr, Expr] | None = None) -> list[Expr]:
    """The values alone, without a detach, once the gradients have been taken; and with `known` nodes replaced."""
    done = dict(known or {})
    return [_value(e, done) for e in outputs]


def _value(e: Expr, done: dict[Expr, Expr]) -> Expr:
    """The value alone: what remains after the gradient has been taken."""
    if e not in done:
        args = [_value(a, done) for a in e.args]
        if e.op in ("detach", "straight_through"):
            done[e] = args[0]
        elif e.op in ("where", "select"):  # the two branches may have become one
            done[e] = args[1] if args[1] is args[2] else Expr(e.op, *args)
        else:
            done[e] = Expr(e.op, *args, value=e.value)
    return done[e]


def _divide(a: float, b: float) -> float:
    """As IEEE has it: the branch that a choice leaves aside may divide by 0."""
    if b:
        return a / b
    return math.nan if not a or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


# What each operation computes of numbers.
NUMBERS: dict[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divide, "neg": operator.neg,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "where": lambda condition, a, b: a if condition else b,
    "select": lambda s, a, b: a if s != 0 else b,
    "detach": lambda a: a,
    "straight_through": lambda a, carrier: a,
    "spike": lambda u: 1.0 if u >= 0 else 0.0,
    "exp": math.exp, "log": math.log, "sigmoid": lambda a: 1 / (1 + math.exp(-a)), "tanh": math.tanh, "sqrt": math.sqrt,
    "sin": math.sin, "cos": math.cos, "atan": math.atan, "abs": abs, "relu": lambda a: 0.0 if a <= 0 else a,
    "floor": math.floor, "round": round, "erfc": math.erfc, "power": math.pow,
    "softplus": lambda a: a if a > SOFTPLUS_LINEAR else math.log1p(math.exp(a)),
    "maximum": lambda a, b: a if a > b or math.isnan(a) else b,
    "minimum": lambda a, b: a if a < b or math.isnan(a) else b,
    "clamp": lambda a, low, high: NUMBERS["minimum"](NUMBERS["maximum"](a, low), high),
}  # fmt: skip


class Printer:
    """Prints expressions as C++ statements over a type R. A node that is used twice, or has a name, becomes a variable.

    With `quotient`, the name of a C++ function of two arguments, that function divides. Dialects for one type are
    subclasses: see cfunction.
    """

    real = "R"  # the type of a variable
    prefix = ""  # of the names of variables
    _zero = "R(0)"

    def __init__(self, names: dict[Expr, str] | None = None, indent: str = "    ", quotient: str = "") -> None:
        self.done: dict[Expr, Expr] = {}
        self.names = {_value(e, self.done): name for e, name in (names or {}).items()}
        self.texts: dict[Expr, str] = {}
        self.lines: list[str] = []
        self.indent = indent
        self.quotient = quotient
        self.count = 0
        self.uses: dict[Expr, int] = {}
        self.questions: dict[Expr, int] = {}  # where the surrogate is asked, and the number of that place

    def print(self, targets: Sequence[tuple[str, Expr]]) -> list[str]:
        """Statements that assign each expression to its text, e.g. ('state[0] =', e). All are computed before any is assigned."""
        values = [(text, _value(e, self.done)) for text, e in targets]
        self._count_uses([e for _, e in values])
        assigned = [f"{self.indent}{text} {self._text(e)};" for text, e in values]
        return self.lines + assigned

    def value(self, e: Expr) -> str:
        """The text of one expression; the variables that it needs are declared in `lines`."""
        e = _value(e, self.done)
        self._count_uses([e])
        return self._text(e)

    def _count_uses(self, outputs: Sequence[Expr]) -> None:
        for e in topological(outputs):
            # The arguments of a series, and the branches of a choice, are variables: the first to stay out of the loop,
            # the second so that a compiler can turn the choice into a blend.
            weight = 2 if e.op in ("series", "where", "select") else 1
            for a in e.args:
                self.uses[a] = self.uses.get(a, 0) + weight
        for e in outputs:
            self.uses[e] = self.uses.get(e, 0) + 1

    def _text(self, e: Expr, precedence: int = 0) -> str:
        if e.op == "const":
            return self._constant(e.value)
        if e.op in ("var", "flag"):
            return str(e.value)
        if e in self.texts:
            return self.texts[e]
        if e.op == "series":
            return self._series(e)
        text, own = self._operation(e)
        if e.op in COMPARISONS:
            return f"({text})" if precedence else text
        if self.uses.get(e, 0) > 1 or e in self.names:
            return self._variable(e, text)
        return f"({text})" if own < precedence else text

    def _constant(self, value: float) -> str:
        return f"R({value!r})"

    def _function(self, op: str) -> str:
        """What a function of the graph is called in C++."""
        return op if op == "spike" else f"math::{op}"

    def _question(self, e: Expr) -> str:
        """The surrogate's gradient or primitive. A step that asks at several places numbers them, see multistep_cpu.h."""
        argument = self._text(e.args[0])  # first: it may hold a question itself
        number = self.questions.setdefault(e.args[0], len(self.questions))
        surrogate = f"question<{number}>(surrogate)" if number else "surrogate"
        return f"{surrogate}.{e.op}({argument})"

    def _variable(self, e: Expr, text: str) -> str:
        name = self.names.get(e)
        if name is None:
            name, self.count = f"{self.prefix}t{self.count}", self.count + 1
        self.lines.append(f"{self.indent}const {self.real} {name} = {text};")
        self.texts[e] = name
        return name

    def _operation(self, e: Expr) -> tuple[str, int]:
        if e.op == "/" and self.quotient:
            return f"{self.quotient}({', '.join(self._text(a) for a in e.args)})", 9
        if e.op in ("+", "-", "*", "/"):
            own = _PRECEDENCE[e.op]
            return f"{self._text(e.args[0], own)} {e.op} {self._text(e.args[1], own + 1)}", own
        if e.op in COMPARISONS:
            return f"{self._text(e.args[0], 1)} {e.op} {self._text(e.args[1], 1)}", 0
        if e.op == "neg":
            return f"-{self._text(e.args[0], _PRECEDENCE['neg'])}", _PRECEDENCE["neg"]
        if e.op in ("where", "select"):
            condition, a, b = (self._text(x, 1) for x in e.args)
            if e.args[0].op == "flag":
                return f"choose({condition}, {a}, {b})", 9
            test = condition if e.op == "where" else f"{condition} != {self._zero}"
            return f"{test} ? {a} : {b}", 0
        if e.op in ("gradient", "primitive"):
            return self._question(e), 9
        if e.op == "power":
            a, c = self._text(e.args[0]), e.args[1].value
            whole = c.is_integer() and abs(c) <= PRODUCTS
            return f"math::power<{c:.0f}>({a})" if whole else f"math::pow({a}, {self._constant(c)})", 9
        return f"{self._function(e.op)}({', '.join(self._text(a) for a in e.args)})", 9

    def _series(self, e: Expr) -> str:
        n, term = e.args
        inner = Printer(indent=self.indent + "  ", quotient=self.quotient)
        inner.count = 100 + self.count  # names of the loop body do not shadow those outside
        moving: dict[Expr, None] = {}  # what changes from term to term; the rest is computed before the loop
        for node in topological([term]):
            if node is INDEX or any(a in moving for a in node.args):
                moving[node] = None
        for node in moving:
            for a in node.args:
                if a not in moving and a.op not in ("const", "var", "flag"):
                    self.uses[a] = 2
                    inner.texts[a] = self._text(a)
        name, self.count = f"t{self.count}", self.count + 1
        self.lines.append(f"{self.indent}R {name} = R(0);")
        self.lines.append(f"{self.indent}SNNKERN_ROLLED")
        self.lines.append(f"{self.indent}for (int i = 1; i < {self._text(n)}; ++i) {{")
        self.lines += inner.print([(f"{name} +=", term)])
        self.lines.append(f"{self.indent}}}")
        self.texts[e] = name
        return name
