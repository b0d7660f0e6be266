"""PerStep: layers without time see all steps as one batch, as a Sequential of them would see each step."""

from __future__ import annotations

import copy
import io
import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from snnkern import nn

from support import noise

T, N = 5, 3


def layers() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.MaxPool2d(2)]


def images(T: int = T, N: int = N, device: str = "cpu") -> Tensor:
    return noise((T, N, 2, 6, 6), torch.float32, 0, device)


def test_each_step_as_the_layers_alone(device: str) -> None:
    net, alone = nn.PerStep(*layers()).to(device).eval(), torch.nn.Sequential(*layers()).to(device).eval()
    x_seq = images(device=device).requires_grad_()
    out, expected = net(x_seq), torch.stack([alone(x) for x in x_seq])
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), [x_seq, *net.parameters()])
    wanted = torch.autograd.grad(expected.square().sum(), [x_seq, *alone.parameters()])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_all_steps() -> None:
    net, norm = nn.PerStep(torch.nn.BatchNorm2d(2)), torch.nn.BatchNorm2d(2)
    x_seq = images()
    assert torch.equal(net(x_seq), norm(x_seq.flatten(0, 1)).unflatten(0, (T, N)))
    assert torch.equal(net[0].running_var, norm.running_var)


@pytest.mark.parametrize("shape", [(T, N), (1, N), (T, 1), (1, 1)])
def test_batch_first_computes_the_same(shape: tuple[int, int]) -> None:
    x_seq = images(*shape)
    net, batch_first = nn.PerStep(*layers()), nn.PerStep(*layers(), batch_first=True)
    expected = net(x_seq)
    for x in (x_seq.transpose(0, 1), x_seq.transpose(0, 1).contiguous()):
        batch_first.load_state_dict(nn.PerStep(*layers()).state_dict())
        assert torch.equal(batch_first(x), expected.transpose(0, 1))
        assert torch.equal(batch_first[1].running_mean, net[1].running_mean)


def seen(net: nn.PerStep, x_seq: Tensor) -> Tensor:
    """What the first layer gets."""
    got: list[Tensor] = []
    handle = net[0].register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    net(x_seq)
    handle.remove()
    return got[0]


def test_nothing_is_copied_where_time_is_outermost() -> None:
    net, batch_first = nn.PerStep(torch.nn.Identity()), nn.PerStep(torch.nn.Identity(), batch_first=True)
    last = images().flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, N))
    for x_seq in (images(), last, images(1), images(N=1), images()[1:3], last[1:3]):
        for x, layer in ((x_seq, net), (x_seq.transpose(0, 1), batch_first)):
            assert seen(layer, x).data_ptr() == x.data_ptr() == layer(x).data_ptr()
            assert layer(x).stride() == x.stride()
    assert seen(net, last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_copy_keeps_the_layout_of_a_step(memory_format: torch.memory_format) -> None:
    """What is shown at every step alike, and a batch with time inside."""
    net, batch_first = nn.PerStep(torch.nn.Identity()), nn.PerStep(torch.nn.Identity(), batch_first=True)
    pictures = images(1)[0].to(memory_format=memory_format)
    same = pictures.expand(T, *pictures.shape)
    inside = images().transpose(0, 1).flatten(0, 1).to(memory_format=memory_format).unflatten(0, (N, T))
    for layer, x_seq in ((net, same), (net, inside.transpose(0, 1)), (batch_first, inside)):
        assert seen(layer, x_seq).is_contiguous(memory_format=memory_format)
        assert torch.equal(layer(x_seq), x_seq)
    x = pictures.clone().requires_grad_()
    (grad,) = torch.autograd.grad(net(x.expand(T, *x.shape)).sum(), x)
    assert torch.equal(grad, torch.full_like(x, T))


@pytest.mark.compatibility
@pytest.mark.parametrize("batch_first", [False, True])
def test_scripted(batch_first: bool) -> None:
    net = torch.nn.Sequential(nn.PerStep(*layers(), batch_first=batch_first))
    scripted = torch.jit.script(copy.deepcopy(net))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    for other in (scripted, torch.jit.load(buffer)):
        assert torch.equal(other.eval()(images()), net.eval()(images()))
        with pytest.raises(torch.jit.Error, match=r"x_seq must be \[., ., ...\] with T >= 1, got shape \[0, 0, 2"):
            other(torch.empty(0, 0, 2, 6, 6))


@pytest.mark.compatibility
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiled_without_breaks(batch_first: bool) -> None:
    net = nn.PerStep(*layers(), batch_first=batch_first)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=True, backend="aot_eager")
    for steps in (T, 9):
        x_seq = images(steps)
        torch.testing.assert_close(compiled(x_seq), net(x_seq))
    same = images(1).expand(T, -1, -1, -1, -1)
    torch.testing.assert_close(compiled(same), net(same))


