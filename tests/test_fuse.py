"""snnkern.fuse: the fused network is the network, to rounding; what cannot be shown to be is left, with the reason."""

from __future__ import annotations

import copy
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compat_spikingjelly import FILES, installed, load  # noqa: F401  a fixture
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import snnkern
from snnkern import nn, surrogate

from support import fresh_process, library, noise

Conv, Norm, Norm1 = torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.BatchNorm1d


def lif(**options: Any) -> nn.LIF:
    return nn.LIF(v_threshold=0.5, surrogate=surrogate.ATan(), **options)


def conv_norm(before: int, after: int, stride: int = 1) -> nn.PerStep:
    return nn.PerStep(Conv(before, after, 3, stride, 1, bias=False), Norm(after))


class SewBlock(torch.nn.Module):
    """As in SEW-ResNet: spikes are added behind the neuron."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.sn1 = conv_norm(before, channels, stride), lif()
        self.conv2, self.sn2 = conv_norm(channels, channels), lif()
        self.downsample = None if stride == 1 else torch.nn.Sequential(conv_norm(before, channels, stride), lif())

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.sn2(self.conv2(self.sn1(self.conv1(x))))
        return out + identity


class ResBlock(torch.nn.Module):
    """As in the spiking ResNet: BatchNorm, addition, neuron; in place."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.sn1 = (
            nn.PerStep(Conv(before, channels, 3, stride, 1)),
            nn.PerStep(Norm(channels)),
            lif(),
        )
        self.conv2, self.sn2 = conv_norm(channels, channels), lif()
        self.downsample = None if stride == 1 else conv_norm(before, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.sn1(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.sn2(out)


class MembraneBlock(torch.nn.Module):
    """As in MS-ResNet: the sum goes to the next block's neuron, and to the next sum."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.sn1, self.conv1 = lif(), conv_norm(before, channels, stride)
        self.sn2, self.conv2 = lif(), conv_norm(channels, channels)
        self.downsample = None if stride == 1 else nn.PerStep(Conv(before, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.sn2(self.conv1(self.sn1(x)))) + identity


def resnet(block: type[torch.nn.Module]) -> torch.nn.Sequential:
    blocks = torch.nn.Sequential(block(4, 4, 1), block(4, 6, 2), block(6, 6, 1))
    return torch.nn.Sequential(
        conv_norm(3, 4), lif(), blocks, lif(), nn.PerStep(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    )


class Attention(torch.nn.Module):
    """As in Spikformer's blocks: time is flattened by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("q", "k", "proj"):
            setattr(self, f"{name}_conv", torch.nn.Conv1d(channels, channels, 1, bias=False))
            setattr(self, f"{name}_bn", Norm1(channels))
            setattr(self, f"{name}_lif", lif())

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % 2 != 0:
            raise ValueError(f"expected [T, B, C, N], got {x.shape}")
        T, B, C, N = x.shape
        flat = x.flatten(0, 1)
        q = self.q_bn(self.q_conv(flat)).reshape(T, B, C, N).contiguous()
        q = self.q_lif(q).reshape(T, B, 2, C // 2, N)
        k = self.k_lif(self.k_bn(self.k_conv(flat)).view(T, B, C, -1)).reshape(T, B, 2, C // 2, N)
        attn = (q @ k.transpose(-2, -1)) @ q * 0.25
        out = self.proj_bn(self.proj_conv(attn.flatten(2, 3).flatten(0, 1)))
        return self.proj_lif(out.unflatten(0, (T, B)) + x)


class Spikformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(conv_norm(3, 4), lif())
        self.blocks = torch.nn.ModuleList([Attention(4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3)
        for block in self.blocks:
            x = x + block(x)
        return x.mean(-1)


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "sew": (
        lambda: resnet(SewBlock),
        "0.1 -> 1; 2.0.conv1.1 -> 2.0.sn1; 2.0.conv2.1 -> 2.0.sn2; 2.1.conv1.1 -> 2.1.sn1; 2.1.conv2.1 -> 2.1.sn2; "
        "2.1.downsample.0.1 -> 2.1.downsample.1; 2.2.conv1.1 -> 2.2.sn1; 2.2.conv2.1 -> 2.2.sn2",
    ),
    "resnet": (
        lambda: resnet(ResBlock),
        "0.1 -> 1; 2.0.bn1.0 -> 2.0.sn1; 2.0.conv2.1 -> + -> 2.0.sn2; 2.1.bn1.0 -> 2.1.sn1; "
        "2.1.conv2.1 -> + -> 2.1.sn2; 2.2.bn1.0 -> 2.2.sn1; 2.2.conv2.1 -> + -> 2.2.sn2",
    ),
    "membrane": (
        lambda: resnet(MembraneBlock),
        "0.1 -> 1; 2.0.conv1.1 -> 2.0.sn2; 2.0.conv2.1 -> +, read elsewhere -> 2.1.sn1; 2.1.conv1.1 -> 2.1.sn2; "
        "2.1.conv2.1 -> +, read elsewhere -> 2.2.sn1; 2.2.conv1.1 -> 2.2.sn2; 2.2.conv2.1 -> + -> 3",
    ),
    "spikformer": (
        Spikformer,
        "stem.0.1 -> stem.1; "
        "blocks.0.q_bn -> blocks.0.q_lif; blocks.0.k_bn -> blocks.0.k_lif; blocks.0.proj_bn -> + -> blocks.0.proj_lif; "
        "blocks.1.q_bn -> blocks.1.q_lif; blocks.1.k_bn -> blocks.1.k_lif; blocks.1.proj_bn -> + -> blocks.1.proj_lif",
    ),
}
X = (4, 2, 3, 8, 8)


def made(network: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A network with weights that let it spike, the same on every call."""
    net = network().to(dtype)
    for i, p in enumerate(net.parameters()):
        p.data = noise(tuple(p.shape), dtype, i) * 0.4 + (p.dim() == 1) * (1 - i % 2)
    return net


def fused(net: torch.nn.Module, **options: Any) -> tuple[torch.nn.Module, Any]:
    reports: list[Any] = []
    net = snnkern.fuse(net, report=reports.append, **options)
    return net, reports[0]


def results(net: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    nn.reset(net)
    out = net(x)
    loss = (out * noise(tuple(out.shape), out.dtype, 77, str(out.device))).sum()
    return out, list(torch.autograd.grad(loss, [x, *net.parameters()]))


def check_same(net: torch.nn.Module, other: torch.nn.Module, x: Tensor, tolerance: float = 1e-9) -> None:
    """Two batches in training and one in evaluation: outputs, gradients and running statistics."""
    x = x.requires_grad_()
    for training in (True, True, False):
        (a, grads), (b, other_grads) = results(net.train(training), x), results(other.train(training), x)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert not training or float(a.detach().abs().max()) > 0
        for g, h in zip(grads, other_grads, strict=True):
            assert float((g - h).abs().max()) <= tolerance * float(h.abs().max().clamp(min=1.0))
        torch.testing.assert_close(list(net.buffers()), list(other.buffers()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_stays_the_same(name: str, device: str) -> None:
    network, pairs = NETWORKS[name]
    net = made(network).to(device)
    together, report = fused(net)
    assert [str(pair) for pair in report.pairs] == pairs.split("; ")
    assert list(together.state_dict()) == list(net.state_dict())
    assert [type(m).__name__ for m in together.modules()] == [type(m).__name__ for m in net.modules()]
    assert all(isinstance(a, type(b)) for a, b in zip(together.modules(), net.modules(), strict=True))
    check_same(together, net, noise(X, torch.float64, 1, device))


@pytest.mark.parametrize("name", NETWORKS)
def test_spikes_are_the_same_in_float32(name: str, device: str) -> None:
    net = made(NETWORKS[name][0], torch.float32).to(device)
    together, _ = fused(net)
    x = noise(X, torch.float32, 1, device)
    a, b = together(x), net(x)
    assert float((a != b).double().mean()) < 0.02  # near the threshold, rounding decides


def test_it_is_one_operator(device: str) -> None:
    """For each pair that the report names, there is one call of the operator, and no other BatchNorm."""
    net = made(NETWORKS["sew"][0]).to(device)
    together, report = fused(net)
    names: list[str] = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    with Names():
        together(noise(X, torch.float64, 1, device))
    assert names.count("snnkern::_lif_norm_train") == len(report.pairs)
    assert not any("batch_norm" in name for name in names)


def kept(net: torch.nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps."""
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x)
    return sum(sizes.values())


def test_what_lies_between_is_not_kept(device: str) -> None:
    net = made(lambda: torch.nn.Sequential(conv_norm(3, 8), lif())).to(device)
    together, _ = fused(net)
    x = noise(X, torch.float64, 1, device).requires_grad_()
    between = net(x).nbytes
    nn.reset(net)
    assert kept(net, x) - kept(together, x) == pytest.approx(between, rel=0.05)


class Between(torch.nn.Module):
    """Something between a norm and a neuron, or around them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], neuron: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.sn = Conv(3, 4, 3, padding=1), Norm(4), neuron or lif()
        self.of = forward

    def norm(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self, x)


class Halves(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sn = conv_norm(3, 4), lif()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.sn(self.layer(x))
        return out[:, :, :2], out[:, :, 2:]


class OfHalves(torch.nn.Module):
    """It can be traced only where the trace goes into its part."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.bn, self.sn = Halves(), nn.PerStep(Norm(2)), lif()

    def forward(self, x: Tensor) -> Tensor:
        first, second = (part * 2 for part in list(self.halves(x)[:2]))
        return self.sn(self.bn(first)) + second


class Own(nn.LIF):
    def forward(self, x_seq: Tensor) -> Tensor:
        return super().forward(-x_seq)


class OwnNorm(Norm):
    pass


def hooked(name: str) -> torch.nn.Module:
    net = torch.nn.Sequential(conv_norm(3, 4), lif())
    net.get_submodule(name).register_forward_hook(lambda *args: None)
    return net


def shared(**modules: torch.nn.Module) -> torch.nn.Module:
    norm, neuron = modules.get("norm"), modules.get("neuron")
    layers = [nn.PerStep(Conv(3, 3, 1), norm or Norm(3)) for _ in range(2)]
    return torch.nn.Sequential(layers[0], neuron or lif(), layers[1], neuron or lif())


def twice(self: Any, x: Tensor) -> Tensor:
    y = self.norm(x)
    return self.sn(y) + y


def in_place(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x.flatten(0, 1))
    z = self.bn(y)
    y += 1
    return self.sn(z.unflatten(0, x.shape[:2]))


def residual_in_place(self: Any, x: Tensor) -> Tensor:
    identity = self.norm(x).sin()
    out = self.sn(self.norm(x) + identity)
    identity += 1
    return out + identity


def branches(self: Any, x: Tensor) -> Tensor:
    return self.sn(self.norm(x)) if x.shape[0] > 2 else x


def keeps(self: Any, x: Tensor) -> Tensor:
    self.seen = x
    return self.sn(self.norm(x))


def resets(self: Any, x: Tensor) -> Tensor:
    nn.reset(self)
    return self.sn(self.norm(x))


def lists(self: Any, x: Tensor) -> Tensor:
    self.seen.append(x)
    return self.sn(self.norm(x))


def with_list() -> torch.nn.Module:
    net = Between(lists)
    net.seen = []
    return net


def with_other_forward() -> torch.nn.Module:
    net = torch.nn.Sequential(conv_norm(3, 4), lif())
    net.forward = lambda x: x
    return net


def counts(self: Any, x: Tensor) -> Tensor:
    self.bn.calls = getattr(self.bn, "calls", 0) + 1
    return self.sn(self.norm(x))


def is_tensor(self: Any, x: Tensor) -> Tensor:
    return self.sn(self.norm(x if isinstance(x, Tensor) else x[0]))


def casts(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.sn(self.norm(x))


def no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.sn(self.norm(x))


LEFT: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "hook on the norm": (lambda: hooked("0.1"), "it has hooks"),
    "hook on the neuron": (lambda: hooked("1"), "the neuron has hooks"),
    "hook between": (lambda: hooked("0"), r"its output leaves 0, and 0 \(PerStep\) has hooks"),
    "shared norm": (lambda: shared(norm=Norm(3)), r"0\.1 is used more than once"),
    "shared neuron": (lambda: shared(neuron=lif()), "1 is used more than once"),
    "norm called twice": (
        lambda: Between(lambda self, x: self.sn(self.norm(x) + self.norm(x))),
        "bn is used more than once",
    ),
    "read twice": (lambda: Between(twice), "its output is read more than once"),
    "other layer": (
        lambda: torch.nn.Sequential(nn.PerStep(Norm(3), torch.nn.ReLU()), lif()),
        r"its output goes to 0\.1 \(ReLU\)",
    ),
    "transposed": (
        lambda: Between(lambda self, x: self.sn(self.norm(x).transpose(2, 3))),
        "its output goes to transpose",
    ),
    "scaled": (lambda: Between(lambda self, x: self.sn(self.norm(x) * 2)), r"its output goes to \*"),
    "number added": (lambda: Between(lambda self, x: self.sn(self.norm(x) + 1)), r"its output goes to \+"),
    "no time": (lambda: torch.nn.Sequential(Norm(3), lif()), "it sees no time: the neuron takes its samples for steps"),
    "in place": (lambda: Between(in_place), r"\+= changes something in place between it and the neuron"),
    "residual in place": (
        lambda: Between(residual_in_place),
        "bn is used more than once|changes in place what is added",
    ),
    "own norm": (lambda: torch.nn.Sequential(nn.PerStep(OwnNorm(3)), lif()), "a OwnNorm is no BatchNorm of torch's"),
    "no eps": (lambda: torch.nn.Sequential(nn.PerStep(Norm(3, eps=0)), lif()), "its eps is 0"),
    "own neuron": (lambda: torch.nn.Sequential(nn.PerStep(Norm(3)), Own()), "Own has a forward of its own"),
    "number in time": (
        lambda: torch.nn.Sequential(nn.PerStep(Norm(3)), lif(tau=torch.full((4, 1, 1, 1, 1), 2.0))),
        "a number of the neuron changes from step to step",
    ),
    "no neuron": (lambda: torch.nn.Sequential(nn.PerStep(Norm(3))), "its output leaves the network"),
    "branches": (
        lambda: Between(branches),
        r"cannot trace the network \(Between\): its forward goes one way or another, in .*branches, line \d+",
    ),
    "training": (
        lambda: Between(lambda self, x: self.sn(self.norm(torch.nn.functional.dropout(x, 0.5, self.training)))),
        "something else in training than in evaluation",
    ),
    "random": (lambda: Between(lambda self, x: self.sn(self.norm(x * float(torch.rand(1))))), "draws random numbers"),
    "constant": (lambda: Between(lambda self, x: self.sn(self.norm(x + torch.ones(1)))), "makes tensors of its own"),
    "keeps": (lambda: Between(keeps), "keeps something in Between"),
    "resets": (lambda: Between(resets), "keeps something in LIF"),
    "lists": (with_list, "keeps something in Between"),
    "flattened": (lambda: Between(lambda self, x: self.sn(self.bn(self.conv(x[0])).flatten(2))), "it sees no time"),
    "counts": (lambda: Between(counts), "keeps something in BatchNorm2d"),
    "is a tensor": (lambda: Between(is_tensor), "asks whether something is a tensor"),
    "autocast": (lambda: Between(casts), "sets a mode"),
    "no_grad": (lambda: Between(no_grad), "sets a mode"),
    "checkpointed": (
        lambda: Between(lambda self, x: checkpoint(lambda y: self.sn(self.norm(y)), x, use_reentrant=False)),
        "sets a mode",
    ),
    "other forward": (with_other_forward, r"the network \(Sequential\) has a forward of its own object"),
    "graph": (
        lambda: torch.fx.symbolic_trace(torch.nn.Sequential(conv_norm(3, 4), lif())),
        "has a way of its own to be pickled",
    ),
    "fused": (lambda: snnkern.fuse(torch.nn.Sequential(conv_norm(3, 4), lif())), r"\(Sequential\) is fused already"),
    "not called": (lambda: torch.nn.ModuleList([Norm(3), lif()]), "nothing that torch.fx traces calls it"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_shown_is_left(name: str) -> None:
    network, why = LEFT[name]
    net = network()
    before = {id(m): (type(m), dict(vars(m)), m.training) for m in net.modules()}
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=f"0 pairs of BatchNorm and neuron are one operator\nleft: .*\n(.*\n)*.*{why}"):
        _, report = fused(net, inplace=True)
    assert not report.pairs
    assert set(report.left) == {n for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert all(before[id(m)] == (type(m), dict(vars(m)), m.training) for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_reason_for_each_norm_that_is_left() -> None:
    _, report = fused(made(NETWORKS["resnet"][0]))
    assert report.left == {"2.1.downsample.1": "its output goes to +="}
    assert str(report).startswith(
        "7 pairs of BatchNorm and neuron are one operator\n  0.1 -> 1\n  2.0.bn1.0 -> 2.0.sn1\n"
    )
    assert str(report).endswith("\nleft: 1\n  2.1.downsample.1: its output goes to +=")
    untraceable = torch.nn.Sequential(torch.nn.Sequential(conv_norm(3, 4), lif()), Between(branches))
    _, report = fused(untraceable)
    assert [str(pair) for pair in report.pairs] == ["0.0.1 -> 0.1"]
    assert list(report.left) == ["1.bn"] and "torch.fx cannot trace 1 (Between)" in report.left["1.bn"]


def test_the_reason_is_there_where_parts_of_a_module_cannot_be_calls() -> None:
    net = made(OfHalves)
    together, report = fused(net)
    assert [str(pair) for pair in report.pairs] == ["halves.layer.1 -> halves.sn"]
    assert "cannot trace the network (OfHalves) around its parts: TraceError: Proxy" in report.left["bn.0"]
    check_same(together, net, noise(X, torch.float64, 1))


def test_what_the_forward_refuses_is_refused() -> None:
    net, report = fused(made(lambda: Attention(4)))
    assert len(report.pairs) == 3
    with pytest.raises(ValueError, match=r"the network refuses this input, in .*forward, line \d+"):
        net(noise((4, 2, 4), torch.float64, 1))
    with pytest.raises(ValueError, match="the network refuses this input"):
        net(noise((4, 2, 3, 5), torch.float64, 1))


def test_channels_behind_the_rest(device: str) -> None:
    """As after a linear layer, where BatchNorm1d gets channels and the neuron the layer's output."""

    class Tokens(torch.nn.Module):
        def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
            super().__init__()
            self.linear, self.bn, self.sn, self.of = torch.nn.Linear(8, 8), Norm1(8), lif(), forward

        def forward(self, x: Tensor) -> Tensor:
            return self.of(self, x)

    def transposed(self: Any, x: Tensor) -> Tensor:
        y = self.bn(self.linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.sn(y.reshape(x.shape[0], x.shape[1], -1, 8).contiguous())

    def flat(self: Any, x: Tensor) -> Tensor:
        y = self.bn(self.linear(x.flatten(0, 2)))
        return self.sn(y.view(x.shape[0], x.shape[1], x.shape[2], 8) + x)

    for of in (transposed, flat):
        net = made(lambda of=of: Tokens(of)).to(device)
        together, report = fused(net)
        assert len(report.pairs) == 1 and not report.left
        check_same(together, net, noise((4, 2, 8, 8), torch.float64, 1, device))
        with pytest.MonkeyPatch.context() as patch:  # it is one operator
            patch.setattr(torch.nn.functional, "batch_norm", None)
            together(noise((4, 2, 8, 8), torch.float64, 1, device))


def test_other_shapes_run_one_after_the_other(device: str) -> None:
    def mixed(self: Any, x: Tensor) -> Tensor:  # channels are no channels behind it
        return self.sn(self.bn(self.conv(x.flatten(0, 1))).reshape(x.shape[0], -1, 2, 2, 8))

    def broadcast(self: Any, x: Tensor) -> Tensor:
        return self.sn(self.norm(x) + x[:, :, :1])

    for of in (mixed, broadcast):
        net = made(lambda of=of: Between(of)).to(device)
        together, report = fused(net)
        assert len(report.pairs) == 1
        check_same(together, net, noise(X, torch.float64, 1, device))


@pytest.mark.parametrize("batch_first", [False, True])
def test_hooks_and_other_modules_later(batch_first: bool) -> None:
    layers = [Conv(3, 4, 3, padding=1, bias=False), Norm(4)]
    net = made(lambda: torch.nn.Sequential(nn.PerStep(*layers, batch_first=batch_first), lif(batch_first=batch_first)))
    together, _ = fused(net)
    seen: list[Any] = []
    for other in (net, together):
        for module in (other[0][1], other[1]):
            module.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out.detach())))
    x = noise(X, torch.float64, 1)
    check_same(together, net, x)
    assert len(seen) == 3 * 4  # calls of two hooks in each network
    for i in range(0, 12, 4):
        torch.testing.assert_close(seen[i : i + 2], seen[i + 2 : i + 4])
    together[0][1] = net[0][1] = torch.nn.Identity()
    check_same(together, net, x)
    together[0].register_forward_hook(lambda *args: None)
    with pytest.raises(RuntimeError, match="a hook on this PerStep would not be called"):
        together(x)


def test_layers_that_are_added_later_are_an_error() -> None:
    def sequential() -> torch.nn.Module:
        return torch.nn.Sequential(conv_norm(3, 4), lif())

    for change in (lambda net: net.append(torch.nn.Identity()), lambda net: net[0].append(torch.nn.Identity())):
        net, _ = fused(sequential())
        change(net)
        with pytest.raises(
            RuntimeError, match=r"has other layers than when it was fused, .*: add and remove layers before"
        ):
            net(noise(X, torch.float32, 1))
    net, _ = fused(made(NETWORKS["spikformer"][0]))
    net.blocks.append(torch.nn.Identity())  # the forward that goes through these is not replaced
    net(noise(X, torch.float64, 1))


def test_before_and_after_loading(tmp_path: Path) -> None:
    net = made(NETWORKS["resnet"][0])
    x = noise(X, torch.float64, 1)
    net(x)
    after, _ = fused(made(NETWORKS["resnet"][0]))
    after.load_state_dict(net.state_dict())
    before, _ = fused(net)
    net.eval(), before.eval(), after.eval()
    nn.reset([net, before])
    expected = net(x)
    torch.testing.assert_close(before(x), expected)
    torch.testing.assert_close(after(x), expected)
    plain = made(NETWORKS["resnet"][0]).eval()
    plain.load_state_dict(before.state_dict())
    torch.testing.assert_close(plain(x), expected)


def test_copies_and_states(tmp_path: Path) -> None:
    net = made(NETWORKS["spikformer"][0])
    x = noise(X, torch.float64, 1)
    net(x)
    together, _ = fused(net)  # a copy with the states
    assert torch.equal(together.stem[1].v, net.stem[1].v) and type(net) is Spikformer
    same, _ = fused(net, inplace=True)
    assert same is net and isinstance(same, Spikformer)
    torch.save(together, tmp_path / "net.pt")
    copies = [copy.deepcopy(together), pickle.loads(pickle.dumps(together))]
    copies.append(torch.load(tmp_path / "net.pt", weights_only=False))
    copies.append(copy.deepcopy(copies[0]))
    expected = together(x)
    for other in copies:
        torch.testing.assert_close(other(x), expected)
    assert torch.equal(copies[0].stem[0][1].running_mean, together.stem[0][1].running_mean)


@pytest.mark.parametrize("name", ["resnet", "spikformer"])
def test_compile(name: str, device: str) -> None:
    net, _ = fused(made(NETWORKS[name][0]).to(device))
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)
    check_same(compiled, net, noise(X, torch.float64, 1, device))


TRACED_FIRST = """
import torch
from torch.utils.checkpoint import checkpoint

import snnkern


class Checkpointed(torch.nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def layers():
    norm = snnkern.nn.PerStep(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return norm, snnkern.nn.LIF(surrogate=snnkern.surrogate.ATan())


snnkern.fuse(Checkpointed(*layers()))
net = snnkern.fuse(torch.nn.Sequential(*layers()))
print(torch.compile(net, backend="eager", fullgraph=True)(torch.zeros(2, 2, 3, 5, 5)).sum().item())
"""


def test_compile_after_a_trace_that_imports_what_compiles() -> None:
    """A checkpoint does; torch._dynamo would keep what a trace puts in the place of Python's functions."""
    assert fresh_process(TRACED_FIRST).split() == ["0.0"]


def test_checkpoint(device: str) -> None:
    net = made(NETWORKS["spikformer"][0]).to(device)
    together, _ = fused(net)
    x = noise(X, torch.float64, 1, device).requires_grad_()
    expected, grads = results(net, x)
    nn.reset(together)
    out = checkpoint(together, x, use_reentrant=False)
    found = torch.autograd.grad(
        (out * noise(tuple(out.shape), out.dtype, 77, device)).sum(), [x, *together.parameters()]
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(list(found), grads)
    torch.testing.assert_close(dict(together.named_buffers()), dict(net.named_buffers()))  # counted once


def test_a_trace_of_the_fused_network_is_that_of_the_network() -> None:
    net = made(lambda: torch.nn.Sequential(conv_norm(3, 4), lif()))
    together, _ = fused(net)
    traced = torch.fx.symbolic_trace(together)
    assert [str(n.target) for n in traced.graph.nodes if n.op == "call_module"] == ["0.0", "0.1", "1"]
    x = noise(X, torch.float64, 1)
    expected = net(x)
    torch.testing.assert_close(traced(x), expected)


def test_export_with_any_number_of_steps_and_samples() -> None:
    net = snnkern.fuse(made(NETWORKS["sew"][0]).eval())
    x = noise(X, torch.float64, 1)
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("N")}
    program = torch.export.export(net, (x,), dynamic_shapes=(sizes,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("snnkern.lif_norm_forward.default") == 8
    other = noise((5, 3, *X[2:]), torch.float64, 2)
    torch.testing.assert_close(program.module()(other), net(other))


def test_in_place_additions_change_what_they_changed() -> None:
    class Alias(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sn = conv_norm(3, 3), lif()

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            y = x * scale
            z = y
            y += 1
            return self.sn(self.layer(x)) + z

    net = made(Alias)
    together, report = fused(net)
    assert len(report.pairs) == 1
    x = noise(X, torch.float64, 1)
    torch.testing.assert_close(together(x, scale=2.0), net(x=x, scale=2.0))


def test_the_shape_of_a_norms_output_may_be_read(device: str) -> None:
    def reads(self: Any, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.flatten(0, 1)))
        z = y.reshape(x.shape[0], x.shape[1], *[y.shape[i] for i in (1, 2, 3)])
        out = self.sn(z + x[:, :, :1].expand(z.shape))
        return out * z.size(2)

    net = made(lambda: Between(reads)).to(device)
    together, report = fused(net)
    assert [str(pair) for pair in report.pairs] == ["bn -> + -> sn"]
    check_same(together, net, noise(X, torch.float64, 1, device))


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SpikingJelly's models, which want torchvision for a function that downloads weights."""
    library("spikingjelly.activation_based.layer")
    if "torchvision" not in sys.modules:
        loads = types.ModuleType("torchvision._internally_replaced_utils")
        loads.load_state_dict_from_url = None  # type: ignore[attr-defined]
        for name, module in (("torchvision", types.ModuleType("torchvision")), (loads.__name__, loads)):
            monkeypatch.setitem(sys.modules, name, module)
    from spikingjelly.activation_based.model import sew_resnet, spikformer

    return sew_resnet, spikformer


@pytest.mark.parametrize("name", ["sew_resnet18", "spikformer"])
def test_models_of_spikingjelly(name: str, models: Any) -> None:
    from spikingjelly.activation_based import functional, neuron

    sew_resnet, spikformer = models
    if name == "sew_resnet18":
        net = sew_resnet.sew_resnet18(cnf="ADD", num_classes=10, spiking_neuron=neuron.IFNode)
        functional.set_step_mode(net, "m")
        x, pairs, left = noise((2, 2, 3, 32, 32), torch.float64, 1), 20, 0
    else:
        small = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4, "embed_dims": 16, "num_heads": 2, "depths": 1}
        net = spikformer.Spikformer(T=2, num_classes=10, **small)
        x, pairs, left = noise((2, 3, 16, 16), torch.float64, 1), 7, 2
    net = snnkern.convert(net.double())
    together, report = fused(net)
    assert (len(report.pairs), len(report.left)) == (pairs, left)
    assert all("(MaxPool2d)" in why for why in report.left.values())
    assert list(together.state_dict()) == list(net.state_dict())
    check_same(together, net, x)


PAIRS_OF_FILES = {
    "qkformer": 2, "sew_resnet": 4, "snn_delays": 1, "spike_driven_transformer": 8, "spike_driven_transformer_v2": 4,
    "spikformer": 7, "spikingformer": 2,
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
@pytest.mark.usefixtures("installed")
def test_model_files_in_the_style_of_published_ones(path: Path) -> None:
    torch.manual_seed(0)
    net, x = load(path).make()
    net, x = net.double(), x.double()
    together, report = fused(net)
    assert len(report.pairs) == PAIRS_OF_FILES[path.stem]
    found = []
    for each in (net, together):
        torch.manual_seed(1)  # of a dropout
        out = each(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(each.parameters()))])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_errors() -> None:
    net = torch.nn.Sequential(conv_norm(3, 4), lif())
    with pytest.raises(TypeError, match=r"snnkern\.fuse: net must be a torch\.nn\.Module, got int"):
        snnkern.fuse(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="net must not be wrapped yet, got DataParallel: fuse what is in it"):
        snnkern.fuse(torch.nn.DataParallel(net))
    with pytest.raises(TypeError, match="net must not be wrapped yet, got OptimizedModule"):
        snnkern.fuse(torch.compile(net, backend="eager"))
    with pytest.raises(TypeError, match="inplace must be True or False, got 1"):
        snnkern.fuse(net, inplace=1)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snnkern.fuse(net)
