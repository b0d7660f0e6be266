// The autograd kernel of `<neuron>_forward`, once for every neuron.
#pragma once
#include <ATen/core/stack.h>

#include "spec.h"

namespace snnkern {

// Under grad it runs `_<neuron>_train` and records a node that calls `<neuron>_backward`; otherwise `<neuron>_forward` itself.
void autograd(const NeuronSpec& neuron, torch::jit::Stack& stack);

}  // namespace snnkern
