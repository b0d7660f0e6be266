"""In the style of the Spike-driven Transformer V1: attention by masks, sums of spikes through a neuron, a choice of neurons."""

import torch
from spikingjelly.clock_driven import functional, layer
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode
from torch import nn


def spikes(mode, **kwargs):
    if mode == "lif":
        return MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy", **kwargs)
    return MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True, backend="cupy", **kwargs)


class Attention(nn.Module):
    def __init__(self, dim, mode):
        super().__init__()
        self.shortcut_lif, self.talking_heads = spikes(mode), spikes(mode, v_threshold=0.5)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim)) for _ in range(4)
        )
        self.lifs = nn.ModuleList(spikes(mode) for _ in range(3))

    def forward(self, x):
        T, B, C, H, W = x.shape
        flat = self.shortcut_lif(x).flatten(0, 1)
        convs = [functional.seq_to_ann_forward(flat.reshape(T, B, C, H, W), conv) for conv in self.convs[:3]]
        q, k, v = (lif(y) for lif, y in zip(self.lifs, convs, strict=True))
        mask = self.talking_heads((q * k).sum((-2, -1), keepdim=True))
        return x + self.convs[3]((v * mask).flatten(0, 1)).reshape(T, B, C, H, W)


class Net(nn.Module):
    def __init__(self, mode="lif", dim=8):
        super().__init__()
        self.embed = layer.SeqToANNContainer(nn.Conv2d(3, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))
        self.blocks = nn.ModuleList(Attention(dim, mode) for _ in range(2))
        self.lif, self.dropout, self.head = spikes(mode), layer.MultiStepDropout(0.1), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.embed(x.unsqueeze(0).repeat(4, 1, 1, 1, 1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.lif(x).mean((-2, -1)))).mean(0)


def make():
    return Net("plif"), torch.rand(4, 3, 8, 8)
