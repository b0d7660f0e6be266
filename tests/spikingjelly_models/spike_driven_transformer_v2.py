"""In the style of the Spike-driven Transformer V2: separable convolutions between neurons, one step."""

import torch
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from torch import nn


class SepConv(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.lif1 = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.pwconv1, self.bn1 = nn.Conv2d(dim, 2 * dim, 1, bias=False), nn.BatchNorm2d(2 * dim)
        self.lif2 = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.pwconv2, self.bn2 = nn.Conv2d(2 * dim, dim, 1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, _, H, W = x.shape
        y = self.bn1(self.pwconv1(self.lif1(x).flatten(0, 1))).reshape(T, B, -1, H, W)
        y = self.bn2(self.pwconv2(self.dwconv(self.lif2(y).flatten(0, 1))))
        return x + y.reshape(T, B, -1, H, W)


class Net(nn.Module):
    def __init__(self, T=1, dim=8):
        super().__init__()
        self.T = T
        self.encode_conv, self.encode_bn = nn.Conv2d(3, dim, 3, 2, 1), nn.BatchNorm2d(dim)
        self.blocks = nn.Sequential(SepConv(dim), SepConv(dim))
        self.lif, self.head = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.encode_bn(self.encode_conv(x)).unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.lif(self.blocks(2 * x)).flatten(3).mean(3)).mean(0)


def make():
    return Net(), torch.rand(8, 3, 16, 16)
