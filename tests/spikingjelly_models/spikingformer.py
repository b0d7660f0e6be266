"""In the style of Spikingformer: spikes first, then convolution and norm, and what is added are potentials."""

import torch
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from torch import nn


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.conv, self.bn = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        return x + self.bn(self.conv(self.lif(x).flatten(0, 1))).reshape(T, B, C, H, W).contiguous()


class Net(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.blocks = nn.Sequential(Block(dim), Block(dim))
        self.lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.bn(self.conv(x)).unsqueeze(0).repeat(4, 1, 1, 1, 1)
        return self.head(self.lif(self.blocks(x)).flatten(3).mean(3)).mean(0)


def make():
    return Net(), torch.rand(4, 3, 8, 8)
