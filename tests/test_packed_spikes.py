"""snnkern.packed_spikes: autograd keeps bits of spikes, the gradients are the same to the bit, and nothing else is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnkern
from snnkern._packed import _Packed, _Saved

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Kept:
    """What the hooks of packed_spikes keep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed: list[_Packed] = []
        self.others: list[Tensor] = []
        pack = snnkern._packed._Marking.pack

        def watched(marking: Any, x: Tensor) -> Any:
            kept = pack(marking, x)
            if isinstance(kept, _Saved):
                self.others.append(kept.tensor)
            else:
                self.packed.append(kept)
            return kept

        monkeypatch.setattr(snnkern._packed._Marking, "pack", watched)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(monkeypatch)


def images(device: str, dtype: torch.dtype = torch.float32, channels: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, channels, 12, 12, generator=generator).to(device, dtype)


def gradients(net: Callable[[Tensor], Tensor], x: Tensor, packed: bool, weights: list[Tensor]) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with snnkern.packed_spikes() if packed else contextlib.nullcontext():
        out = net(x)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, *weights])]


def check_same(net: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> None:
    for with_it, without in zip(gradients(net, x, True, weights), gradients(net, x, False, weights), strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 4096, 100003])
@pytest.mark.parametrize("most", [1, 255])
def test_every_value_comes_back(device: str, dtype: torch.dtype, count: int, most: int) -> None:
    generator = torch.Generator().manual_seed(count)
    whole = torch.randint(0, most + 1, (count + 1,), generator=generator).to(device, dtype)
    for values in (whole[:-1], whole[1:]):  # aligned, and not
        bits = torch.ops.snnkern._pack_spikes(values, most > 1)
        assert bits.dtype == torch.uint8
        assert bits.numel() == (count if most > 1 else (count + 7) // 8)
        back = torch.ops.snnkern._unpack_spikes(bits, values.shape, values.stride(), dtype, most > 1)
        assert torch.equal(back, values)


def test_bits_are_in_the_order_of_values() -> None:
    values = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1, 1])
    assert torch.ops.snnkern._pack_spikes(values, False).tolist() == [0b10001001, 1]


def test_operators_refuse() -> None:
    with pytest.raises(RuntimeError, match="must be dense"):
        torch.ops.snnkern._pack_spikes(torch.zeros(8)[::2], False)
    with pytest.raises(RuntimeError, match="packed does not hold 17 values"):
        torch.ops.snnkern._unpack_spikes(torch.zeros(2, dtype=torch.uint8), [17], [1], torch.float32, False)
    with pytest.raises(TypeError, match="spikes must be"):
        torch.ops.snnkern._pack_spikes(torch.zeros(8, dtype=torch.int32), False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fused", [False, True])
def test_convolutions(device: str, memory_format: torch.memory_format, fused: bool, kept: Kept) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    net: nn.Module = nn.Sequential(
        snnkern.nn.PerStep(conv, nn.BatchNorm2d(16)), snnkern.nn.LIF(v_threshold=0.3),
        snnkern.nn.PerStep(nn.MaxPool2d(2, 2, 1), nn.Conv2d(16, 16, 3, bias=False)),
    )  # fmt: skip
    if fused:
        net = snnkern.fuse(net)
    net = net.to(device, memory_format=memory_format)
    x = images(device).flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, (4, 2))

    def run(x: Tensor) -> Tensor:
        snnkern.nn.reset(net)
        return net(x)

    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        check_same(run, x, list(net.parameters())[-1:])
    assert len(kept.packed) == 2  # what pooling keeps, and its result
    assert not any(p.as_bytes for p in kept.packed)


def test_sums_of_spikes_are_bytes(kept: Kept) -> None:
    weight = torch.randn(8, 64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        a, b = (snnkern.functional.lif(x * k)[0] for k in (1.0, 2.0))
        total = a + b
        total = total + a
        total += b
        return nn.functional.linear(total, weight)

    check_same(run, torch.randn(4, 64, 64), [weight])
    assert [p.as_bytes for p in kept.packed] == [True]


def test_a_tensor_that_two_layers_keep_is_packed_once(kept: Kept) -> None:
    weights = [torch.randn(8, 64, requires_grad=True) for _ in range(2)]

    def run(x: Tensor) -> Tensor:
        spikes = snnkern.functional.lif(x)[0]
        return nn.functional.linear(spikes, weights[0]) + nn.functional.linear(spikes, weights[1])

    check_same(run, torch.randn(4, 64, 64), weights)
    assert len(kept.packed) == 2
    assert kept.packed[0] is kept.packed[1]


@pytest.mark.parametrize("change", ["in place", "through a view", "scaled", "expanded", "potential"])
def test_what_may_be_no_spikes_is_kept_as_it_is(change: str, kept: Kept) -> None:
    weight = torch.randn(8, 64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        spikes, v = snnkern.functional.lif(x)
        if change == "in place":
            spikes *= 0.5
        elif change == "through a view":
            spikes[1].add_(0.25)
        elif change == "scaled":
            spikes = spikes * 2
        elif change == "expanded":
            spikes = spikes[:, :1].expand(-1, 64, -1)
        else:
            spikes = v.expand(4, *v.shape)
        return nn.functional.linear(spikes, weight)

    check_same(run, torch.randn(4, 64, 64), [weight])
    assert not kept.packed
    assert kept.others


@pytest.mark.parametrize("options", [{"spiking": False}, {"max_spikes": None}, {"max_spikes": 2.0}])
def test_calls_that_give_other_numbers(options: dict[str, Any], kept: Kept) -> None:
    weight = torch.randn(8, 64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return nn.functional.linear(torch.ops.snnkern.lif_forward(x * 5, v_reset=None, **options)[0], weight)

    check_same(run, torch.randn(4, 64, 64), [weight])
    assert not kept.packed


def test_what_changes_after_it_was_kept_is_an_error() -> None:
    weight = torch.randn(8, 64, requires_grad=True)
    x = torch.randn(64, 64)
    with snnkern.packed_spikes():
        out = nn.functional.linear(x, weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_spikes_may_be_written_to_after_they_were_packed() -> None:
    weight = torch.randn(8, 64, requires_grad=True)
    x = torch.randn(4, 64, 64)
    with snnkern.packed_spikes():
        spikes = snnkern.functional.lif(x)[0]
        expected = spikes.clone()
        out = nn.functional.linear(spikes, weight)
        spikes.zero_()
    out.sum().backward()
    assert torch.equal(weight.grad, expected.sum((0, 1)).expand(8, 64))


def test_inference_mode() -> None:
    x = torch.randn(4, 64, 64)
    with snnkern.packed_spikes(), torch.inference_mode():
        spikes = snnkern.functional.lif(x)[0]
        assert torch.equal(spikes + spikes, 2 * spikes)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(snnkern.nn.LIF(), nn.Linear(64, 64))

    def run(x: Tensor) -> Tensor:
        snnkern.nn.reset(layer)
        out: Tensor = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
        return out

    results = []
    for packed in (True, False):
        x = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with snnkern.packed_spikes() if packed else contextlib.nullcontext():
            out = run(x)
        layer.zero_grad()
        out.square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_compiled_function_gives_the_same() -> None:
    weight = torch.randn(8, 64, requires_grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        return nn.functional.linear(torch.ops.snnkern.lif_forward(x)[0], weight)

    check_same(run, torch.randn(4, 64, 64), [weight])