@pytest.mark.compatibility
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_exported_for_any_number_of_steps_and_samples(batch_first: bool, strict: bool) -> None:
    net = nn.PerStep(*layers(), batch_first=batch_first).eval()
    dims = {0: torch.export.Dim("T"), 1: torch.export.Dim("N")}
    program = torch.export.export(net, (images(),), dynamic_shapes=(dims,), strict=strict).module()
    for shape in ((9, 4), (2, 7)):
        torch.testing.assert_close(program(images(*shape)), net(images(*shape)))


@pytest.mark.compatibility
def test_traced_for_other_shapes() -> None:
    for batch_first in (False, True):
        net = nn.PerStep(*layers(), batch_first=batch_first).eval()
        for traced in (torch.fx.symbolic_trace(net), torch.jit.trace(net, images())):
            for shape in ((T, N), (9, 4)):
                torch.testing.assert_close(traced(images(*shape)), net(images(*shape)))


def test_it_is_a_sequential() -> None:
    net, plain = nn.PerStep(*layers()), torch.nn.Sequential(*layers())
    assert list(net.state_dict()) == list(plain.state_dict())
    net.load_state_dict(plain.state_dict())
    named = nn.PerStep(OrderedDict(conv=layers()[0], norm=layers()[1]), batch_first=True)
    assert list(named.state_dict())[:2] == ["conv.weight", "conv.bias"]
    part = named[:1]
    assert isinstance(part, nn.PerStep) and part.batch_first and "batch_first=True" in repr(part)
    assert net[0] is next(iter(net)) and len(net) == 3 and "batch_first" not in repr(net)


@pytest.mark.parametrize("layer", [nn.LIF(), torch.nn.Sequential(torch.nn.ReLU(), nn.LI()), nn.PerStep()])
def test_what_sees_time_is_refused(layer: torch.nn.Module) -> None:
    message = "which needs to see the time steps, and inside PerStep they are samples of one batch: put the"
    with pytest.raises(TypeError, match=message):
        nn.PerStep(torch.nn.Linear(2, 2), layer)
    net = nn.PerStep(torch.nn.Linear(2, 2))
    net.insert(0, layer)
    with pytest.raises(TypeError, match=message):
        net(torch.ones(2, 3, 2))


class Pair(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_errors() -> None:
    got = "snnkern.nn.PerStep: x_seq must be [T, N, ...] with T >= 1, got shape "
    for layer, x_seq, kind, message in (
        (torch.nn.ReLU(), torch.ones(5), ValueError, got + "[5]"),
        (torch.nn.ReLU(), torch.ones(0, 3, 2), ValueError, got + "[0, 3, 2]"),
        (torch.nn.ReLU(), [torch.ones(3, 2)], TypeError, "x_seq must be a Tensor, got list"),
        (Pair(), torch.ones(5, 3, 2), TypeError, "the layers must return one Tensor, got tuple"),
        (torch.nn.Flatten(0), torch.ones(5, 3, 2), ValueError, "they got 15 and returned shape [30]"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            nn.PerStep(layer)(x_seq)
    with pytest.raises(ValueError, match=re.escape("x_seq must be [N, T, ...] with T >= 1, got shape [3, 0, 2]")):
        nn.PerStep(torch.nn.ReLU(), batch_first=True)(torch.ones(3, 0, 2))


def test_an_empty_batch() -> None:
    net = nn.PerStep(*layers()).eval()
    assert net(torch.ones(T, 0, 2, 6, 6)).shape == (T, 0, 4, 3, 3)
    assert nn.PerStep(*layers(), batch_first=True).eval()(torch.ones(0, T, 2, 6, 6)).shape == (0, T, 4, 3, 3)
