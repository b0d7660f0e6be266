"""Parameters that are tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse(value: Tensor, x_seq: Tensor) -> Tensor:
    """1 / value in the state dtype; of a time constant, the decay in a step."""
    return 1 / value.to(torch.float64 if x_seq.dtype == torch.float64 else torch.float32)
