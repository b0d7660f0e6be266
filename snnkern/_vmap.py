"""torch.func.vmap: a batch is one more dimension of neurons, beside N, so that one launch serves all samples."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._operators import OPERATORS, Operator


def _rule(
    operator: Operator, info: Any, in_dims: tuple[Any, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    values = dict(zip(operator.arguments, operator.complete(args), strict=True))
    batched = {name: dim for name, dim in zip(operator.arguments, in_dims, strict=False) if isinstance(dim, int)}
    first = functools.partial(operator.first_of_neurons, store_v_seq=values["store_v_seq"])
    empty = operator.empty_results(values)
    to = tuple(None if name in empty else first(name) for name in operator.results)

    given = {name for name in (*operator.parameters, *operator.weights, *operator.shared) if values[name] is not None}

    def rank(name: str) -> int:
        return int(values[name].dim()) - (name in batched)

    # A parameter that is a tensor has one value and one gradient a launch. And the operator refuses a tensor that lacks
    # a dimension, which the batch must not make up for.
    if (
        given & {*batched, *(name.removeprefix("grad_") for name in operator.results)}
        or rank("x_seq") < operator.least_rank
        or any(rank(name) < first(name) for name in batched)
    ):
        samples = [
            operator.overload(*(v.select(batched[name], i) if name in batched else v for name, v in values.items()))
            for i in range(info.batch_size)
        ]
        return tuple(
            parts[0] if dim is None else torch.stack(parts, dim)
            for parts, dim in zip(zip(*samples, strict=True), to, strict=True)
        ), to

    def whole(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if name in given:  # it broadcasts from behind; one with time has that in front of the batch
            return value.unsqueeze(1) if value.dim() == rank("x_seq") else value
        if name in batched:
            return value.movedim(batched[name], first(name))
        return value.unsqueeze(first(name)).expand(
            *value.shape[: first(name)], info.batch_size, *value.shape[first(name) :]
        )

    return operator.overload(*(whole(name, value) for name, value in values.items())), to


def register(operator: Operator) -> None:
    torch.library.register_vmap(operator.overload, functools.partial(_rule, operator))


for _operator in OPERATORS:
    register(_operator)
