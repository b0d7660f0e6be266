// From an operator's arguments to a kernel, once for every neuron and every device: check, lay out, allocate, look up,
// launch.
#pragma once
#include <ATen/core/stack.h>

#include "spec.h"

namespace snnkern {

using torch::jit::Stack;

// Each takes its operator's arguments from the top of the stack and leaves the results there, as a boxed kernel does.
// They serve CPU, CUDA and Meta tensors: on Meta they check and allocate.
void forward(const NeuronSpec& neuron, Stack& stack);
void train(const NeuronSpec& neuron, Stack& stack);
void backward(const NeuronSpec& neuron, Stack& stack);

}  // namespace snnkern
