"""The neurons and surrogates that there are, by the key that operators know them by: the catalogues, and what a user defines."""

from __future__ import annotations

from .codegen.specification.base import Neuron, Surrogate
from .codegen.specification.neurons import NEURONS as _NEURONS
from .codegen.specification.surrogates import SURROGATES as _SURROGATES

NEURONS: dict[str, type[Neuron]] = {n.key(): n for n in _NEURONS}
SURROGATES: dict[str, type[Surrogate]] = {s.key(): s for s in _SURROGATES}
