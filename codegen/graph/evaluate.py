"""Graphs of constants as numbers, in double precision: what the examples in the docs show, without torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

from .expr import Expr, topological, value


def _divide(a: float, b: float) -> float:
    """As IEEE has it: the branch that a choice leaves aside may divide by 0."""
    if b:
        return a / b
    return math.nan if not a or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


# Functions of the graph that are not called so in the module math.
_OPERATIONS: dict[str, Callable[..., float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "neg": operator.neg,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "abs": abs,
    "round": round,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "spike": lambda u: float(u >= 0),
    "where": lambda condition, a, b: a if condition else b,
    "select": lambda s, a, b: a if s else b,
}


def evaluate(outputs: Sequence[Expr]) -> list[float]:
    """The numbers that these graphs stand for; none of them may hold a variable."""
    values = value(outputs)
    done: dict[Expr, float] = {}
    for e in topological(values):
        operation = _OPERATIONS.get(e.op) or getattr(math, e.op, None)
        if e.op == "const":
            done[e] = e.value
        elif operation is None:
            raise TypeError(f"the generator cannot compute {e.op!r} of {e!r}: name it in codegen/graph/evaluate.py")
        else:
            done[e] = operation(*(done[a] for a in e.args))
    return [done[e] for e in values]
