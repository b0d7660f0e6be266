"""In the style of SNN-delays: layers with a step mode, learned decays, potentials as the output."""

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        common = {"surrogate_function": surrogate.ATan(alpha=5.0), "detach_reset": True, "step_mode": "m"}
        self.model = nn.Sequential(
            layer.Linear(20, 16, bias=False, step_mode="m"),
            layer.BatchNorm1d(16, step_mode="m"),
            neuron.ParametricLIFNode(init_tau=1.005, v_threshold=1.0, decay_input=False, store_v_seq=True, **common),
            layer.Dropout(0.4, step_mode="m"),
            layer.SynapseFilter(tau=2.0, learnable=True, step_mode="m"),
            layer.Linear(16, 10, bias=False, step_mode="m"),
            neuron.LIFNode(tau=1.005, v_threshold=1e9, decay_input=False, store_v_seq=True, **common),
        )

    def forward(self, x):
        functional.reset_net(self)
        self.model(x.transpose(0, 1))
        return self.model[-1].v_seq.softmax(-1).sum(0)


def make():
    return Net(), (torch.rand(4, 12, 20) < 0.3).float()
