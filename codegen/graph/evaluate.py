"""Graphs as numbers, in double precision and without torch: what examples in the docs show, and what a check compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .expr import INDEX, NUMBERS, Expr, topological

Function = Callable[[float], float]


def evaluate(
    outputs: Sequence[Expr],
    scope: Mapping[str, float] | None = None,
    gradient: Function | None = None,
    primitive: Function | None = None,
) -> list[float]:
    """The numbers that these graphs stand for: of the variables in `scope`, with a surrogate's gradient and primitive."""
    given = dict(scope or {})
    done: dict[Expr, float] = {}
    for e in topological(outputs):
        operation = {"gradient": gradient, "primitive": primitive}.get(e.op) or NUMBERS.get(e.op)
        if e.op == "const":
            done[e] = e.value
        elif e is INDEX:
            done[e] = given.get(e.value, math.nan)  # of the series around it, which asks for the term again
        elif e.op in ("var", "flag"):
            done[e] = given[e.value]
        elif e.op == "series":
            n, term = e.args
            terms = (
                evaluate([term], {**given, INDEX.value: float(i)}, gradient, primitive) for i in range(1, int(done[n]))
            )
            done[e] = sum(value for (value,) in terms)
        elif operation is None:
            raise TypeError(f"cannot compute {e.op!r} of {e!r}: it is no function of codegen/graph/expr.py")
        else:
            done[e] = operation(*(done[a] for a in e.args))
    return [float(done[e]) for e in outputs]
