// The autograd kernels, once for every neuron.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include "host.h"

namespace snnkern {

// A neuron and its operators, once they are defined. A node of a graph refers to it, so it must live as long as any.
struct Differentiable {
  explicit Differentiable(const NeuronSpec& neuron);
  explicit Differentiable(const NormSpec& norm);
  const NeuronSpec& neuron;
  const bool with_norm;  // they are those with a BatchNorm in front
  const c10::OperatorHandle forward, train, backward;
};

// Under grad it runs `_<neuron>_train` and records a node that calls `<neuron>_backward`; otherwise `<neuron>_forward`
// itself.
void autograd(const Differentiable& operators, torch::jit::Stack& stack);

// Of `<neuron>_backward`: a surrogate gradient is no derivative, so a second derivative would be silently wrong. Asking
// for one is an error.
void autograd_of_backward(const Differentiable& operators, torch::jit::Stack& stack);

}  // namespace snnkern
