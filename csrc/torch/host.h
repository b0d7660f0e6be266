// From an operator's arguments to a kernel, once for every neuron and every device: check, lay out, allocate, look up,
// launch.
#pragma once
#include <ATen/core/stack.h>

#include <cstring>
#include <string>

#include "spec.h"

namespace snnkern {

using torch::jit::Stack;

// The name of the operator that a schema defines.
inline std::string operator_name(const char* schema) { return {schema, std::strchr(schema, '(')}; }

// The last `count` values of the stack. A C++ caller whose signature is not that of the schema may have put fewer
// there.
inline const c10::IValue* arguments(const NeuronSpec& neuron, const Stack& stack, size_t count) {
  TORCH_CHECK(stack.size() >= count, "snnkern.", neuron.name, ": called with ", std::to_string(stack.size()),
              " arguments, but its schema has ", std::to_string(count), "; is the caller's signature out of date?");
  return stack.data() + (stack.size() - count);
}

// Each takes its operator's arguments from the top of the stack and leaves the results there, as a boxed kernel does.
// They serve CPU, CUDA and Meta tensors: on Meta they check and allocate.
void forward(const NeuronSpec& neuron, Stack& stack);
void train(const NeuronSpec& neuron, Stack& stack);
void backward(const NeuronSpec& neuron, Stack& stack);

// A neuron with a BatchNorm in front: `<neuron>_norm_forward` and so on, with the arguments of the neuron's own
// operators and these. With a group, statistics are of all processes in it, which call together.
struct NormSpec {
  enum { kWeight, kBias, kMean, kVar, kResidual, kEps, kWithSum, kGroup, kGroupSize, kChannelDim, kForwardArguments };
  static constexpr int kBackwardArguments = 10;
  explicit NormSpec(const NeuronSpec& neuron);
  const NeuronSpec& neuron;
  std::string forward_schema, train_schema, backward_schema;
};
void norm_forward(const NormSpec& norm, Stack& stack);
void norm_train(const NormSpec& norm, Stack& stack);
void norm_backward(const NormSpec& norm, Stack& stack);

// Spikes in fewer bits: the values of a dense tensor in the order of its memory, as bits or, with as_bytes, as bytes.
at::Tensor pack_spikes(const at::Tensor& values, bool as_bytes);
// `out` gets them back. It is dense, of the shape and strides of what was packed.
void unpack_spikes(const at::Tensor& packed, bool as_bytes, at::Tensor& out);

// A surrogate that operators find from now on under its name, and under `key`, which no other will have.
void add_surrogate(const SurrogateSpec& surrogate, const char* key);

// How kernels are compiled at run time.
void set_compiler(MakeKernel make);

}  // namespace snnkern
