// The autograd kernels, once for every neuron.
#pragma once
#include <ATen/core/stack.h>

#include "spec.h"

namespace snnkern {

// Under grad it runs `_<neuron>_train` and records a node that calls `<neuron>_backward`; otherwise `<neuron>_forward`
// itself.
void autograd(const NeuronSpec& neuron, torch::jit::Stack& stack);

// Of `<neuron>_backward`: a surrogate gradient is no derivative, so a second derivative would be silently wrong. Asking
// for one is an error.
void autograd_of_backward(const NeuronSpec& neuron, torch::jit::Stack& stack);

}  // namespace snnkern
