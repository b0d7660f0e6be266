"""In the style of Spikformer: convolution, norm, spikes; attention of spikes without a softmax."""

import torch
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from torch import nn


def lif(**kwargs):
    return MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy", **kwargs)


class Projection(nn.Module):
    def __init__(self, dim, out, **kwargs):
        super().__init__()
        self.linear, self.bn, self.lif = nn.Linear(dim, out), nn.BatchNorm1d(out), lif(**kwargs)

    def forward(self, x):
        T, B, N, _ = x.shape
        y = self.bn(self.linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.lif(y.reshape(T, B, N, -1).contiguous())


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        self.q, self.k, self.v, self.out = (Projection(dim, dim) for _ in range(4))
        self.attn_lif = lif(v_threshold=0.5)

    def forward(self, x):
        T, B, N, C = x.shape
        q, k, v = (f(x).reshape(T, B, N, self.heads, -1).transpose(2, 3) for f in (self.q, self.k, self.v))
        x = (q @ k.transpose(-2, -1)) @ v * self.scale
        return self.out(self.attn_lif(x.transpose(2, 3).reshape(T, B, N, C).contiguous()))


class Net(nn.Module):
    def __init__(self, T=4, dim=16):
        super().__init__()
        self.T = T
        self.conv, self.bn, self.lif = nn.Conv2d(3, dim, 3, 2, 1), nn.BatchNorm2d(dim), lif()
        self.attn = Attention(dim, 4)
        self.mlp = nn.Sequential(Projection(dim, 2 * dim), Projection(2 * dim, dim))
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        T, B = x.shape[:2]
        x = self.bn(self.conv(x.flatten(0, 1)))
        x = self.lif(x.reshape(T, B, *x.shape[1:]).contiguous()).flatten(-2).transpose(-1, -2)
        x = x + self.attn(x)
        x = x + self.mlp(x)
        return self.head(x.mean(2)).mean(0)


def make():
    return Net(), torch.rand(4, 3, 16, 16)
