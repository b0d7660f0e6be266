#include "autograd.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <string>
#include <vector>

#include "host.h"

namespace snnkern {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::jit::Stack;

// A Node is held by shared_ptr up to torch 2.12, by intrusive_ptr from 2.13.
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
template <class T, class... Args>
std::shared_ptr<T> make_node(Args&&... args) {
  return std::shared_ptr<T>(new T(std::forward<Args>(args)...), torch::autograd::deleteNode);
}
std::shared_ptr<Node> self(Node& node) { return node.getptr(); }
#else
template <class T, class... Args>
c10::intrusive_ptr<T> make_node(Args&&... args) {
  return c10::make_intrusive<T>(std::forward<Args>(args)...);
}
c10::intrusive_ptr<Node> self(Node& node) { return node.getptr(); }
#endif

// Of the arguments of a BatchNorm: weight, bias, mean, var and residual_seq are kept, and weight, bias and residual_seq
// get gradients; then come eps, batch_statistics, group and channel_dim.
constexpr int kNormTensors = NormSpec::kEps, kNormInputs = 3, kNormValues = 4;
constexpr bool gets_gradient(int norm_tensor) {
  return norm_tensor != NormSpec::kMean && norm_tensor != NormSpec::kVar;
}

struct Backward : Node {
  explicit Backward(const Differentiable& operators) : operators(operators), neuron(operators.neuron) {}

  const Differentiable& operators;
  const NeuronSpec& neuron;
  std::vector<SavedVariable> tensors;  // those of the arguments, of a recurrent neuron its spikes, the checkpoints
  std::vector<c10::IValue> arguments;  // of the forward; tensors are left out
  bool released = false;

  std::string name() const override {
    return std::string("snnkern::") + neuron.name + (operators.with_norm ? "_norm_backward" : "_backward");
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& t : tensors) t.reset_data();
    released = true;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
    return run(
        operators, std::move(grads), arguments, [&](size_t i) { return tensors[i].unpack(self(*this)); },
        [&](size_t i) { return task_should_compute_output(i); });
  }

  template <class TensorAt, class IsWanted>
  static variable_list run(const Differentiable& operators, variable_list grads,
                           const std::vector<c10::IValue>& arguments, const TensorAt& tensor_at,
                           const IsWanted& is_wanted) {
    const NeuronSpec& neuron = operators.neuron;
    const size_t inputs = neuron.differentiable() + (operators.with_norm ? kNormInputs : 0);
    variable_list out(inputs);
    bool any = false;
    for (const Tensor& g : grads) any |= g.defined();
    if (!any) return out;

    const auto optional = [](Tensor t) { return t.defined() ? c10::IValue(std::move(t)) : c10::IValue(); };
    Stack stack;
    size_t kept = neuron.tensors();  // beside the arguments
    if (operators.with_norm) {
      stack.push_back(c10::IValue());
      if (grads.size() > size_t(1 + neuron.states)) {  // the sum is a result
        stack.back() = optional(std::move(grads.back()));
        grads.pop_back();
      }
      for (int i = 0; i < kNormTensors; ++i) stack.push_back(optional(tensor_at(kept++)));
      for (int i = 0; i < kNormValues; ++i) stack.push_back(arguments[neuron.argument_count + i]);
    }
    for (Tensor& g : grads) stack.push_back(optional(std::move(g)));
    if (neuron.is_recurrent) stack.emplace_back(tensor_at(kept++));
    stack.emplace_back(tensor_at(kept));
    size_t tensor = 0;
    for (int i = 0; i < neuron.argument_count; ++i) {
      stack.push_back(is_tensor(neuron.arguments[i].kind) ? optional(tensor_at(tensor++)) : arguments[i]);
    }
    if (neuron.is_recurrent) {
      bool wanted = false;
      size_t input = 0, fed = 0;
      for (const Argument& argument : neuron) {
        if (argument.kind == Kind::kRecurrent) wanted |= fed++ < kSpikeInit && is_wanted(input);
        input += is_differentiable(argument.kind);
      }
      stack.emplace_back(wanted);
    }
    operators.backward.callBoxed(stack);
    for (size_t i = 0; i < inputs; ++i) {
      // What was not given is never wanted.
      if (is_wanted(i)) out[i] = stack[i].toTensor();
    }
    return out;
  }

  // Compiled autograd: what tells one backward from another. collect() would take a lone number for a graph's input.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(std::string(neuron.name));
    args.collect(tensors, false);
    for (const c10::IValue& value : arguments) {
      if (value.isDouble())
        args.collect(value.toDouble());
      else if (value.isInt())
        args.collect(value.toInt());
      else
        args.collect(value);
    }
  }

  // Puts a call of `run` into its graph; the tensors that are here now stand for those of the graph.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    namespace compiled = torch::dynamo::autograd;
    saved.before(tensors);
    variable_list unpacked;
    for (SavedVariable& t : tensors) unpacked.push_back(t.unpack(self(*this)));
    compiled::PackedArgs packed;
    packed.pack(unpacked);
    std::vector<bool> wanted;
    for (size_t i = 0; i < num_outputs(); ++i) wanted.push_back(task_should_compute_output(i));
    const auto function = [&operators = operators, arguments = arguments, wanted](
                              const variable_list& grads, const std::vector<c10::IValue>& args) {
      const auto tensors = compiled::PackedArgs(args).unpack<variable_list>();
      return run(
          operators, grads, arguments, [&](size_t i) { return tensors[i]; }, [&](size_t i) { return wanted[i]; });
    };
    const auto& python = compiled::getPyCompilerInterface();
    const auto name = python->bind_function(saved.get_py_compiler(), neuron.name, function, {packed.vec()[0].type()},
                                            /*is_custom_function=*/true, /*is_traceable=*/true);
    const auto outputs = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        compiled::get_input_metadata(next_edges()));
    variable_list out =
        python->call_function(saved.get_py_compiler(), "apply_functional", name, grads, packed.vec(), outputs);
    saved.after(tensors);
    return out;
  }
};

