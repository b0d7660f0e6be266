// The operators torch.ops.snnkern.*. Their schemas stand in generated/registry.h; for each neuron, e.g. lif:
//   lif_forward    public; records a node under autograd
//   _lif_train     lif_forward that also returns the checkpoints which lif_backward needs
//   lif_backward   the gradients of lif_forward
//   lif_norm_forward, _lif_norm_train, lif_norm_backward   the same with a BatchNorm in front
//   lif_recurrent_forward, _lif_recurrent_train, lif_recurrent_backward   the same with the spikes fed back
// and, for the modules in TorchScript,
//   _in_backward   whether a backward pass runs on this thread
// and, for snnkern.packed_spikes,
//   _pack_spikes, _unpack_spikes
// Autocast needs no kernel: x_seq keeps its dtype, and the host casts an initial state of any floating dtype.
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <string>

#include "../generated/registry.h"
#include "autograd.h"
#include "host.h"

namespace {

using namespace snnkern;
using at::Tensor;

template <auto function, class Neuron>
torch::CppFunction boxed(const Neuron& neuron) {
  struct Kernel : c10::OperatorKernel {
    explicit Kernel(const Neuron& neuron) : neuron(neuron) {}
    void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
      function(neuron, *stack);
    }
    const Neuron& neuron;
  };
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(neuron));
}

struct Names {
  explicit Names(const NeuronSpec& neuron)
      : forward(operator_name(neuron.forward_schema)),
        train(operator_name(neuron.train_schema)),
        backward(operator_name(neuron.backward_schema)) {}
  explicit Names(const NormSpec& norm)
      : forward(operator_name(norm.forward_schema.c_str())),
        train(operator_name(norm.train_schema.c_str())),
        backward(operator_name(norm.backward_schema.c_str())) {}
  std::string forward, train, backward;
};

// Operators may be called as long as the process lives.
const NormSpec& with_norm(const NeuronSpec& neuron) { return *new NormSpec(neuron); }

void define(torch::Library& m, const NeuronSpec& neuron) {
  for (const char* schema : {neuron.forward_schema, neuron.train_schema, neuron.backward_schema})
    m.def(schema, {at::Tag::pt2_compliant_tag});
  if (neuron.is_recurrent) return;
  const NormSpec norm(neuron);
  for (const std::string& schema : {norm.forward_schema, norm.train_schema, norm.backward_schema})
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
}

// On one device, or Meta.
void implement(torch::Library& m, const NeuronSpec& neuron) {
  const Names names(neuron);
  m.impl(names.forward.c_str(), boxed<&forward>(neuron));
  m.impl(names.train.c_str(), boxed<&train>(neuron));
  m.impl(names.backward.c_str(), boxed<&backward>(neuron));
  if (neuron.is_recurrent) return;
  const NormSpec& norm = with_norm(neuron);
  const Names normed(norm);
  m.impl(normed.forward.c_str(), boxed<&norm_forward>(norm));
  m.impl(normed.train.c_str(), boxed<&norm_train>(norm));
  m.impl(normed.backward.c_str(), boxed<&norm_backward>(norm));
}

void record(torch::Library& m, const Differentiable& operators, const Names& names) {
  m.impl(names.forward.c_str(), boxed<&autograd>(operators));
  m.impl(names.train.c_str(), torch::autograd::autogradNotImplementedFallback());
  m.impl(names.backward.c_str(), boxed<&autograd_of_backward>(operators));
}

// After `define`.
void implement_autograd(torch::Library& m, const NeuronSpec& neuron) {
  record(m, *new Differentiable(neuron), Names(neuron));  // graphs may outlive the library
  if (neuron.is_recurrent) return;
  const NormSpec norm(neuron);
  record(m, *new Differentiable(norm), Names(norm));
}

Tensor unpacked(const Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, at::ScalarType dtype,
                bool as_bytes) {
  Tensor out = at::empty_strided_symint(size, stride, packed.options().dtype(dtype));
  unpack_spikes(packed, as_bytes, out);
  return out;
}

void implement_packing(torch::Library& m) {
  m.impl("_pack_spikes", &pack_spikes);
  m.impl("_unpack_spikes", &unpacked);
}

template <class Function>
void for_all(torch::Library& m, const Function& function) {
  for (const NeuronSpec& neuron : kNeurons) function(m, neuron);
  for (const NeuronSpec& neuron : kRecurrent) function(m, neuron);
}

}  // namespace

TORCH_LIBRARY(snnkern, m) {
  for_all(m, define);
  // CONSERVATIVE: without an argument, TorchScript would take it for a constant.
  m.def(torch::schema("_in_backward() -> bool", c10::AliasAnalysisKind::CONSERVATIVE),
        [] { return torch::autograd::get_current_graph_task_id() != -1; });
  m.def("_pack_spikes(Tensor values, bool as_bytes) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_unpack_spikes(Tensor packed, SymInt[] size, SymInt[] stride, ScalarType dtype, bool as_bytes) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  for_all(m, implement);
  implement_packing(m);
}
TORCH_LIBRARY_IMPL(snnkern, CUDA, m) {
  for_all(m, implement);
  implement_packing(m);
}
TORCH_LIBRARY_IMPL(snnkern, Meta, m) {
  for_all(m, implement);
  implement_packing(m);
}
TORCH_LIBRARY_IMPL(snnkern, Autograd, m) { for_all(m, implement_autograd); }

// Neurons and surrogates that are defined at run time; see snnkern/define.py. What is given must stay where it is: the
// operators are never taken back, since graphs may hold them. `size` is that of the struct, as the caller knows it.
// Returns an error text, or null.
extern "C" {

__attribute__((visibility("default"))) const char* snnkern_define_neuron(const NeuronSpec* neuron, size_t size) {
  static thread_local std::string error;
  try {
    TORCH_CHECK(size == sizeof(NeuronSpec), "a NeuronSpec has ", sizeof(NeuronSpec), " bytes, got ", size);
    const auto library = [](torch::Library::Kind kind, std::optional<c10::DispatchKey> key) -> torch::Library& {
      return *new torch::Library(kind, "snnkern", key, __FILE__, __LINE__);
    };
    define(library(torch::Library::FRAGMENT, std::nullopt), *neuron);
    for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta})
      implement(library(torch::Library::IMPL, key), *neuron);
    implement_autograd(library(torch::Library::IMPL, c10::DispatchKey::Autograd), *neuron);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}

__attribute__((visibility("default"))) const char* snnkern_define_surrogate(const SurrogateSpec* surrogate, size_t size,
                                                                            const char* key) {
  if (size != sizeof(SurrogateSpec)) return "SurrogateSpec has another size";
  add_surrogate(*surrogate, key);
  return nullptr;
}

__attribute__((visibility("default"))) void snnkern_set_compiler(MakeKernel make) { set_compiler(make); }
}
