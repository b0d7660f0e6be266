"""DTensor: the dimensions of neurons may be sharded, and then every device works on its part; time may not.

The rules are registered when torch.distributed.tensor is imported, since importing it takes longer than all the rest.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from ._operators import OPERATORS, Operator
from ._when_imported import when_imported

_MODULE = "torch.distributed.tensor"


def _sharding(operator: Operator, *args: Any) -> list[tuple[list[Any], list[Any]]]:
    """What each result is, for each way in which the arguments may lie on one dimension of the mesh."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    values = dict(zip(operator.arguments, operator.complete(args), strict=True))
    tensors = {name: v for name, v in values.items() if hasattr(v, "placements")}
    first = functools.partial(operator.first_of_neurons, store_v_seq=values["store_v_seq"])
    empty = operator.empty_results(values)
    for name, spec in tensors.items():
        has_time = first(name) == 1 or (name in operator.parameters and spec.ndim == values["x_seq"].ndim)
        if has_time and any(p.is_shard(0) for p in spec.placements):
            raise RuntimeError(
                f"snnkern.{operator.name}: {name} is sharded over time, its "
                f"dimension 0: {spec.placements}. Each step needs the one before it, so redistribute it over another "
                "dimension first."
            )

    def way(shard: int | None) -> tuple[list[Any], list[Any]]:
        """The placements when the neurons' dimension `shard` is sharded, or none is."""

        def place(name: str) -> Any:
            if shard is None or name in empty or name in operator.shared:
                return Replicate()
            parameter = name.removeprefix("grad_")
            if parameter in operator.weights:  # each device has a part of its gradient
                return Partial() if name in operator.results else Replicate()
            if parameter in operator.parameters:
                # It lies as x_seq[0] does, where it varies along that dimension; else each device has a part of its gradient.
                value = values[parameter]
                dim = shard - (values["x_seq"].ndim - 1 - value.ndim)
                if dim >= 0 and value.shape[dim] != 1:
                    return Shard(dim)
                return Partial() if name in operator.results else Replicate()
            return Shard(first(name) + shard)

        return [place(name) for name in operator.results], [
            place(name) if name in tensors else None for name in operator.arguments[: len(args)]
        ]

    whole = (
        2 if operator.weights else 1
    )  # dimensions that are not sharded: time, and a row of neurons that feed each other
    return [way(shard) for shard in (None, *range(values["x_seq"].ndim - whole))]


_registered: set[Operator] = set()


def register() -> None:
    """Registers what is not yet, if torch.distributed.tensor has been imported."""
    if _MODULE not in sys.modules:
        return
    from torch.distributed.tensor.experimental import register_sharding

    for operator in OPERATORS:
        if operator not in _registered:
            register_sharding(operator.overload)(functools.partial(_sharding, operator))
            _registered.add(operator)


when_imported(_MODULE, register)
