"""Any shape and layout of x_seq, v_init and the incoming gradients gives the same numbers; dense layouts are kept."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.profiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnkern import functional, nn

from support import DTYPES, KINDS, NEURON_NAMES, calm, check_same, inputs, neuron_class, noise, options_of, results


def channels_last(t: Tensor) -> Tensor:
    """Memory order [T, N, H, W, C], as after a channels_last convolution on [T * N, C, H, W]."""
    return t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if t.dim() == 5 else t


def offset(t: Tensor) -> Tensor:
    """A base address that is not a multiple of any vector width."""
    room = t.new_empty(t.numel() + 1)
    return room[1:].view(t.shape).copy_(t)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": channels_last,
    "transposed": lambda t: t.transpose(-1, 1).contiguous().transpose(-1, 1) if t.dim() > 2 else t,
    "batch_first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "time_inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "every_second": lambda t: torch.stack([t, t], dim=1)[:, 1],
    "expanded": lambda t: t[:, :1].expand_as(t),
    "offset": offset,
}

shapes = st.tuples(st.integers(1, 40), st.lists(st.integers(0, 5), min_size=1, max_size=4)).map(lambda p: (p[0], *p[1]))


@given(
    shape=shapes,
    neuron=st.sampled_from(NEURON_NAMES),
    dtype=st.sampled_from(list(DTYPES)),
    layout=st.sampled_from(list(LAYOUTS)),
    state_layout=st.sampled_from(["contiguous", "sliced", "offset"]),
    v_reset=st.sampled_from([0.0, None, -0.5]),
    v_threshold=st.floats(0.25, 2.0),
    store_v_seq=st.booleans(),
    detach_reset=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_layout_matches_the_reference(
    shape: tuple[int, ...],
    neuron: str,
    dtype: str,
    layout: str,
    state_layout: str,
    v_reset: float | None,
    v_threshold: float,
    store_v_seq: bool,
    detach_reset: bool,
) -> None:
    tensors = {
        name: t.detach()
        for name, t in inputs(neuron, shape, DTYPES[dtype], reset="hard" if v_reset is not None else "soft").items()
    }
    tensors["x_seq"] = LAYOUTS[layout](tensors["x_seq"])
    for state in neuron_class(neuron).states:
        tensors[f"{state.name}_init"] = LAYOUTS[state_layout](tensors[f"{state.name}_init"])
    options = {"v_reset": v_reset, "v_threshold": v_threshold, "detach_reset": detach_reset}
    check_same(neuron, tensors, **options_of(neuron, **options, store_v_seq=store_v_seq))


def test_dense_layouts_with_time_outermost_are_kept(device: str) -> None:
    x = channels_last(noise((3, 2, 4, 5, 6), torch.float32, 0, device)).requires_grad_()
    spikes, v = functional.lif(x)
    (grad,) = torch.autograd.grad(spikes.sum() + v.sum(), x)
    assert spikes.stride() == x.stride()
    assert v.stride() == x[0].stride()
    assert grad.stride() == x.stride()


OUTSIDE = {
    "batch_first": LAYOUTS["batch_first"],
    "batch_first_channels_last": lambda t: t.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3),
    "time_in_the_middle": lambda t: t.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4),
}


@pytest.mark.parametrize("layout", OUTSIDE)
def test_dimensions_outside_time_are_worked_on_as_they_lie(layout: str, device: str) -> None:
    """The same bits as with time outermost, and the results lie as x does."""
    for neuron, dtype in itertools.product(KINDS, DTYPES.values()):
        plain = inputs(neuron, (19, 3, 4, 5, 16), dtype, device)
        start = {name: t for name, t in plain.items() if not name.endswith("_init")}
        for tensors, store_v_seq in itertools.product((plain, start), (False, True)):
            values, grads = results(functional, neuron, tensors, store_v_seq=store_v_seq)
            x = OUTSIDE[layout](plain["x_seq"].detach())
            got, its = results(functional, neuron, {**tensors, "x_seq": x}, store_v_seq=store_v_seq)
            assert all(torch.equal(a, b) for a, b in zip(got, values, strict=True))
            learned = [t.name for t in neuron_class(neuron).learned]  # a sum, whose order is that of the layout
            assert all(torch.equal(its[name], grad) for name, grad in grads.items() if name not in learned)
            assert got[0].stride() == x.stride() == its["x_seq"].stride()
            assert got[1].stride() == (x.stride() if store_v_seq else torch.empty_like(x[0]).stride())


@pytest.mark.parametrize("layout", OUTSIDE)
def test_nothing_is_copied(layout: str, device: str) -> None:
    x = OUTSIDE[layout](noise((19, 3, 4, 5, 16), torch.float32, 0, device)).requires_grad_()
    incoming = OUTSIDE[layout](noise((19, 3, 4, 5, 16), torch.float32, 1, device))
    with torch.profiler.profile() as profiler:
        torch.autograd.grad(functional.lif(x)[0], x, incoming)
    names = {e.name for e in profiler.events()}
    assert any("snnkern::lif_backward" in name for name in names)
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_modules_with_the_batch_first(neuron: str, device: str) -> None:
    x = noise((19, 3, 4, 5, 16), torch.float32, 0, device, calm(neuron, "hard"))
    cls = getattr(nn, neuron_class(neuron).module)
    plain, other = (cls(store_v_seq=True, batch_first=b, v_init=0.125).to(device) for b in (False, True))
    scripted = torch.jit.script(copy.deepcopy(other))
    assert "batch_first=True" in repr(other) and "batch_first" not in repr(plain)
    for steps in (x[:7], x[7:]):  # with the kept state
        swapped = steps.transpose(0, 1).contiguous()
        out = plain(steps)
        for layer in (other, scripted):
            got = layer(swapped)
            assert torch.equal(got.transpose(0, 1), out) and got.is_contiguous()
            assert torch.equal(layer.v_seq.transpose(0, 1), plain.v_seq) and torch.equal(layer.v, plain.v)


def test_a_value_for_each_channel_with_the_batch_first(device: str) -> None:
    x = noise((6, 2, 3, 16), torch.float32, 0, device)
    plain, other = (
        nn.LIF(tau=torch.tensor([2.0, 3.0, 4.0]), channels=3, batch_first=b).to(device) for b in (False, True)
    )
    assert torch.equal(other(x.transpose(0, 1)).transpose(0, 1), plain(x))


def test_short_rows_are_copied(device: str) -> None:
    """Pieces of less than a cache line."""
    x = LAYOUTS["batch_first"](noise((6, 3, 15), torch.float32, 0, device))
    spikes, v = functional.lif(x)
    expected, last = functional.lif(x.contiguous())
    assert spikes.is_contiguous() and torch.equal(spikes, expected) and torch.equal(v, last)


def test_other_layouts_come_out_contiguous(device: str) -> None:
    x = LAYOUTS["time_inside"](noise((3, 4, 5), torch.float32, 0, device))
    spikes, v = functional.lif(x)
    assert spikes.is_contiguous() and v.is_contiguous()


def test_gradients_of_any_layout(device: str) -> None:
    x = noise((20, 4, 6), torch.float32, 0, device).requires_grad_()
    incoming = noise((20, 4, 6), torch.float32, 1, device)
    for make in LAYOUTS.values():
        g = make(incoming)
        (strided,) = torch.autograd.grad(functional.lif(x)[0], x, g)
        (dense,) = torch.autograd.grad(functional.lif(x)[0], x, g.contiguous())
        assert torch.equal(strided, dense)


def test_no_neurons(device: str) -> None:
    for shape in ((4, 0), (20, 2, 0, 3)):
        x = torch.empty(shape, device=device, requires_grad=True)
        spikes, v = functional.lif(x)
        assert spikes.shape == shape and v.shape == shape[1:]
        (grad,) = torch.autograd.grad(spikes.sum() + v.sum(), x)
        assert grad.shape == shape


def test_inputs_are_not_changed(device: str) -> None:
    for dtype in DTYPES.values():
        for neuron in NEURON_NAMES:
            tensors = inputs(neuron, (18, 7), dtype, device)
            before = {name: t.detach().clone() for name, t in tensors.items()}
            check_same(neuron, tensors)
            assert all(torch.equal(t.detach(), before[name]) for name, t in tensors.items())
