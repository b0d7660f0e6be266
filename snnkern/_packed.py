"""snnkern.packed_spikes: what autograd keeps of spikes, as bits.

A tensor is known to be spikes by where it comes from: an operator of a neuron made it, or a function that turns spikes into
spikes. The mark is on its storage, with the version that it had then; what has been changed since is kept as it is. No value is
ever read.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from .codegen.specification.neurons import NEURONS, TernaryLIF

# A tensor with fewer values is kept as it is: packing takes two kernels.
_WORTHWHILE = 4096
_MOST = 255  # of a byte
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Neurons whose output is 0 or 1, if it spikes at most once a step.
_ONE_SPIKE = frozenset(n.name for n in NEURONS if n.has_surrogate and n is not TernaryLIF)
_SUMS = frozenset((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__))
# Values of the result are values of the argument.
_CHOICES = frozenset((
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.clone, torch.flatten, torch.reshape, torch.cat, torch.stack,
    Tensor.clone, Tensor.contiguous, Tensor.flatten, Tensor.reshape, Tensor.repeat, Tensor.to, Tensor.type_as, Tensor.float,
    Tensor.double, Tensor.half, Tensor.bfloat16,
))  # fmt: skip


class _Saved(NamedTuple):
    """A tensor as it is, which a hook must look after: autograd does not where there are hooks."""

    tensor: Tensor
    version: int


@dataclass(eq=False)
class _Packed:
    bits: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    as_bytes: bool

    def unpacked(self) -> Tensor:
        out: Tensor = torch.ops.snnkern._unpack_spikes(self.bits, self.size, self.stride, self.dtype, self.as_bytes)
        return out


@dataclass(eq=False)
class _Mark:
    """A storage of whole numbers from 0 to `most`."""

    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    most: int
    # What has been packed of it and is still kept, by its place: two layers often keep the same.
    packed: weakref.WeakValueDictionary[Any, _Packed] = field(default_factory=weakref.WeakValueDictionary)


@functools.cache
def _places(schema: Any) -> dict[str, tuple[int, Any]]:
    """Of each argument its place and default."""
    return {a.name: (i, a.default_value) for i, a in enumerate(schema.arguments)}


def _spikes_once(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is a call of a neuron whose first result is 0 or 1."""
    overload = func.default if isinstance(func, torch._ops.OpOverloadPacket) else func
    if not isinstance(overload, torch._ops.OpOverload) or overload.namespace != "snnkern":
        return False
    neuron = overload._schema.name.removeprefix("snnkern::")
    for ending in ("_norm_forward", "_recurrent_forward", "_forward"):
        if neuron.endswith(ending):
            neuron = neuron.removesuffix(ending)
            break
    else:
        return False
    places = _places(overload._schema)

    def given(name: str, otherwise: Any) -> Any:
        if name not in places:
            return otherwise
        i, default = places[name]
        return args[i] if i < len(args) else kwargs.get(name, default)

    return (
        neuron in _ONE_SPIKE
        and given("spiking", True)
        and given("max_spikes", 1.0) == 1
        and given("max_spikes_tensor", None) is None
    )


def _is_plain(x: Any) -> bool:
    """Whether x has a storage and a version that say what it is."""
    return (
        type(x) is Tensor
        and x.layout is torch.strided
        and not x.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


class _Marking(TorchFunctionMode):
    """Marks what is known to be spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[int, _Mark] = {}
        self.prune_at = 256

    def mark(self, x: Any, most: int) -> None:
        if not _is_plain(x) or x.dtype not in _DTYPES or most > _MOST:
            return
        if len(self.marks) >= self.prune_at:
            self.marks = {key: mark for key, mark in self.marks.items() if not mark.storage.expired()}  # type: ignore[no-untyped-call]
            self.prune_at = 2 * len(self.marks) + 256
        # As long as there is a weak reference, no other storage gets its address.
        storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        self.marks[storage.cdata] = _Mark(storage, x._version, x.dtype, most)

    def found(self, x: Any) -> _Mark | None:
        if not _is_plain(x):
            return None
        mark = self.marks.get(x.untyped_storage()._cdata)
        return mark if mark and (mark.version, mark.dtype) == (x._version, x.dtype) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in _SUMS:
            # Before the call: a sum in place has another version.
            terms = [self.found(x) for x in args]
            out = func(*args, **kwargs)
            if len(terms) == 2 and not kwargs and all(terms):
                self.mark(out, sum(mark.most for mark in terms if mark))
            return out
        if func in _CHOICES and args and "out" not in kwargs:
            sources = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
            marks = [self.found(x) for x in sources]
            out = func(*args, **kwargs)
            if marks and all(marks) and self.found(out) is None:
                self.mark(out, max(mark.most for mark in marks if mark))
            return out
        out = func(*args, **kwargs)
        if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)) and _spikes_once(func, args, kwargs):
            self.mark(out[0], 1)
        return out

    def pack(self, x: Tensor) -> _Saved | _Packed:
        mark = self.found(x)
        if mark is None or x.numel() < _WORTHWHILE or not _is_dense(x):
            return _Saved(x, x._version)
        # What another stream packs, this one would have to wait for.
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        place = (stream, x.storage_offset(), x.size(), x.stride())
        packed = mark.packed.get(place)
        if packed is None:
            as_bytes = mark.most > 1
            with torch.no_grad():
                bits = torch.ops.snnkern._pack_spikes(x.detach(), as_bytes)
            packed = mark.packed[place] = _Packed(bits, x.size(), x.stride(), x.dtype, as_bytes)
        return packed


def _is_dense(x: Tensor) -> bool:
    """Whether no two values share a place in memory, and none lies between them."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.size(), strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _unpack(saved: _Saved | _Packed) -> Tensor:
    if isinstance(saved, _Packed):
        return saved.unpacked()
    if saved.tensor._version != saved.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{saved.tensor.dtype} {list(saved.tensor.shape)} is at version {saved.tensor._version}; "
            f"expected version {saved.version} instead"
        )
    return saved.tensor


@contextlib.contextmanager
def packed_spikes() -> Iterator[None]:
    """Within it, what autograd keeps of spikes takes a bit for each: for convolutions, linear layers, products, pooling.

    The layers behind a neuron keep its spikes for their backward pass. Here they keep bits, and a kernel makes the spikes of
    them when the backward pass comes there: the same values, so that gradients have the same bits. Sums of spikes, up to 255,
    take a byte each. The backward pass itself may run outside.

    A tensor is taken for spikes if an operator of snnkern made it (also through modules, `convert` and `fuse`), or if it is a
    view, copy, cast, sum or max-pooling of such; and only as long as nothing has written to it. Values are not looked at, and
    the device is not waited for. Neurons that give other numbers (ILIF, TernaryLIF, readouts, `spiking=False`, `max_spikes`
    other than 1) are left, and so are tensors of fewer than 4096 values.

    What is recomputed by `torch.utils.checkpoint` is not kept at all, and is not packed either. A function that `torch.compile`
    has compiled keeps what its own graph keeps, unpacked.

    Example:
        >>> net = torch.nn.Sequential(snnkern.nn.LIF(), torch.nn.Linear(64, 10))
        >>> with snnkern.packed_spikes():
        ...     out = net(torch.rand(4, 32, 64))
        >>> out.sum().backward()
        >>> out.shape
        torch.Size([4, 32, 10])
    """
    marking = _Marking()
    pack: Callable[[Tensor], Any] = marking.pack
    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack), marking:
        yield