c10::OperatorHandle find(const char* schema) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("snnkern::" + operator_name(schema)).c_str(), "");
}

bool wants_grad(const c10::IValue* begin, const c10::IValue* end) {
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(begin, end, [](const c10::IValue& v) { return v.isTensor() && v.toTensor().requires_grad(); });
}

}  // namespace

Differentiable::Differentiable(const NormSpec& norm)
    : neuron(norm.neuron),
      with_norm(true),
      forward(find(norm.forward_schema.c_str())),
      train(find(norm.train_schema.c_str())),
      backward(find(norm.backward_schema.c_str())) {}

Differentiable::Differentiable(const NeuronSpec& neuron)
    : neuron(neuron),
      with_norm(false),
      forward(find(neuron.forward_schema)),
      train(find(neuron.train_schema)),
      backward(find(neuron.backward_schema)) {}

void autograd(const Differentiable& operators, Stack& stack) {
  const NeuronSpec& neuron = operators.neuron;
  const int count = neuron.argument_count + (operators.with_norm ? NormSpec::kForwardArguments : 0);
  const c10::IValue* values = arguments(neuron, stack, count);
  variable_list inputs, tensors;  // what gets a gradient, and what is kept
  const int of_norm = operators.with_norm ? kNormTensors : 0;
  for (int i = 0; i < neuron.argument_count + of_norm; ++i) {
    const bool is_norm = i >= neuron.argument_count;
    if (!is_norm && !is_tensor(neuron.arguments[i].kind)) continue;
    tensors.push_back(values[i].isNone() ? Tensor() : values[i].toTensor());
    if (is_norm ? !gets_gradient(i - neuron.argument_count) : !is_differentiable(neuron.arguments[i].kind)) continue;
    inputs.push_back(tensors.back());
    const Tensor& t = inputs.back();
    if (!t.defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(0).defined(), "snnkern.", neuron.name,
                                "_forward: forward-mode AD (jvp) is not supported; snnkern.reference supports it");
  }
  if (!wants_grad(values, values + count)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    operators.forward.callBoxed(stack);
    return;
  }

  auto node = make_node<Backward>(operators);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (int i = 0; i < neuron.argument_count; ++i) {
    node->arguments.push_back(is_tensor(neuron.arguments[i].kind) ? c10::IValue() : values[i]);
  }
  const c10::IValue* const norm = values + neuron.argument_count;
  const size_t mean = tensors.size() - kNormTensors + NormSpec::kMean;
  const bool batch = operators.with_norm && !tensors[mean].defined();
  const bool with_sum = operators.with_norm && norm[NormSpec::kWithSum].toBool();
  if (operators.with_norm) {
    node->arguments.push_back(norm[NormSpec::kEps]);
    node->arguments.emplace_back(batch);
    node->arguments.push_back(norm[NormSpec::kGroup]);
    node->arguments.push_back(norm[NormSpec::kChannelDim]);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    operators.train.callBoxed(stack);
  }
  const Tensor checkpoints = torch::jit::pop(stack).toTensor();
  const int results = 1 + neuron.states + (operators.with_norm ? 2 : 0);
  if (batch) {
    const Tensor statistics = torch::jit::peek(stack, results - 1, results).toTensor();
    tensors[mean] = statistics.select(0, 0);
    tensors[mean + 1] = statistics.select(0, 1);
  }
  for (int i = 0; i < 1 + neuron.states + with_sum; ++i) {
    Tensor output = torch::jit::peek(stack, i, results).toTensor();
    torch::autograd::set_history(output, node);
  }
  for (const Tensor& t : tensors) node->tensors.emplace_back(t, false);
  if (neuron.is_recurrent) node->tensors.emplace_back(torch::jit::peek(stack, 0, results).toTensor(), true);
  node->tensors.emplace_back(checkpoints, false);
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
  torch::autograd::fire_node_creation_hooks(node);
#endif
}

void autograd_of_backward(const Differentiable& operators, Stack& stack) {
  const NeuronSpec& neuron = operators.neuron;
  const size_t count = neuron.backward_arguments() + (operators.with_norm ? NormSpec::kBackwardArguments : 0);
  const c10::IValue* values = arguments(neuron, stack, count);
  const bool forbid = wants_grad(values, values + count);
  torch::autograd::edge_list edges;
  if (forbid) {
    for (size_t i = 0; i < count; ++i) {
      if (values[i].isTensor()) edges.push_back(torch::autograd::impl::gradient_edge(values[i].toTensor()));
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    operators.backward.callBoxed(stack);
  }
  if (!forbid) return;
  const auto error = make_node<torch::autograd::Error>(
      std::string("snnkern.") + neuron.name +
          "_forward: double backward (create_graph=True) is not supported; snnkern.reference supports it",
      std::move(edges));
  const int results = neuron.differentiable() + (operators.with_norm ? kNormInputs : 0);
  for (int i = 0; i < results; ++i) {
    Tensor t = torch::jit::peek(stack, i, results).toTensor();
    torch::autograd::set_history(t, error);
  }
}

}  // namespace snnkern
