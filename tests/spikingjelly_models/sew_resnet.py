"""In the style of SEW-ResNet: the C++ extension's integrate-and-fire, containers, and spikes that are added."""

import torch
from spikingjelly.cext import neuron as cext_neuron
from spikingjelly.clock_driven import layer
from torch import nn


def conv3x3(inside, outside, stride=1):
    return layer.SeqToANNContainer(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside))


class BasicBlock(nn.Module):
    def __init__(self, planes, connect_f):
        super().__init__()
        self.connect_f = connect_f
        self.conv1, self.sn1 = conv3x3(planes, planes), cext_neuron.MultiStepIFNode(detach_reset=True)
        self.conv2, self.sn2 = conv3x3(planes, planes), cext_neuron.MultiStepIFNode(detach_reset=True)

    def forward(self, x):
        out = self.sn2(self.conv2(self.sn1(self.conv1(x))))
        return {"ADD": lambda: x + out, "AND": lambda: x * out, "IAND": lambda: x * (1.0 - out)}[self.connect_f]()


class Net(nn.Module):
    def __init__(self, planes=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.sn1 = cext_neuron.MultiStepIFNode(detach_reset=True)
        self.maxpool = layer.SeqToANNContainer(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*(BasicBlock(planes, f) for f in ("ADD", "IAND")))
        self.avgpool = layer.SeqToANNContainer(nn.AdaptiveAvgPool2d((1, 1)))
        self.fc = nn.Linear(planes, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).unsqueeze(0).repeat(4, 1, 1, 1, 1)
        x = self.avgpool(self.blocks(self.maxpool(self.sn1(x))))
        return self.fc(torch.flatten(x, 2).mean(0))


def make():
    return Net(), torch.rand(4, 3, 8, 8)
