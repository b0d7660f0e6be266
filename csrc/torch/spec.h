// What the generator tells the host about the specification; the values stand in generated/registry.h.
#pragma once
#include <cmath>
#include <limits>

#include "../kernels/multistep.h"

namespace snnkern {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Range {
  double low, high;
  bool low_open, integer, infinite;
  const char* text;
  bool holds(double x) const {
    if (x == kInfinity) return infinite;
    if (!(x > -kInfinity && x < kInfinity)) return false;
    if (integer && x != std::floor(x)) return false;
    return (low_open ? x > low : x >= low) && x <= high;
  }
  // Whether it leaves out a number.
  constexpr bool is_limited() const { return low != -kInfinity || high != kInfinity; }
};

// What the host does with an argument of an operator.
enum class Kind {
  kInput,            // Tensor: x_seq
  kLearned,          // Tensor: a parameter with a gradient, one value or as many as kTensor
  kState,            // Tensor?: an initial state
  kFloat,            // float, or float?
  kFlag,             // bool
  kReset,            // float?: v_reset; None resets softly, as do neurons without this argument
  kSurrogate,        // str
  kSurrogateParams,  // float[]?
  kStoreSeq,         // bool
  kSpiking,          // bool
  kTensor,           // Tensor?: a parameter's value for each neuron, in the place of its number
  kSurrogateTensor,  // Tensor?: one of surrogate_params, 0-dim on the CPU, for values that change under torch.compile
  kRecurrent,        // Tensor, Tensor?, Tensor?: weight_hh, bias_hh, spike_init
  kDetachRecurrent,  // bool
};
constexpr bool is_differentiable(Kind kind) {
  return kind == Kind::kInput || kind == Kind::kLearned || kind == Kind::kState || kind == Kind::kTensor ||
         kind == Kind::kRecurrent;
}
// What autograd keeps as a tensor.
constexpr bool is_tensor(Kind kind) { return is_differentiable(kind) || kind == Kind::kSurrogateTensor; }

struct Argument {
  Kind kind;
  const char* name;
  const char* parameter;  // of kTensor: the number whose place it takes, as users call it
  Range range;            // of the value that users give
  bool inverse;           // kernels, and operators for a tensor, get 1 / value
  double none;            // what None stands for
  bool is_convention;     // needs a general pass, unless it has this value
  double usual;
};

// What feeds the spikes back: the arguments of Kind::kRecurrent, the weights first.
enum { kWeight, kBias, kSpikeInit, kRecurrents };

// A kernel to compile at run time: one of a neuron that was defined then, with a surrogate that was, or for parameters
// that change from step to step.
struct Wanted {
  const char* neuron;  // its key
  int surrogate;       // an index, or -1 for none; on the CPU, kernels call it
  int pass, reset, dtype;
  uint32_t in_time, like_x;    // bit k: parameter k changes from step to step, and has the type and layout of x
  int V, steps, architecture;  // on CUDA the shape, and 90 for sm_90; 0 for the CPU
};
// Leaves in `made` where the kernel is, on CUDA its machine code, which stays there; or null if the pass has no kernel
// of this shape. Returns an error text, or null.
using MakeKernel = const char* (*)(const Wanted* wanted, const void** made);
constexpr const char* kMadeKernel = "snnkern_made";  // what it is called in machine code
// Compiles a surrogate for the CPU, and puts it where the host looks.
using MakeSurrogate = const char* (*)();

// A neuron and its operators. Those that feed its spikes back to it have a spec of their own, with the same kernels.
struct NeuronSpec {
  const char *name, *key;   // what messages call its operators, and what their kernels are asked for by
  const char* grad_output;  // grad_spike_seq: the gradient in the first result
  int states, learned;      // how many, and how many parameters that are always tensors
  bool has_surrogate;
  bool is_recurrent;
  const int* starts;  // for each state, the parameter it starts at; -1 for 0
  const Argument* arguments;
  int argument_count;
  const char *forward_schema, *train_schema, *backward_schema;
  // Where its kernels are: null in an array is what this build leaves out, null for an array that it has no CUDA, or
  // that the neuron was defined at run time.
  const Row<CpuKernel>* const* cpu;    // [1]
  const Row<CudaKernel>* const* cuda;  // [0: those without a surrogate or for any, 1 + index of a surrogate]
  const Row<const CudaRecurrence*>* const* recurrence;  // [1]: of a pass forward, and back as well; f32 and f64

  bool is_built_in() const { return cpu; }
  // How many arguments the backward operator has before those of the forward: gradients, and what was kept.
  int incoming() const { return states + 2 + is_recurrent; }
  // How many it has in all: of a recurrent neuron the last says whether gradients in its weights are wanted.
  int backward_arguments() const { return incoming() + argument_count + is_recurrent; }
  // How many arguments get a gradient.
  int differentiable() const {
    int count = 0;
    for (const Argument& argument : *this) count += is_differentiable(argument.kind);
    return count;
  }
  // How many are tensors.
  int tensors() const {
    int count = 0;
    for (const Argument& argument : *this) count += is_tensor(argument.kind);
    return count;
  }
  const Argument* begin() const { return arguments; }
  const Argument* end() const { return arguments + argument_count; }
};

struct SurrogateParam {
  const char* name;
  double default_value;
  Range range;
};

struct SurrogateSpec {
  const char* name;
  int param_count;
  const SurrogateParam* params;
  bool has_primitive;
  int index;  // in NeuronSpec::cuda, and for the kernels for any; beyond kSurrogates: the user's own
  const CpuSurrogate* const* cpu;  // [1]; null in it: this build leaves it out
  MakeSurrogate make = nullptr;
};

}  // namespace snnkern
