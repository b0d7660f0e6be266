"""In the style of QKFormer: a spike of a token or channel lets the keys pass."""

import torch
from spikingjelly.clock_driven import layer
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode
from torch import nn


class TokenAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q_conv, self.q_bn = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim)
        self.k_conv, self.k_bn = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim)
        self.q_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.k_lif = MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True, backend="cupy")
        self.attn_lif = MultiStepLIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, backend="cupy")

    def forward(self, x):
        T, B, C, N = x.shape
        flat = x.flatten(0, 1)
        q = self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, N))
        k = self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, N))
        q = q.reshape(T, B, self.heads, C // self.heads, N).sum(3, keepdim=True)
        return (self.attn_lif(q) * k.reshape(T, B, self.heads, C // self.heads, N)).flatten(2, 3)


class Net(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.embed = nn.Sequential(
            layer.SeqToANNContainer(nn.Conv2d(3, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.MaxPool2d(2)),
            MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"),
        )
        self.attention, self.head = TokenAttention(dim, 4), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.embed(x.unsqueeze(0).repeat(4, 1, 1, 1, 1)).flatten(3)
        return self.head((x + self.attention(x)).mean(3)).mean(0)


def make():
    return Net(), torch.rand(4, 3, 8, 8)
