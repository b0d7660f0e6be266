// The operators torch.ops.snnkern.*. Their schemas stand in generated/registry.h; for each neuron, e.g. lif:
//   lif_forward    public; records a node under autograd
//   _lif_train     lif_forward that also returns the checkpoints which lif_backward needs
//   lif_backward   the gradients of lif_forward
// Autocast needs no kernel: x_seq keeps its dtype, and the host casts an initial state of any floating dtype.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>

#include "../generated/registry.h"
#include "autograd.h"
#include "host.h"

namespace {

using namespace snnkern;

template <void (*function)(const NeuronSpec&, torch::jit::Stack&)>
torch::CppFunction boxed(const NeuronSpec& neuron) {
  struct Kernel : c10::OperatorKernel {
    explicit Kernel(const NeuronSpec& neuron) : neuron(neuron) {}
    void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
      function(neuron, *stack);
    }
    const NeuronSpec& neuron;
  };
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(neuron));
}

struct Names {
  explicit Names(const NeuronSpec& neuron)
      : forward(std::string(neuron.name) + "_forward"),
        train(std::string("_") + neuron.name + "_train"),
        backward(std::string(neuron.name) + "_backward") {}
  std::string forward, train, backward;
};

void define(torch::Library& m) {
  for (const NeuronSpec& neuron : kNeurons) {
    for (const char* schema : {neuron.forward_schema, neuron.train_schema, neuron.backward_schema})
      m.def(schema, {at::Tag::pt2_compliant_tag});
  }
}

void implement(torch::Library& m) {
  for (const NeuronSpec& neuron : kNeurons) {
    const Names names(neuron);
    m.impl(names.forward.c_str(), boxed<&forward>(neuron));
    m.impl(names.train.c_str(), boxed<&train>(neuron));
    m.impl(names.backward.c_str(), boxed<&backward>(neuron));
  }
}

void implement_autograd(torch::Library& m) {
  for (const NeuronSpec& neuron : kNeurons) {
    const Names names(neuron);
    m.impl(names.forward.c_str(), boxed<&autograd>(neuron));
    m.impl(names.train.c_str(), torch::autograd::autogradNotImplementedFallback());
    m.impl(names.backward.c_str(), boxed<&autograd_of_backward>(neuron));
  }
}

}  // namespace

TORCH_LIBRARY(snnkern, m) { define(m); }
TORCH_LIBRARY_IMPL(snnkern, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(snnkern, CUDA, m) { implement(m); }
TORCH_LIBRARY_IMPL(snnkern, Meta, m) { implement(m); }
TORCH_LIBRARY_IMPL(snnkern, Autograd, m) { implement_autograd(m); }
