"""snnkern.nn.BatchNormNeuron is torch's BatchNorm and a neuron, one after the other, with the same parameters and buffers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_norm import laid_out
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from snnkern import functional, nn, surrogate

from support import NEURON_NAMES, calm, function, neuron_class, noise, options_of

SHAPE = (6, 3, 4, 5, 5)  # [T, N, C, H, W]


class Apart(torch.nn.Module):
    """The two modules."""

    def __init__(self, together: nn.BatchNormNeuron) -> None:
        super().__init__()
        settings = {name: getattr(together, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
        self.norm = torch.nn.BatchNorm2d(together.num_features, **settings).double()
        self.norm.load_state_dict({k: v for k, v in together.state_dict().items() if not k.startswith("neuron.")})
        self.neuron = copy.deepcopy(together.neuron)

    def forward(self, x_seq: Tensor, residual_seq: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.norm(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
        y = y if residual_seq is None else y + residual_seq
        return self.neuron(y), y


def made(neuron: torch.nn.Module | None = None, **options: Any) -> nn.BatchNormNeuron:
    together = nn.BatchNormNeuron(SHAPE[2], neuron or nn.LIF(surrogate=surrogate.ATan()), **options).double()
    for i, t in enumerate(t for t in (together.weight, together.bias) if t is not None):
        t.data = noise((SHAPE[2],), torch.float64, 90 + i) * 0.3 + 1 - i
    return together


def gradients(net: torch.nn.Module, out: Tensor, others: list[Tensor]) -> list[Tensor]:
    leaves = [*net.parameters(), *others]
    loss = (out * noise(tuple(out.shape), out.dtype, 77, str(out.device))).sum()
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True))


def buffers(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name.rpartition(".")[2]: t for name, t in net.named_buffers()}


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def check(together: nn.BatchNormNeuron, device: str, layout: str = "contiguous", with_residual: bool = False) -> None:
    """Two batches of training, in chunks that go on with the state, and two of evaluation."""
    apart = Apart(together).to(device)
    together.to(device)
    for call in range(4):
        together.train(call < 2)
        apart.train(call < 2)
        x, residual = (laid_out(noise(SHAPE, torch.float64, 10 * call + i, device, 2.0) + 1, layout) for i in (0, 1))
        leaves = [x.requires_grad_(), residual.requires_grad_()] if with_residual else [x.requires_grad_()]
        nn.detach([together, apart])
        out, y = together(*leaves, with_sum=True)
        wanted, wanted_y = apart(*leaves)
        assert torch.equal(out, wanted)
        assert_same(y, wanted_y)
        assert_same(together.neuron.v, apart.neuron.v)
        assert out.stride() == x.stride()
        # y may be read elsewhere, too.
        assert_same(gradients(together, out + y, leaves), gradients(apart, wanted + wanted_y, leaves))
        assert torch.equal(together(*leaves), apart(*leaves)[0])
        assert_same(buffers(together), buffers(apart))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track_running_stats", [True, False])
def test_training_and_evaluation(track_running_stats: bool, affine: bool, momentum: float | None, device: str) -> None:
    neuron = nn.LIF(v_reset=None)
    together = made(neuron, momentum=momentum, affine=affine, track_running_stats=track_running_stats, eps=1e-3)
    check(together, device)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch first"])
def test_both_shortcuts_in_every_layout(layout: str, with_residual: bool, device: str) -> None:
    check(made(), device, layout, with_residual)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_every_neuron(neuron: str, device: str) -> None:
    module = getattr(nn, neuron_class(neuron).module)
    together = made(module(**options_of(neuron, surrogate=surrogate.ATan())))
    together.weight.data *= calm(neuron, "hard")
    together.bias.data *= calm(neuron, "hard")
    together.to(device)
    apart = Apart(together).to(device)
    x = noise(SHAPE, torch.float64, 1, device, 2.0).requires_grad_()
    out, (wanted, _) = together(x), apart(x)
    torch.testing.assert_close(out, wanted, rtol=1e-7, atol=1e-7)
    found, expected = gradients(together, out, [x]), gradients(apart, wanted, [x])
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) < 1e-7


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_every_function(neuron: str, device: str) -> None:
    x = noise((5, 3, 4), torch.float64, 1, device)
    running = [noise((4,), torch.float64, 2, device), noise((4,), torch.float64, 3, device) ** 2 + 1]
    kept = [t.clone() for t in running]
    learned = {t.name: torch.tensor(0.4, device=device) for t in neuron_class(neuron).learned}
    options: dict[str, Any] = {"v_reset": 0.125, "surrogate": surrogate.ATan(), "store_v_seq": True}
    options = options_of(neuron, **options) | learned
    for training in (True, False):
        y = torch.nn.functional.batch_norm(x.flatten(0, 1), *kept, training=training, momentum=0.3).unflatten(0, (5, 3))
        expected = function(functional, neuron)(y, **options)
        normed = getattr(functional, f"batch_norm_{neuron}")
        *found, sum_seq = normed(
            x,
            running_mean=running[0],
            running_var=running[1],
            training=training,
            momentum=0.3,
            with_sum=True,
            **options,
        )
        assert_same([*found, sum_seq, *running], [*expected, y, *kept])


def test_batch_first(device: str) -> None:
    together, first = (
        made(nn.LIF(store_v_seq=True, batch_first=batch_first)).to(device) for batch_first in (False, True)
    )
    x, residual = noise(SHAPE, torch.float64, 1, device), noise(SHAPE, torch.float64, 2, device)
    expected = together(x, residual, with_sum=True)
    found = first(x.transpose(0, 1).contiguous(), residual.transpose(0, 1), with_sum=True)
    assert first.batch_first and not together.batch_first
    assert_same([*found, first.neuron.v_seq], [t.transpose(0, 1) for t in (*expected, together.neuron.v_seq)])


@pytest.mark.parametrize(
    "options",
    [
        {"strict": True, "delay_reset": True},
        {"max_spikes": 3, "v_min": -0.5, "v_reset": None},
        {"tau": torch.tensor([2.0, 3.0, 4.0, 5.0]), "channels": 4, "v_init": 0.25},
        {"learn_tau": True, "store_v_seq": True, "detach_reset": True},
    ],
    ids="-".join,
)
def test_conventions_and_numbers(options: dict[str, Any], device: str) -> None:
    check(made(nn.LIF(surrogate=surrogate.ATan(), **options)), device, with_residual=True)


def test_learned_and_smooth(device: str) -> None:
    neuron = nn.LIF(learn_tau=True, learn_v_threshold=True, channels=SHAPE[2], surrogate=surrogate.ATan(spiking=False))
    check_smooth = made(neuron).to(device)
    apart = Apart(check_smooth).to(device)
    x = noise(SHAPE, torch.float64, 1, device, 2.0).requires_grad_()
    out, (wanted, _) = check_smooth(x), apart(x)
    assert_same(out, wanted)
    assert_same(gradients(check_smooth, out, [x]), gradients(apart, wanted, [x]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_autocast(dtype: torch.dtype, device: str) -> None:
    together = made().to(device).float()
    x = noise(SHAPE, dtype, 1, device)
    out = together(x)
    assert out.dtype == dtype and together.neuron.v.dtype == together.running_mean.dtype == torch.float32
    nn.reset(together)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(together(x), out)
    nn.reset(together)
    together.to(dtype)
    assert together.running_mean.dtype == dtype
    assert torch.equal(together(x), out) or dtype != torch.float32


def test_the_state_dict_is_that_of_torchs_batch_norm() -> None:
    together, norm = made(), torch.nn.BatchNorm2d(SHAPE[2]).double()
    assert list(together.state_dict()) == list(norm.state_dict())
    norm(noise(SHAPE, torch.float64, 1)[0])
    together.load_state_dict(norm.state_dict())
    assert_same(buffers(together), buffers(norm))
    learned = made(nn.ParametricLIF())
    assert [name for name in learned.state_dict() if name not in norm.state_dict()] == ["neuron.w"]
    other = made(nn.ParametricLIF(init_tau=5.0))
    other.load_state_dict(learned.state_dict())
    x = noise(SHAPE, torch.float64, 1)
    assert torch.equal(other(x), learned(x))
    norm.num_batches_tracked += 1
    together.reset_running_stats()
    assert together.num_batches_tracked == 0 and together.running_mean.abs().max() == 0


def test_copies(tmp_path: Path) -> None:
    together = made(nn.ParametricLIF())
    x = noise(SHAPE, torch.float64, 1)
    together(x)
    pickled = pickle.loads(pickle.dumps(together))
    torch.save(together, tmp_path / "net.pt")
    copies = [copy.deepcopy(together), pickled, torch.load(tmp_path / "net.pt", weights_only=False)]
    expected = together(x)
    for other in copies:
        assert torch.equal(other(x), expected)
        assert_same(buffers(other), buffers(together))
        assert torch.equal(other.neuron.v, together.neuron.v)


def test_repr() -> None:
    text = repr(nn.BatchNormNeuron(4, nn.LIF(tau=3.0), momentum=None))
    for part in ("BatchNormNeuron(", "4, eps=1e-05, momentum=None", "(neuron): LIF(tau=3.0"):
        assert part in text


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile(momentum: float | None, device: str) -> None:
    together = made(momentum=momentum).to(device)
    eager = copy.deepcopy(together)
    compiled = torch.compile(together, backend="aot_eager", fullgraph=True)
    x, residual = (noise(SHAPE, torch.float64, i, device).requires_grad_() for i in (0, 1))
    for training in (True, True, False):
        eager.train(training)
        together.train(training)
        nn.detach([eager, together])
        out, wanted = compiled(x, residual), eager(x, residual)
        assert_same(out, wanted)
        assert_same(gradients(together, out, [x, residual]), gradients(eager, wanted, [x, residual]))
        assert_same(buffers(together), buffers(eager))


def test_export_and_fx() -> None:
    x = noise(SHAPE, torch.float64, 1)
    net = torch.nn.Sequential(made().eval())
    nn.reset(net)
    expected = net(x)
    nn.reset(net)
    assert_same(torch.export.export(net, (x,)).module()(x), expected)
    assert_same(torch.fx.symbolic_trace(net)(x), expected)
    with pytest.raises(RuntimeError, match=r"torch\.fx cannot look into BatchNormNeuron"):
        torch.fx.symbolic_trace(net[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputation_counts_no_batch(use_reentrant: bool, device: str) -> None:
    together = made(momentum=None).to(device)
    plain = copy.deepcopy(together)
    x = noise(SHAPE, torch.float64, 1, device, 2.0).requires_grad_()
    out, wanted = checkpoint(together, x, use_reentrant=use_reentrant), plain(x)
    assert torch.equal(out, wanted)
    out.sum().backward()
    found = [x.grad, *(p.grad for p in together.parameters())]
    assert_same(found, list(torch.autograd.grad(wanted.sum(), [x, *plain.parameters()])))
    assert together.num_batches_tracked == 1
    assert_same(buffers(together), buffers(plain))


def test_evaluation_is_the_same_for_any_batch(device: str) -> None:
    together = made().to(device)
    together(noise(SHAPE, torch.float64, 1, device))
    together.eval()
    x = noise(SHAPE, torch.float64, 2, device)
    nn.reset(together)
    whole = together(x)
    nn.reset(together)
    assert torch.equal(together(x[:, :1]), whole[:, :1])


def test_errors() -> None:
    together = made()
    with pytest.raises(
        RuntimeError, match=r"x_seq must be \[T, N, C, ...\] with C = num_features = 4, got shape \[6, 3\]"
    ):
        together(torch.zeros(6, 3))
    with pytest.raises(RuntimeError, match=r"C = num_features = 4, got shape \[6, 3, 5\]"):
        together(torch.zeros(6, 3, 5))
    with pytest.raises(RuntimeError, match=r"residual_seq must have the shape of x_seq, \[6, 3, 4\], got \[6, 3, 1\]"):
        together(torch.zeros(6, 3, 4).double(), torch.zeros(6, 3, 1).double())
    with pytest.raises(TypeError, match="x_seq must be a tensor, got 3"):
        together(3)
    with pytest.raises(ValueError, match="more than one value a channel"):
        together(torch.zeros(1, 1, 4).double())
    with pytest.raises(ValueError, match="num_features must be a positive integer, got 0"):
        nn.BatchNormNeuron(0, nn.LIF())
    with pytest.raises(ValueError, match="eps must be > 0, got 0"):
        nn.BatchNormNeuron(4, nn.LIF(), eps=0)
    with pytest.raises(TypeError, match="momentum must be a number or None, got 'fast'"):
        nn.BatchNormNeuron(4, nn.LIF(), momentum="fast")
    with pytest.raises(TypeError, match="affine must be True or False, got 1"):
        nn.BatchNormNeuron(4, nn.LIF(), affine=1)
    with pytest.raises(TypeError, match="neuron must be a neuron of snnkern, got ReLU"):
        nn.BatchNormNeuron(4, torch.nn.ReLU())

    with pytest.raises(TypeError, match=r"process_group must be a torch\.distributed\.ProcessGroup or None, got 3"):
        nn.BatchNormNeuron(4, nn.LIF(), process_group=3)

    class Own(nn.LIF):
        def forward(self, x_seq: Tensor) -> Tensor:
            return super().forward(2 * x_seq)

    with pytest.raises(TypeError, match="neuron cannot run behind a BatchNorm: Own has a forward of its own"):
        nn.BatchNormNeuron(4, Own())
    with pytest.raises(RuntimeError, match="TorchScript cannot compile it"):
        torch.jit.script(together)
    together.neuron.register_forward_hook(lambda *args: None)
    with pytest.raises(
        RuntimeError, match="a hook on its neuron would not be called: register it on the BatchNormNeuron"
    ):
        together(noise(SHAPE, torch.float64, 1))
    running = torch.zeros(4)
    with pytest.raises(ValueError, match="running_mean and running_var must be given together, or neither"):
        functional.batch_norm_lif(torch.zeros(6, 3, 4), running, None)
    with pytest.raises(ValueError, match="running_mean and running_var must be given with training=False"):
        functional.batch_norm_lif(torch.zeros(6, 3, 4), None, None)
    with pytest.raises(TypeError, match="batch_norm_lif: weight must be a tensor, got 3"):
        functional.batch_norm_lif(torch.zeros(6, 3, 4), running, running, 3)
    with pytest.raises(TypeError, match="batch_norm_lif: training must be True or False, got 1"):
        functional.batch_norm_lif(torch.zeros(6, 3, 4), running, running, training=1)
    with pytest.raises(TypeError, match=r"batch_norm_lif: channel_dim must be an integer, got 2\.0"):
        functional.batch_norm_lif(torch.zeros(6, 3, 4), running, running, channel_dim=2.0)
