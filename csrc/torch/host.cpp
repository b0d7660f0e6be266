#include "host.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "../generated/registry.h"
#include "driver.h"
#include "info.h"

namespace snnkern {

namespace {

using at::Tensor;

// ---- reading and checking the arguments ----------------------------------------------------------------------------

// A parameter given as a tensor, or undefined; and its place among all parameters.
struct Parameter {
  int index;
  Tensor tensor;
  bool learned;  // one that is always a tensor
  bool in_time;  // it has a value for each step
  bool like_x;   // it also has one for each neuron, and the type of x
};

// An operator's arguments, checked; tensors as the caller gave them.
struct Call {
  const NeuronSpec& neuron;
  std::string op;  // "lif_forward", for messages
  Tensor x;
  c10::SmallVector<Parameter, kMaxParams> parameters;
  c10::SmallVector<Tensor, kMaxStates> init;  // undefined where None was given
  c10::SmallVector<Tensor, kRecurrents> recurrent;
  bool detach_recurrent = false;
  Reset reset = kSoft;
  Dtype dtype = kF32;
  const SurrogateSpec* surrogate = nullptr;
  bool spiking = true, general = false, finite = true;  // finite: no number that the equations get is infinite
  KernelArgs args = {};                                 // parameters, flags, store_seq

  Call(const NeuronSpec& neuron, const char* role) : neuron(neuron), op(std::string(neuron.name) + role) {}
};

// The parts of a message. No iostream: where a toolchain links libstdc++ statically there are two of them in a process,
// and a number that passes through a stream of the one and a locale of the other is a crash.
std::string text(std::string part) { return part; }
std::string text(const char* part) { return part; }
std::string text(int64_t number) { return std::to_string(number); }
std::string text(int number) { return std::to_string(number); }
std::string text(size_t number) { return std::to_string(number); }
std::string text(double number) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%g", number);
  return digits;
}
std::string text(c10::Device device) { return device.str(); }
std::string text(at::ScalarType type) { return "torch." + std::string(c10::getDtypeNames(type).first); }
std::string text(c10::SymIntArrayRef sizes) {
  std::string out;
  for (const c10::SymInt& size : sizes) {
    const auto number = size.maybe_as_int();
    out += (out.empty() ? "" : ", ") + (number ? std::to_string(*number) : size.toSymNodeImplUnowned()->str());
  }
  return "[" + out + "]";
}

template <class... Parts>
std::string message(const Call& call, Parts&&... parts) {
  std::string out = "snnkern." + call.op + ": ";
  ((out += text(std::forward<Parts>(parts))), ...);
  return out;
}

// A value out of its range is a ValueError in Python, a wrong type, also of a tensor's elements, a TypeError, and a
// wrong shape or device a RuntimeError, as with PyTorch's own operators.
#define SNNKERN_CHECK(call, condition, ...) TORCH_CHECK(condition, message(call, __VA_ARGS__))
#define SNNKERN_CHECK_VALUE(call, condition, ...) TORCH_CHECK_VALUE(condition, message(call, __VA_ARGS__))
#define SNNKERN_CHECK_TYPE(call, condition, ...) TORCH_CHECK_TYPE(condition, message(call, __VA_ARGS__))

const char* dtype_names() { return "float32, float64, float16 or bfloat16"; }

std::optional<Dtype> dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return kF32;
    case at::kDouble:
      return kF64;
    case at::kHalf:
      return kF16;
    case at::kBFloat16:
      return kBF16;
    default:
      return std::nullopt;
  }
}

Dtype state_dtype(Dtype dtype) { return dtype == kF64 ? kF64 : kF32; }
at::ScalarType state_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

std::string join(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

// As combinations name it.
const char* surrogate_name(const SurrogateSpec* surrogate) { return surrogate ? surrogate->name : "none"; }

// Those that were defined at run time.
struct Defined {
  std::mutex mutex;
  std::map<std::string, const SurrogateSpec*, std::less<>> by_name;
};
Defined& defined() {
  static auto* all = new Defined;
  return *all;
}

const SurrogateSpec* find_surrogate(const Call& call, std::string_view name) {
  static const auto* index = [] {
    auto* map = new std::unordered_map<std::string_view, const SurrogateSpec*>;
    for (const SurrogateSpec& s : kSurrogates) map->emplace(s.name, &s);
    return map;
  }();
  const auto found = index->find(name);
  if (found == index->end()) {
    std::vector<std::string> legal, own;
    for (const SurrogateSpec& s : kSurrogates) legal.emplace_back(s.name);
    {
      const std::lock_guard<std::mutex> lock(defined().mutex);
      const auto later = defined().by_name.find(name);
      if (later != defined().by_name.end()) return later->second;
      for (const auto& [key, s] : defined().by_name)
        if (key == s->name) own.push_back(key);
    }
    SNNKERN_CHECK_VALUE(call, false, "surrogate must be one of ", join(legal), "; got '", std::string(name), "'",
                        own.empty() ? "" : "; of your own there are ", join(own));
  }
  return found->second;
}

void check_x(Call& call) {
  const Tensor& x = call.x;
  SNNKERN_CHECK(call, x.dim() >= 2, "x_seq must be [T, N, ...] with at least 2 dimensions, got ", x.dim(),
                x.dim() == 1 ? " dimension" : " dimensions");
  const auto dtype = dtype_of(x.scalar_type());
  SNNKERN_CHECK_TYPE(call, dtype, "x_seq must be ", dtype_names(), ", got ", x.scalar_type());
  call.dtype = *dtype;
  TORCH_SYM_CHECK(x.sym_size(0).sym_ge(1), "snnkern.", call.op, ": x_seq must have T >= 1 time steps, got T = 0");
}

void check_tensor(const Call& call, const char* name, const Tensor& t, const std::string& given = "") {
  SNNKERN_CHECK(call, t.device() == call.x.device(), name, " must be on the device of x_seq, ", call.x.device(),
                ", got ", t.device(), given);
  SNNKERN_CHECK_TYPE(call, dtype_of(t.scalar_type()), name, " must be ", dtype_names(), ", got ", t.scalar_type(),
                     given);
}

void check_sizes(const Call& call, const char* name, const Tensor& t, c10::SymIntArrayRef want, const char* what) {
  const auto got = t.sym_sizes();
  bool same = want.size() == got.size();
  for (size_t d = 0; same && d < want.size(); ++d) same = TORCH_GUARD_OR_TRUE(want[d].sym_eq(got[d]));
  SNNKERN_CHECK(call, same, name, " must have ", what, want, ", got ", got);
}

// One value a neuron, or with `every_step` one a neuron and time step.
void check_shape(const Call& call, const char* name, const Tensor& t, bool every_step) {
  check_sizes(call, name, t, call.x.sym_sizes().slice(every_step ? 0 : 1),
              every_step ? "the shape of x_seq, " : "the shape of x_seq[0], ");
}

// Takes a parameter that is a tensor, or null: it broadcasts by the usual rules against x_seq[0], or against x_seq and
// then has a value for each step. Messages name it as the functions and modules do, and then the operator's argument:
// "tau must be ..., got 0.5 (decay_tensor)".
void read_parameter(Call& call, const Argument& argument, int index, const c10::IValue& value) {
  call.parameters.push_back({index, Tensor(), argument.kind == Kind::kLearned, false, false});
  if (value.isNone()) return;
  const Tensor t = call.parameters.back().tensor = value.toTensor();
  const bool is_own = argument.kind == Kind::kLearned;
  const char* name = is_own ? argument.name : argument.parameter;
  const std::string given = is_own ? "" : std::string(" (") + argument.name + ")";
  check_tensor(call, name, t, given);
  const auto want = call.x.sym_sizes(), got = t.sym_sizes();
  bool fits = got.size() <= want.size();
  for (size_t d = 0; fits && d < got.size(); ++d) {
    const c10::SymInt& size = got[got.size() - 1 - d];
    fits = TORCH_GUARD_OR_FALSE(size.sym_eq(1)) || TORCH_GUARD_OR_TRUE(size.sym_eq(want[want.size() - 1 - d]));
  }
  SNNKERN_CHECK(call, fits, name, " must broadcast against x_seq[0], ", want.slice(1), ", or with time against x_seq, ",
                want, "; got shape ", got, given);
  const bool in_time = got.size() == want.size() && !TORCH_GUARD_OR_FALSE(got[0].sym_eq(1));
  // What feeds spikes back has rows of the state dtype, so that there nothing is of the type of x.
  bool like_x = in_time && !call.neuron.is_recurrent && t.scalar_type() == call.x.scalar_type();
  for (size_t d = 0; like_x && d < got.size(); ++d) like_x = TORCH_GUARD_OR_FALSE(got[d].sym_eq(want[d]));
  call.parameters.back().in_time = in_time;
  call.parameters.back().like_x = like_x;
  const Range& range = argument.range;
  if (!range.is_limited() || !t.is_cpu() || t.is_meta() || t.numel() == 0)
    return;  // a look at a CUDA tensor would wait for the device
  const auto check = [&](const Tensor& element) {
    double value = element.to(at::kDouble).item<double>();
    if (argument.inverse) value = 1 / value;
    SNNKERN_CHECK_VALUE(call, range.holds(value), name, " must be ", range.text, ", got ", value, given);
  };
  check(argument.inverse ? t.max() : t.min());
  check(argument.inverse ? t.min() : t.max());
  if (!range.integer) return;
  const Tensor broken = t.masked_select(t.ne(t.floor()));
  if (broken.numel() > 0) check(broken[0]);
}

// Kernels compute with the number in the state dtype, where it must not become infinite.
void check_number(const Call& call, const std::string& name, const Range& range, double number) {
  SNNKERN_CHECK_VALUE(call, range.holds(number), name, " must be ", range.text, ", got ", number);
  const bool fits = std::abs(number) <= std::numeric_limits<float>::max() || std::isinf(number);
  SNNKERN_CHECK_VALUE(call, call.dtype == kF64 || fits, name, " must be within the range of float32 for x_seq of ",
                      call.x.scalar_type(), ", got ", number);
}

void set_surrogate_param(Call& call, const char* argument, int i, double value) {
  const SurrogateParam& p = call.surrogate->params[i];
  check_number(call, std::string(argument) + ": " + p.name + " of surrogate '" + call.surrogate->name + "'", p.range,
               value);
  call.args.surrogate[i] = value;
}

void read_surrogate_params(Call& call, const c10::IValue& value) {
  const SurrogateSpec& spec = *call.surrogate;
  for (int i = 0; i < spec.param_count; ++i) call.args.surrogate[i] = spec.params[i].default_value;
  if (value.isNone()) return;
  const auto given = value.toDoubleVector();
  SNNKERN_CHECK_VALUE(call, static_cast<int>(given.size()) == spec.param_count, "surrogate_params must have ",
                      spec.param_count, spec.param_count == 1 ? " value" : " values", " for surrogate '", spec.name,
                      "', got ", given.size());
  for (int i = 0; i < spec.param_count; ++i) set_surrogate_param(call, "surrogate_params", i, given[i]);
}

// Kernels get these numbers when they start, so the host must be able to read them without waiting for a device.
void read_surrogate_tensor(Call& call, const char* argument, int i, const Tensor& t) {
  SNNKERN_CHECK_VALUE(call, i < call.surrogate->param_count, argument, " must be None for surrogate '",
                      call.surrogate->name, "', which has ", call.surrogate->param_count, " parameters");
  SNNKERN_CHECK(call, t.device().is_cpu() || call.x.is_meta(), argument, " must be on the CPU, got ", t.device());
  SNNKERN_CHECK(call, t.scalar_type() == at::kDouble && t.dim() == 0, argument, " must be 0-dim float64, got ", t.dim(),
                " dimensions of ", t.scalar_type());
  if (!call.x.is_meta()) set_surrogate_param(call, argument, i, *t.const_data_ptr<double>());  // else not known yet
}

void check_conventions(const Call& call) {
  std::vector<std::string> names;
  int param = call.neuron.learned;
  double threshold = 1, most = 1;
  for (const Argument& argument : call.neuron) {
    const std::string_view name = argument.name;
    if (argument.is_convention && argument.kind != Kind::kTensor) names.emplace_back(name);
    if (argument.kind != Kind::kFloat && argument.kind != Kind::kReset) continue;
    if (name == "v_threshold") threshold = call.args.params[param];
    if (name == "max_spikes") most = call.args.params[param];
    ++param;
  }
  SNNKERN_CHECK_VALUE(call, call.spiking, "spiking=False needs ", join(names), " at their defaults");
  SNNKERN_CHECK_VALUE(call, most == 1 || threshold > 0, "max_spikes > 1 needs v_threshold > 0, got ", threshold);
}

// weight_hh, bias_hh and spike_init, in this order.
void read_recurrent(Call& call, const Argument& argument, const c10::IValue& value) {
  const auto neurons = call.x.sym_sizes().slice(call.x.dim() - 1);
  const size_t which = call.recurrent.size();
  SNNKERN_CHECK(call, which != kWeight || call.x.dim() >= 3,
                "x_seq must be [T, N, ..., H] with at least 3 dimensions, got ", call.x.dim());
  call.recurrent.push_back(value.isNone() ? Tensor() : value.toTensor());
  const Tensor& t = call.recurrent.back();
  if (!t.defined()) return;
  check_tensor(call, argument.name, t);
  if (which == kSpikeInit) return check_shape(call, argument.name, t, false);
  if (which == kBias || t.dim() == 1) return check_sizes(call, argument.name, t, neurons, "a value for each neuron, ");
  const c10::SymInt square[] = {neurons[0], neurons[0]};
  check_sizes(call, argument.name, t, square, "a weight for each pair of neurons, or a value for each neuron, ");
}

// Reads the arguments of `<neuron>_forward`, which start at `values`.
Call read(const NeuronSpec& neuron, const char* role, const c10::IValue* values) {
  Call call(neuron, role);
  int param = 0, flag = 0, tensor = neuron.learned, surrogate_param = 0;
  for (const Argument& argument : neuron) {
    const c10::IValue& value = *values++;
    switch (argument.kind) {
      case Kind::kInput:
        call.x = value.toTensor();
        check_x(call);
        break;
      case Kind::kLearned:
        read_parameter(call, argument, param++, value);
        break;
      case Kind::kTensor:
        read_parameter(call, argument, tensor++, value);
        if (value.isNone()) break;
        call.general |= argument.is_convention;
        SNNKERN_CHECK_VALUE(call, call.reset == kHard || std::string_view(argument.name) != "v_reset_tensor",
                            argument.name, " needs a hard reset: v_reset must be a number, got None");
        break;
      case Kind::kState:
        call.init.push_back(value.isNone() ? Tensor() : value.toTensor());
        if (call.init.back().defined()) {
          check_tensor(call, argument.name, call.init.back());
          check_shape(call, argument.name, call.init.back(), false);
        }
        break;
      case Kind::kReset:
        if (!value.isNone()) call.reset = kHard;
        [[fallthrough]];
      case Kind::kFloat: {
        double number = argument.none;
        if (!value.isNone()) {
          number = value.toDouble();
          check_number(call, argument.name, argument.range, number);
        }
        number = argument.inverse ? 1 / number : number;
        call.args.params[param++] = number;
        call.finite &= argument.is_convention || std::isfinite(number);
        call.general |= argument.is_convention && number != argument.usual;
        break;
      }
      case Kind::kFlag:
        call.args.flags[flag++] = value.toBool() ? -1 : 0;
        call.general |= argument.is_convention && value.toBool();
        break;
      case Kind::kSurrogate:
        call.surrogate = find_surrogate(call, value.toStringView());
        call.args.surrogate_id = call.surrogate->index;
        break;
      case Kind::kSurrogateParams:
        read_surrogate_params(call, value);
        break;
      case Kind::kSurrogateTensor:
        if (!value.isNone()) read_surrogate_tensor(call, argument.name, surrogate_param, value.toTensor());
        ++surrogate_param;
        break;
      case Kind::kRecurrent:
        read_recurrent(call, argument, value);
        break;
      case Kind::kDetachRecurrent:
        call.detach_recurrent = value.toBool();
        break;
      case Kind::kStoreSeq:
        call.args.store_seq = value.toBool();
        break;
      case Kind::kSpiking:
        call.spiking = value.toBool();
        break;
    }
  }
  for (int k = 0; k < neuron.states; ++k) {
    if (neuron.starts[k] >= 0) call.args.state_start[k] = call.args.params[neuron.starts[k]];
  }
  SNNKERN_CHECK_VALUE(call, call.spiking || call.surrogate->has_primitive,
                      "spiking=False needs a surrogate with a smooth primitive; '", surrogate_name(call.surrogate),
                      "' has none");
  SNNKERN_CHECK_TYPE(call, call.spiking || call.dtype == kF32 || call.dtype == kF64,
                     "spiking=False needs float32 or float64 x_seq, got ", call.x.scalar_type());
  if (call.general) check_conventions(call);
  return call;
}

// ---- layout and allocation: the same for CPU, CUDA and Meta, so that strides agree ---------------------------------

// Whether dimension d of a dense x lies outside time: x is in storage order [outer, T, inner], as with the batch first.
bool is_outer(const Tensor& x, int64_t d) {
  const auto sizes = x.sym_sizes(), strides = x.sym_strides();
  return TORCH_GUARD_OR_FALSE(sizes[d].sym_ne(1)) && !TORCH_GUARD_OR_FALSE(strides[0].sym_ge(strides[d]));
}

// How many neurons lie side by side in a step of a dense x.
c10::SymInt inner_size(const Tensor& x) {
  const bool one_step = TORCH_GUARD_OR_FALSE(x.sym_size(0).sym_eq(1));
  c10::SymInt inner = 1;
  for (int64_t d = 1; d < x.dim(); ++d)
    if (one_step || !is_outer(x, d)) inner = inner * x.sym_size(d);
  return inner;
}

bool is_time_major(const Tensor& x) {
  if (TORCH_GUARD_OR_FALSE(x.sym_size(0).sym_eq(1))) return true;
  for (int64_t d = 1; d < x.dim(); ++d)
    if (is_outer(x, d)) return false;
  return true;
}

// x as kernels work on it: itself where it is dense, unless the neurons of a step lie in pieces of less than a cache
// line, of which each step would read a part.
Tensor workable(const Tensor& x) {
  if (!x.is_non_overlapping_and_dense()) return x.contiguous();
  if (is_time_major(x)) return x;
  const c10::SymInt bytes = inner_size(x) * static_cast<int64_t>(x.element_size());
  return TORCH_GUARD_OR_FALSE(bytes.sym_ge(64)) ? x : x.contiguous();
}

// The same for neurons that need their row, the last dimension, in one piece and in order.
Tensor workable_in_rows(const Tensor& x) {
  return x.is_contiguous() || x.transpose(0, 1).is_contiguous() ? workable(x) : x.contiguous();
}

Tensor workable(const Call& call) { return call.neuron.is_recurrent ? workable_in_rows(call.x) : workable(call.x); }

// A tensor of the shape and layout of x, or of one step of it.
enum Extent { kSequence, kStep };

c10::SymDimVector strides_of(const Tensor& x, Extent extent) {
  c10::SymDimVector strides(x.sym_strides().slice(extent == kStep ? 1 : 0));
  if (extent == kStep && !is_time_major(x)) {
    for (int64_t d = 1; d < x.dim(); ++d)
      if (is_outer(x, d)) strides[d - 1] = strides[d - 1] / x.sym_size(0);
  }
  return strides;
}

Tensor empty(const Tensor& x, Extent extent, at::ScalarType type) {
  return at::empty_strided_symint(x.sym_sizes().slice(extent == kStep ? 1 : 0), strides_of(x, extent),
                                  x.options().dtype(type));
}

// [checkpoint_count(T) * states, N, ...], each step laid out as a step of x.
struct CheckpointLayout {
  c10::SymDimVector sizes, strides;
  bool is_contiguous;
  CheckpointLayout(const NeuronSpec& neuron, const Tensor& x) : sizes(x.sym_sizes()), is_contiguous(x.is_contiguous()) {
    sizes[0] = (sizes[0] - 1) / c10::SymInt(kCheckpointPeriod) * neuron.states;
    strides.push_back(1);  // the extent of a step
    for (size_t d = 1; d < sizes.size(); ++d) strides[0] = strides[0] * sizes[d];
    for (const c10::SymInt& stride : strides_of(x, kStep)) strides.push_back(stride);
  }
  Tensor empty(const Tensor& x) const {
    const auto options = x.options().dtype(state_type(x));
    // empty_strided would ask whether there is a checkpoint at all, and so bind a traced T to the range of its example.
    return is_contiguous ? at::empty_symint(sizes, options) : at::empty_strided_symint(sizes, strides, options);
  }
  bool holds(const Tensor& t) const {
    return is_contiguous ? t.is_contiguous() : t.sym_strides() == c10::SymIntArrayRef(strides);
  }
};

// `t` with the layout of x, or of a step, and the given type: itself if it is so already. Undefined stays undefined.
Tensor laid_out(const Tensor& t, const Tensor& x, Extent extent, at::ScalarType type) {
  if (!t.defined() || (t.scalar_type() == type && t.sym_strides() == c10::SymIntArrayRef(strides_of(x, extent))))
    return t;
  return empty(x, extent, type).copy_(t);
}

const void* read_ptr(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// ---- look up and launch --------------------------------------------------------------------------------------------

void check_built(const Call& call, bool built) {
  SNNKERN_CHECK(call, built, "this build of snnkern leaves out ", call.neuron.key, ":", surrogate_name(call.surrogate),
                ":", kResetNames[call.reset], ":", kDtypeNames[call.dtype],
                " (SNNKERN_ONLY was set at build time; snnkern.kernels() lists what it has)");
}

template <class Kernel>
Kernel look_up(const Row<Kernel>* row, Pass pass, int reset, int dtype) {
  return row ? row->kernel[pass][reset][dtype] : nullptr;
}

// A surrogate on the CPU, or null; one that was defined at run time may have yet to be compiled.
const CpuSurrogate* compiled(const Call& call, const SurrogateSpec& surrogate) {
  const CpuSurrogate* found = __atomic_load_n(surrogate.cpu, __ATOMIC_ACQUIRE);
  if (found || !surrogate.make) return found;
  const char* error = surrogate.make();
  SNNKERN_CHECK(call, !error, error);
  return __atomic_load_n(surrogate.cpu, __ATOMIC_ACQUIRE);
}

std::atomic<MakeKernel> compiler = nullptr;

// What was compiled at run time, of a kind: for the CPU a kernel, for CUDA one that is loaded; null where a pass has
// none of this shape.
template <class Kernel, class Load>
Kernel made(const Call& call, const Wanted& wanted, const Load& load) {
  using Key = std::tuple<const char*, int, int, int, int, uint32_t, uint32_t, int, int, int>;
  static std::mutex mutex;
  static auto* all = new std::map<Key, Kernel>;
  const Key key(wanted.neuron, wanted.surrogate, wanted.pass, wanted.reset, wanted.dtype, wanted.in_time, wanted.like_x,
                wanted.V, wanted.steps, wanted.architecture);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = all->find(key);
    if (found != all->end()) return found->second;
  }
  // Without the lock: Python takes its own.
  const MakeKernel make = compiler;
  SNNKERN_CHECK(call, make, "this snnkern was built without this kernel for ", call.x.device(),
                ", and what compiles it at run time is snnkern's Python package, which was not imported");
  const void* place = nullptr;
  const char* error = make(&wanted, &place);
  SNNKERN_CHECK(call, !error, error);
  const Kernel kernel = place ? load(place) : nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  return all->emplace(key, kernel).first->second;
}

void launch_made_on_cuda(const Call& call, const KernelArgs& args, Wanted wanted, void* stream) {
  const int index = call.x.device().index();
  driver::Device device;
  const char* error = driver::describe(index, device);
  SNNKERN_CHECK(call, !error, "the CUDA driver failed: ", error);
  wanted.architecture = device.architecture;
  const auto load = [&](const void* cubin) {
    driver::Function kernel = nullptr;
    const char* error = driver::load(cubin, kMadeKernel, kernel);
    SNNKERN_CHECK(call, !error, "loading the kernel failed: ", error);
    return kernel;
  };
  const bool tensors = wanted.pass != kForward && wanted.pass != kBackward;
  const bool is_smooth = wanted.pass == kSmoothForward || wanted.pass == kSmoothBackward;
  const cuda::Family of = {wanted.pass % 2 == kBackward, tensors, !tensors || (call.dtype != kF64 && !is_smooth),
                           static_cast<int>(call.x.element_size())};
  const cuda::Shapes shapes = cuda::shapes(of);
  driver::Function kernel = nullptr;
  for (int i = cuda::choose(args, of, device.multiprocessors); !kernel && i < shapes.count; ++i) {
    wanted.V = shapes.shape[i].V;
    wanted.steps = shapes.shape[i].steps;
    kernel = made<driver::Function>(call, wanted, load);
    if (kernel) error = driver::launch(kernel, args, shapes.shape[i], index, stream);
  }
  SNNKERN_CHECK(call, kernel && !error, "the CUDA launch failed: ", error ? error : "no kernel");
}

// Whether the lean passes do.
bool is_plain(const Call& call) {
  bool tensors = false;
  for (const Parameter& p : call.parameters)
    tensors |= p.in_time || (p.tensor.defined() && !(p.learned && p.tensor.numel() == 1));
  return !tensors && !call.general && call.spiking && call.finite;
}

// On the CPU with a BatchNorm: run(begin, end, sums) for shares of the neurons, that are of the shape alone; and what
// all have summed, where it is wanted.
template <class Run>
void for_shares(const KernelArgs& args, const Run& run) {
  constexpr int64_t kShares = 64;
  const int64_t blocks = (args.N + kCpuBlock - 1) / kCpuBlock, shares = std::min(blocks, kShares);
  const int64_t columns = args.norm.partial ? 2 * args.norm.size : 0;
  std::vector<double> sums(shares * columns);
  at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = blocks * i / shares * kCpuBlock, end = blocks * (i + 1) / shares * kCpuBlock;
      run(begin, std::min(end, args.N), columns ? &sums[i * columns] : nullptr);
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < shares; ++i) sum += sums[i * columns + c];
    static_cast<double*>(args.norm.partial)[c] = sum;
  }
}

// On the CPU with spikes fed back: run(begin, end) for as many rows of neurons as fit in a block, or fewer where
// threads would have none.
template <class Run>
void for_rows(const KernelArgs& args, const RecurrentArgs& recurrent, const Run& run) {
  if (args.N == 0) return;
  const int64_t H = recurrent.size, rows = args.N / H, threads = at::get_num_threads();
  const int64_t together = std::min(kCpuBlock / H, (rows + threads - 1) / threads);
  at::parallel_for(0, (rows + together - 1) / together, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) run(i * together * H, std::min((i + 1) * together, rows) * H);
  });
}

void launch(const Call& call, const KernelArgs& args, bool is_backward, const RecurrentArgs* recurrent = nullptr) {
  uint32_t in_time = 0, like_x = 0;
  for (const Parameter& p : call.parameters) {
    in_time |= uint32_t(p.in_time) << p.index;
    like_x |= uint32_t(p.like_x) << p.index;
  }
  const Pass lean = is_backward ? kBackward : kForward;
  const Pass whole = call.general    ? (is_backward ? kGeneralBackward : kGeneralForward)
                     : !call.spiking ? (is_backward ? kSmoothBackward : kSmoothForward)
                                     : (is_backward ? kTensorBackward : kTensorForward);
  const bool is_lean = is_plain(call);
  const SurrogateSpec* surrogate =
      call.neuron.has_surrogate && (is_backward || !call.spiking) ? call.surrogate : nullptr;
  const bool is_made = !call.neuron.is_built_in() || in_time;
  const c10::Device device = call.x.device();
  const auto wanted = [&](Pass pass) {
    return Wanted{call.neuron.key, -1, pass, call.reset, call.dtype, in_time, like_x, 0, 0, 0};
  };
  if (device.is_cpu()) {
    const Pass pass = is_lean ? lean : whole;
    const auto load = [](const void* place) { return reinterpret_cast<CpuKernel>(const_cast<void*>(place)); };
    // What stands between the sequences and the steps has rows of the state dtype.
    const Dtype dtype = args.norm.size || recurrent ? state_dtype(call.dtype) : call.dtype;
    Wanted made_here = wanted(pass);
    made_here.dtype = dtype;
    const CpuKernel kernel =
        is_made ? made<CpuKernel>(call, made_here, load) : look_up(*call.neuron.cpu, pass, call.reset, dtype);
    const CpuSurrogate* answers = surrogate ? compiled(call, *surrogate) : nullptr;
    check_built(call, kernel && (answers || !surrogate));
    if (recurrent) {
      for_rows(args, *recurrent, [&](int64_t begin, int64_t end) {
        KernelArgs own = args;
        const std::unique_ptr<cpu::Stage> stage(cpu::kRecurrence[call.dtype].stage(own, *recurrent));
        own.stage = stage.get();
        kernel(own, answers, begin, end);
      });
      return;
    }
    if (args.norm.size) {
      for_shares(args, [&](int64_t begin, int64_t end, double* sums) {
        KernelArgs own = args;
        const std::unique_ptr<cpu::Stage> stage(cpu::kNorm[call.dtype].stage(own, sums));
        own.stage = stage.get();
        kernel(own, answers, begin, end);
      });
      return;
    }
    const int64_t blocks = (args.N + kCpuBlock - 1) / kCpuBlock;
    constexpr int64_t kWorthAThread = 32768;  // elements; the grain of PyTorch's own operators
    const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kCpuBlock * args.T));
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      kernel(args, answers, begin * kCpuBlock, std::min(end * kCpuBlock, args.N));
    });
    return;
  }
  void* const stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
  const bool is_built = kBuild.cuda && !is_made && !(surrogate && surrogate->make);
  if (!is_built) {
    if (args.N == 0) return;
    // float64 is for checking: the passes for tensors do for it.
    Wanted kernel = wanted(is_lean && call.dtype != kF64 ? lean : whole);
    kernel.surrogate = surrogate ? surrogate->index : -1;
    launch_made_on_cuda(call, args, kernel, stream);
    return;
  }
  const auto rows = call.neuron.cuda;
  const Row<CudaKernel>* const own = rows[surrogate ? surrogate->index + 1 : 0];
  CudaKernel kernel = is_lean ? look_up(own, lean, call.reset, call.dtype) : nullptr;
  if (!kernel) kernel = look_up(own, whole, call.reset, call.dtype);
  if (!kernel && own) kernel = look_up(rows[0], whole, call.reset, call.dtype);
  check_built(call, kernel);
  if (args.N == 0) return;
  const char* error = kernel(args, stream);
  SNNKERN_CHECK(call, !error, "the CUDA launch failed: ", error);
}

// A parameter in the state dtype, in the storage order of x, as far as it differs between neurons and steps: see
// ParamTensor. Only one that varies along some dimensions, not along one between them, is copied out.
ParamTensor param_tensor(Parameter& p, const Tensor& x) {
  if (p.like_x) {
    p.tensor = laid_out(p.tensor, x, kSequence, x.scalar_type());
    // Kernels read it in vectors.
    if (reinterpret_cast<uintptr_t>(p.tensor.const_data_ptr()) % 16 != 0)
      p.tensor = empty(x, kSequence, x.scalar_type()).copy_(p.tensor);
    return {p.tensor.const_data_ptr(), 1, 1, 0};
  }
  if (p.tensor.numel() == 1) {
    p.tensor = p.tensor.to(state_type(x));
    return {p.tensor.const_data_ptr(), 1, 1, 0};
  }
  Tensor values = p.tensor.to(state_type(x));
  while (values.dim() < x.dim()) values = values.unsqueeze(0);
  c10::SmallVector<int64_t, 6> order;  // of the dimensions, from the outermost; time stays in front
  for (int64_t d = 0; d < x.dim(); ++d) order.push_back(d);
  std::stable_sort(order.begin() + 1, order.end(), [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  values = values.permute(order);
  int64_t first = 1, last = values.dim() - 1, inner = 1;
  while (first <= last && values.size(first) == 1) ++first;
  for (; last > first && values.size(last) == 1; --last) inner *= x.size(order[last]);
  std::vector<int64_t> sizes(values.sizes().begin(), values.sizes().end());
  for (int64_t d = first; d <= last; ++d) sizes[d] = x.size(order[d]);
  p.tensor = values.expand(sizes).contiguous();
  const int64_t size = p.tensor.numel() / p.tensor.size(0);
  return {p.tensor.const_data_ptr(), size == 1 ? 1 : inner, size, p.in_time ? size : 0};
}

// The initial states and parameters as kernels read them, and what else forward and backward share. The tensors of the
// call must outlive the launch.
void prepare(Call& call, const Tensor& x) {
  KernelArgs& args = call.args;
  args.T = x.size(0);
  args.N = x.numel() / args.T;
  args.inner = inner_size(x).expect_int();
  args.x = x.const_data_ptr();
  for (size_t k = 0; k < call.init.size(); ++k) {
    call.init[k] = laid_out(call.init[k], x, kStep, state_type(x));
    args.state_init[k] = read_ptr(call.init[k]);
  }
  if (args.N == 0) return;
  for (Parameter& p : call.parameters)
    if (p.tensor.defined()) args.tensor[p.index] = param_tensor(p, x);
}

// ---- spikes that are fed back --------------------------------------------------------------------------------------

// As kernels read it. Its tensors must outlive the launch.
struct Recurrence {
  Tensor weight, forward, backward, bias, spike_init, check;
  RecurrentArgs args = {};
};

Recurrence recurrence(const Call& call, const Tensor& x) {
  Recurrence r;
  const at::ScalarType type = state_type(x);
  const auto taken = [&](int which) {  // in the precision of x
    const Tensor& t = call.recurrent[which];
    return t.defined() ? t.to(x.scalar_type()).to(type).contiguous() : t;
  };
  r.weight = r.forward = r.backward = taken(kWeight);
  r.bias = taken(kBias);
  r.spike_init = laid_out(taken(kSpikeInit), x, kStep, type);
  r.args.size = x.size(-1);
  if (r.weight.dim() == 2 && x.is_cpu()) {
    constexpr int64_t kLanes = RecurrentArgs::kLanes;
    r.args.stride = (r.args.size + kLanes - 1) / kLanes * kLanes;
    const auto padded = [&](const Tensor& t) {
      return at::constant_pad_nd(t, {0, r.args.stride - r.args.size}).contiguous();
    };
    r.forward = padded(r.weight.t());
    r.backward = padded(r.weight);
    r.args.finite = r.weight.sub(r.weight).sum().item<double>() == 0;
  }
  if (r.weight.dim() == 2 && !x.is_cpu()) {
    r.args.stride = r.args.size;
    r.forward = r.weight.t().contiguous();
    r.check = r.weight.mul(0).sum();
    r.args.check = read_ptr(r.check);
  }
  r.args.dtype = call.dtype;
  r.args.forward = read_ptr(r.forward);
  r.args.backward = call.detach_recurrent ? nullptr : read_ptr(r.backward);
  r.args.bias = read_ptr(r.bias);
  r.args.spike_init = read_ptr(r.spike_init);
  return r;
}

// The sum over the first dimension, one by one, as a neuron that never fires has it. A library's sum has another order.
Tensor sum_in_order(const Tensor& t) {
  static const auto integrate = c10::Dispatcher::singleton().findSchemaOrThrow("snnkern::if_forward", "");
  Stack stack = {t};
  for (size_t i = 1; i < integrate.schema().arguments().size(); ++i) {
    const c10::Argument& argument = integrate.schema().arguments()[i];
    stack.push_back(argument.name() == "v_threshold" ? c10::IValue(kInfinity) : *argument.default_value());
  }
  integrate.callBoxed(stack);
  return stack[1].toTensor();
}

// A step's spikes times the weights, in the order of RecurrentArgs, on any device.
Tensor weighted_spikes(const Call& call, const Recurrence& r, const Tensor& spikes) {
  if (r.weight.dim() == 1) return spikes.mul(r.weight);
  const int64_t H = r.args.size, rows = spikes.numel() / std::max<int64_t>(H, 1);
  Tensor out = at::empty_like(spikes);
  if (spikes.is_cpu()) {
    const size_t row = H * spikes.element_size();
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      cpu::kRecurrence[call.dtype].product(r.args, static_cast<const char*>(spikes.const_data_ptr()) + begin * row,
                                           static_cast<char*>(out.mutable_data_ptr()) + begin * row, end - begin);
    });
    return out;
  }
  constexpr int64_t kGroup = RecurrentArgs::kGroup, kRoom = int64_t(1) << 24;  // numbers that may lie side by side
  const int64_t groups = (H + kGroup - 1) / kGroup, together = std::max<int64_t>(1, kRoom / (groups * kGroup * H));
  const auto grouped = [&](const Tensor& t) {  // the last dimension, as [kGroup, ..., groups, 1]
    return at::constant_pad_nd(t, {0, groups * kGroup - H})
        .unflatten(-1, {groups, kGroup})
        .movedim(-1, 0)
        .unsqueeze(-1);
  };
  const Tensor weight = grouped(r.weight).squeeze(-1).transpose(1, 2).unsqueeze(1);  // [kGroup, 1, groups, H]
  const Tensor from = spikes.reshape({rows, H}), to = out.view({rows, H});
  for (int64_t row = 0; row < rows; row += together) {
    const int64_t count = std::min(together, rows - row);
    const Tensor sums = sum_in_order(grouped(from.narrow(0, row, count)).mul(weight).contiguous());
    to.narrow(0, row, count).copy_(sum_in_order(sums.transpose(0, 1).contiguous()));
  }
  return out;
}

// A step's gradient times the weights, in any order.
Tensor weighted_gradient(const Recurrence& r, const Tensor& gradient) {
  return r.weight.dim() == 1 ? gradient.mul(r.weight) : gradient.matmul(r.weight);
}

// The kernels that feed spikes back on CUDA; null where this build has none for the call: not for a neuron or surrogate
// that was defined at run time, nor for parameters that change from step to step, nor for rows without an end.
const CudaRecurrence* cuda_recurrence(const Call& call, const Tensor& x) {
  const Dtype dtype = state_dtype(call.dtype);
  bool in_time = false;
  for (const Parameter& p : call.parameters) in_time |= p.in_time;
  if (x.is_cpu() || !kBuild.cuda || !call.neuron.recurrence || in_time || (call.surrogate && call.surrogate->make) ||
      !cuda::row_fits(x.size(-1), call.neuron.states, dtype == kF64 ? 8 : 4))
    return nullptr;
  const Pass pass = is_plain(call) && dtype == kF32 ? kForward
                    : call.general                  ? kGeneralForward
                    : !call.spiking                 ? kSmoothForward
                                                    : kTensorForward;
  return look_up(*call.neuron.recurrence, pass, call.reset, dtype);
}

// The plan for rows of neurons that do not fit in a block, and for CUDA where no kernel feeds the spikes back: a
// product and the neuron's own kernel for each step. For the gradient, a library's product of the whole batch is faster
// than one of the rows of a block if those are few. x is contiguous, and so are the steps.
bool by_steps(const Call& call, const Tensor& x, bool is_backward) {
  if (!x.is_cpu()) return !cuda_recurrence(call, x);
  return x.size(-1) > (is_backward ? kCpuBlock / 2 - 1 : kCpuBlock);
}

// What runs by it.
class Steps {
 public:
  using States = c10::SmallVector<Tensor, kMaxStates>;

  // `call` is prepared, with x. All of them must outlive this.
  Steps(const Call& call, const Recurrence& r, const Tensor& x)
      : call_(call), own_(call), r_(r), x_(x), type_(state_type(x)) {
    own_.dtype = state_dtype(call.dtype);
    for (Parameter& p : own_.parameters) p.in_time = false;
  }

  void forward(const Tensor& spikes, const States& states, const Tensor& checkpoints) const {
    const int64_t T = x_.size(0), count = call_.neuron.states;
    States now(call_.init.begin(), call_.init.end());
    for (int64_t t = 0; t < T; ++t) {
      if (checkpoints.defined() && t > 0 && t % kCheckpointPeriod == 0)
        for (int k = 0; k < count; ++k) checkpoints.select(0, (t / kCheckpointPeriod - 1) * count + k).copy_(now[k]);
      spikes.select(0, t).copy_(advance(t, input(t, spikes), now));
      for (int k = 0; k < count; ++k) {
        if (call_.args.store_seq)
          states[k].select(0, t).copy_(now[k]);
        else if (t + 1 == T)
          states[k].copy_(now[k]);
      }
    }
  }

  // `shares`: of the parameters that are tensors, in the order of call.parameters.
  void backward(const Tensor& spikes, const Tensor& checkpoints, const Tensor& grad_spikes, const States& grad_states,
                const Tensor& grad_input, const States& grad_init, const std::vector<Tensor>& shares) const {
    const int64_t T = x_.size(0), count = call_.neuron.states;
    const bool store_seq = call_.args.store_seq;
    States grads(count);
    for (int k = 0; k < count; ++k)
      if (!store_seq && grad_states[k].defined()) grads[k] = grad_states[k].to(type_).contiguous();
    Tensor later;  // the gradient in the input of the next step
    for (int64_t chunk = checkpoint_count(T); chunk >= 0; --chunk) {
      const int64_t start = chunk * kCheckpointPeriod, steps = std::min(T - start, kCheckpointPeriod);
      std::vector<States> entering(1);
      std::vector<Tensor> inputs;
      for (int k = 0; k < count; ++k)
        entering[0].push_back(chunk > 0 ? step(checkpoints, (chunk - 1) * count + k) : call_.init[k]);
      for (int64_t j = 0; j < steps; ++j) {
        inputs.push_back(input(start + j, spikes));
        States next = entering[j];
        if (j + 1 < steps) advance(start + j, inputs[j], next);
        entering.push_back(std::move(next));
      }
      for (int64_t t = start + steps - 1; t >= start; --t) {
        Tensor gradient = grad_spikes.defined() ? step(grad_spikes, t) : Tensor();
        if (later.defined() && !call_.detach_recurrent) {
          const Tensor back = weighted_gradient(r_, later);
          gradient = gradient.defined() ? gradient.add(back) : back;
        }
        for (int k = 0; store_seq && k < count; ++k) {
          if (!grad_states[k].defined()) continue;
          const Tensor own = step(grad_states[k], t);
          grads[k] = grads[k].defined() ? grads[k].add(own) : own;
        }
        later = at::empty_like(inputs[t - start]);
        retreat(t, inputs[t - start], entering[t - start], gradient, later, grads, shares);
        grad_input.select(0, t).copy_(later);
      }
    }
    for (int k = 0; k < count; ++k)
      if (call_.init[k].defined()) grad_init[k].copy_(grads[k]);
  }

 private:
  Tensor step(const Tensor& sequence, int64_t t) const { return sequence.select(0, t).to(type_).contiguous(); }

  // What the neurons get in step t, from the spikes of the step before.
  Tensor input(int64_t t, const Tensor& spikes) const {
    const Tensor before = t > 0                     ? step(spikes, t - 1)
                          : r_.spike_init.defined() ? r_.spike_init
                                                    : at::zeros_like(x_.select(0, 0), x_.options().dtype(type_));
    Tensor z = weighted_spikes(call_, r_, before);
    if (r_.bias.defined()) z.add_(r_.bias);
    return z.add_(x_.select(0, t));
  }

  KernelArgs args(int64_t t, const Tensor& input, const States& states) const {
    KernelArgs a = call_.args;
    a.T = 1;
    a.inner = a.N;
    a.store_seq = false;
    a.x = input.const_data_ptr();
    for (size_t k = 0; k < states.size(); ++k) a.state_init[k] = read_ptr(states[k]);
    for (const Parameter& p : call_.parameters) {
      ParamTensor& tensor = a.tensor[p.index];
      if (!p.in_time || a.N == 0) continue;
      tensor.data = static_cast<const char*>(tensor.data) + t * tensor.step * p.tensor.element_size();
      tensor.step = 0;
    }
    return a;
  }

  // The states advance; returns the spikes.
  Tensor advance(int64_t t, const Tensor& input, States& states) const {
    KernelArgs a = args(t, input, states);
    const Tensor spike = at::empty_like(input);
    States next;
    for (size_t k = 0; k < states.size(); ++k) {
      next.push_back(at::empty_like(input));
      a.state[k] = next[k].mutable_data_ptr();
    }
    a.spike = spike.mutable_data_ptr();
    launch(own_, a, false);
    states = std::move(next);
    return spike;
  }

  // The gradients in the states become those in the states before.
  void retreat(int64_t t, const Tensor& input, const States& states, const Tensor& grad_spike, const Tensor& grad_input,
               States& grads, const std::vector<Tensor>& shares) const {
    KernelArgs a = args(t, input, states);
    States next(grads.size());
    a.grad_spike = read_ptr(grad_spike);
    a.grad_x = grad_input.mutable_data_ptr();
    for (size_t k = 0; k < grads.size(); ++k) {
      a.grad_state[k] = read_ptr(grads[k]);
      if (!states[k].defined()) continue;
      next[k] = at::empty_like(input);
      a.grad_init[k] = next[k].mutable_data_ptr();
    }
    std::vector<Tensor> parts(shares.size());
    for (size_t k = 0; k < shares.size(); ++k) {
      if (!call_.parameters[k].tensor.defined()) continue;
      parts[k] = at::empty_like(input);
      a.grad_param[call_.parameters[k].index] = parts[k].mutable_data_ptr();
    }
    launch(own_, a, true);
    grads = std::move(next);
    for (size_t k = 0; k < shares.size(); ++k) {
      if (!call_.parameters[k].tensor.defined()) continue;
      if (call_.parameters[k].in_time)
        shares[k].select(0, t).copy_(parts[k]);
      else if (t + 1 == x_.size(0))
        shares[k].copy_(parts[k]);
      else
        shares[k].add_(parts[k]);
    }
  }

  const Call& call_;
  Call own_;  // a step has no time
  const Recurrence& r_;
  const Tensor& x_;
  const at::ScalarType type_;
};

// What feeds the spikes back on CUDA, where it has kernels for that.
void launch_recurrent(const Call& call, const KernelArgs& args, Recurrence& r, const Tensor& x,
                      const Tensor& grad_input, bool is_backward) {
  if (args.N == 0) return;
  const CudaRecurrence& kernels = *cuda_recurrence(call, x);
  void* const stream = c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()).native_handle();
  const auto run = [&](CudaRecurrence::Kernel kernel) {  // whether it can
    const char* error = kernel(args, r.args, stream);
    SNNKERN_CHECK(call, !error || !*error, "the CUDA launch failed: ", error);
    return !error;
  };
  if (!is_backward) {
    run(kernels.forward);
    return;
  }
  const auto room = [&](int64_t count) { return at::empty({count * args.N}, x.options().dtype(state_type(x))); };
  const Tensor tape = room(args.T * kernels.tape);
  r.args.tape = tape.mutable_data_ptr();
  run(kernels.record);
  r.args.end = args.T;
  if (!r.args.backward || r.args.stride == 0) {
    run(kernels.alone);
    return;
  }
  if (kernels.backward && run(kernels.backward)) return;
  const Tensor carried = room(kernels.carried), product = room(1).view({-1, r.args.size});
  r.args.carried = carried.mutable_data_ptr();
  for (int64_t t = args.T - 1; t >= 0; --t) {
    if (t + 1 < args.T) {
      at::mm_out(const_cast<Tensor&>(product), grad_input.select(0, t + 1).flatten(0, -2), r.weight);
      r.args.product = product.const_data_ptr();
    }
    r.args.begin = t;
    r.args.end = t + 1;
    run(kernels.alone);
  }
}

// Those in weight_hh and bias_hh, if they are wanted, and spike_init, as far as they were given, from the gradients in
// the neurons' input.
void recurrent_gradients(const Call& call, const Recurrence& r, const Tensor& spikes, const Tensor& grad_input,
                         bool weights, const c10::SmallVector<Tensor, kRecurrents>& out) {
  const int64_t T = grad_input.size(0);
  const Tensor first = grad_input.select(0, 0);
  const auto of_weight = [&](const Tensor& gradient, const Tensor& spike) {
    const Tensor g = gradient.flatten(0, -2), s = spike.flatten(0, -2).to(g.scalar_type());
    return r.weight.dim() == 1 ? g.mul(s).sum(0) : g.t().matmul(s);
  };
  if (weights) {
    Tensor weight = of_weight(grad_input.narrow(0, 1, T - 1), spikes.narrow(0, 0, T - 1));
    if (r.spike_init.defined()) weight.add_(of_weight(first, r.spike_init));
    out[kWeight].copy_(weight);
    if (r.bias.defined()) out[kBias].copy_(grad_input.flatten(0, -2).sum(0));
  }
  if (!r.spike_init.defined()) return;
  call.detach_recurrent ? out[kSpikeInit].zero_() : out[kSpikeInit].copy_(weighted_gradient(r, first));
}

void run_forward(const NeuronSpec& neuron, Stack& stack, bool training) {
  Call call = read(neuron, "_forward", arguments(neuron, stack, neuron.argument_count));
  torch::jit::drop(stack, neuron.argument_count);
  const c10::OptionalDeviceGuard guard(call.x.is_meta() ? std::optional<c10::Device>() : call.x.device());
  const Tensor x = workable(call);
  const at::ScalarType type = state_type(x);
  Tensor spikes = empty(x, kSequence, x.scalar_type()), checkpoints;
  c10::SmallVector<Tensor, kMaxStates> states;
  for (int k = 0; k < neuron.states; ++k) states.push_back(empty(x, call.args.store_seq ? kSequence : kStep, type));
  if (training) checkpoints = CheckpointLayout(neuron, x).empty(x);
  if (!x.is_meta() && neuron.is_recurrent && by_steps(call, x, false)) {
    const Tensor steps = x.contiguous();
    prepare(call, steps);
    const Recurrence r = recurrence(call, steps);
    Steps(call, r, steps).forward(spikes, states, checkpoints);
  } else if (!x.is_meta()) {
    prepare(call, x);
    KernelArgs& args = call.args;
    args.spike = spikes.mutable_data_ptr();
    for (int k = 0; k < neuron.states; ++k) args.state[k] = states[k].mutable_data_ptr();
    if (training && checkpoint_count(args.T) > 0) args.checkpoints = checkpoints.mutable_data_ptr();
    if (neuron.is_recurrent) {
      Recurrence r = recurrence(call, x);
      if (x.is_cpu())
        launch(call, args, false, &r.args);
      else
        launch_recurrent(call, args, r, x, Tensor(), false);
    } else {
      launch(call, args, false);
    }
  }
  stack.emplace_back(std::move(spikes));
  for (Tensor& t : states) stack.emplace_back(std::move(t));
  if (training) stack.emplace_back(std::move(checkpoints));
}

// ---- with a BatchNorm in front -------------------------------------------------------------------------------------

// What its operators have besides the neuron's arguments.
struct Norm {
  Tensor weight, bias, mean, var, residual;
  double eps = 0;
  std::string group;  // of processes; empty for none
  int64_t dim = 2;    // of x_seq's channels
};

// A collective operation of torch's, found by name: a torch may be built without them.
Tensor collective(const char* name, Stack stack) {
  const auto call = [&](const char* name) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  };
  call(name);
  call("_c10d_functional::wait_tensor");
  return stack.back().toTensor();
}

// Makes the statistics of this process's x, [3, C], those of all in the group: the same bits in each of them.
void gather_statistics(const std::string& group, int64_t size, double count, Tensor statistics) {
  Tensor own = statistics.to(at::kDouble, false, /*copy=*/true);
  count > 0 ? own.select(0, 2).fill_(count) : own.zero_();
  const Tensor all =
      collective("_c10d_functional::all_gather_into_tensor", {own, size, group}).view({size, 3, statistics.size(1)});
  const Tensor means = all.select(1, 0), vars = all.select(1, 1), counts = all.select(1, 2), total = counts.sum(0);
  const Tensor mean = counts.mul(means).sum(0).div(total);
  const Tensor squares = counts.mul(means.sub(mean).square().add(vars)).sum(0);
  statistics.select(0, 0).copy_(mean);
  statistics.select(0, 1).copy_(squares.div(total));
  statistics.select(0, 2).copy_(squares.div(total.sub(1)));
}

// The sums of all processes in the group, scaled for kernels, which divide by the count of this one.
Tensor reduce_sums(const std::string& group, double count, const Tensor& sums) {
  Tensor own = at::empty({sums.numel() + 1}, sums.options().dtype(at::kDouble));
  own.narrow(0, 0, sums.numel()).copy_(sums.flatten());
  own.select(0, sums.numel()).fill_(count);
  const Tensor all = collective("_c10d_functional::all_reduce", {own, "sum", group});
  const Tensor scale = all.select(0, sums.numel()).reciprocal().mul(count);
  return all.narrow(0, 0, sums.numel()).mul(scale).to(sums.scalar_type());
}

// From `values` on: weight, bias, mean, var, residual_seq and eps of NormSpec.
Norm read_norm(const Call& call, const c10::IValue* values, const c10::IValue& group, int64_t dim) {
  const Tensor& x = call.x;
  SNNKERN_CHECK(call, x.dim() >= 3, "x_seq must be [T, N, C, ...] with at least 3 dimensions, got ", x.dim());
  for (const Parameter& p : call.parameters)
    SNNKERN_CHECK_VALUE(call, !p.like_x,
                        "behind a BatchNorm, no parameter may have a value for each neuron in each step");
  SNNKERN_CHECK_VALUE(call, dim >= 2 && dim < x.dim(), "channel_dim must be from 2 to ", x.dim() - 1, ", got ", dim);
  Norm norm;
  norm.dim = dim;
  if (!group.isNone()) norm.group = group.toStringRef();
  const auto take = [&](Tensor& t, const char* name, int i) {
    if (values[i].isNone()) return;
    t = values[i].toTensor();
    check_tensor(call, name, t);
    if (i <= NormSpec::kVar)
      check_sizes(call, name, t, x.sym_sizes().slice(dim, 1), "a value for each channel of x_seq, ");
  };
  take(norm.weight, "weight", NormSpec::kWeight);
  take(norm.bias, "bias", NormSpec::kBias);
  take(norm.mean, "mean", NormSpec::kMean);
  take(norm.var, "var", NormSpec::kVar);
  take(norm.residual, "residual_seq", NormSpec::kResidual);
  if (norm.residual.defined()) check_shape(call, "residual_seq", norm.residual, true);
  SNNKERN_CHECK_VALUE(call, norm.mean.defined() == norm.var.defined(),
                      "mean and var must be given together, or neither");
  norm.eps = values[NormSpec::kEps].toDouble();
  SNNKERN_CHECK_VALUE(call, norm.eps > 0, "eps must be > 0, got ", norm.eps);
  return norm;
}

// The BatchNorm as kernels read it, but for what it sums. Its tensors must outlive the launch.
void prepare(Call& call, Norm& norm, const Tensor& x) {
  NormArgs& args = call.args.norm;
  const at::ScalarType type = state_type(x);
  args.size = x.size(norm.dim);
  args.inner = args.size > 1 ? strides_of(x, kStep)[norm.dim - 1].expect_int() : std::max<int64_t>(call.args.N, 1);
  args.eps = norm.eps;
  args.count = static_cast<double>(x.numel()) / args.size;
  for (Tensor* t : {&norm.weight, &norm.bias, &norm.mean, &norm.var})
    if (t->defined()) *t = t->to(type).contiguous();
  norm.residual = laid_out(norm.residual, x, kSequence, x.scalar_type());
  args.weight = read_ptr(norm.weight);
  args.bias = read_ptr(norm.bias);
  args.mean = read_ptr(norm.mean);
  args.var = read_ptr(norm.var);
  args.residual = read_ptr(norm.residual);
}

CudaKernel fused(const Call& call, Pass pass) {
  if (!is_plain(call) || !call.neuron.is_built_in() || (call.surrogate && call.surrogate->make)) return nullptr;
  const auto rows = call.neuron.cuda;
  const CudaKernel own =
      call.surrogate ? look_up(rows[call.surrogate->index + 1], pass, call.reset, call.dtype) : nullptr;
  return own ? own : look_up(rows[std::size(kSurrogates) + 1], pass, call.reset, call.dtype);
}

void run(const Call& call, CudaKernel kernel, const KernelArgs& args) {
  void* const stream = c10::impl::VirtualGuardImpl(call.x.device().type()).getStream(call.x.device()).native_handle();
  const char* error = kernel(args, stream);
  SNNKERN_CHECK(call, !error, "the CUDA launch failed: ", error);
}

CudaKernel norm_alone(const Call& call, Pass pass) { return look_up(&cuda::norm_alone, pass, kHard, call.dtype); }

// y = args.norm.y, by the BatchNorm alone.
void normalise(const Call& call, KernelArgs args) {
  args.spike = args.norm.y;
  args.norm.y = nullptr;
  args.store_seq = false;
  run(call, norm_alone(call, kNormForward), args);
}

// The forward pass behind the statistics.
void launch_normed(const Call& call, const KernelArgs& args, const Tensor& x) {
  if (x.is_cpu()) return launch(call, args, false);
  if (args.N == 0) return;
  if (const CudaKernel kernel = fused(call, kNormForward)) return run(call, kernel, args);
  const Tensor y = args.norm.y ? Tensor() : empty(x, kSequence, x.scalar_type());
  KernelArgs own = args;
  if (y.defined()) own.norm.y = y.mutable_data_ptr();
  normalise(call, own);
  own.x = own.norm.y;
  own.norm = {};
  launch(call, own, false);
}

// BPTT and what follows from it: the sums, the gradient in y in `grad_y` where it is given, and that in x. `batch`:
// mean and var are of x, or of that of all processes in the norm's group.
void launch_normed_backward(const Call& call, const Norm& norm, KernelArgs args, const Tensor& x, const Tensor& grad_y,
                            Tensor sums, bool batch) {
  void* const grad_x = args.grad_x;
  const int64_t C = args.norm.size;
  args.norm.sums = sums.mutable_data_ptr();
  // Between the sums and the gradient in x.
  Tensor of_all;
  const auto finish_sums = [&] {
    if (batch && !norm.group.empty()) of_all = reduce_sums(norm.group, args.norm.count, sums);
    args.norm.sums = !batch ? nullptr : of_all.defined() ? of_all.mutable_data_ptr() : sums.mutable_data_ptr();
  };
  if (grad_y.defined()) args.grad_x = grad_y.mutable_data_ptr();
  if (x.is_cpu()) {
    std::vector<double> total(2 * C);
    args.norm.partial = total.data();
    args.norm.sums = nullptr;
    launch(call, args, true);
    for (int64_t c = 0; c < 2 * C; ++c) {
      if (call.dtype == kF64)
        sums.mutable_data_ptr<double>()[c] = total[c];
      else
        sums.mutable_data_ptr<float>()[c] = static_cast<float>(total[c]);
    }
    args.norm.partial = nullptr;
    finish_sums();
    args.grad_spike = args.grad_x;
    args.grad_x = grad_x;
    for_shares(args, [&](int64_t begin, int64_t end, double*) { cpu::kNorm[call.dtype].gradient(args, begin, end); });
    return;
  }
  if (args.N == 0) return finish_sums();
  const Tensor partial = at::empty({3 * 1024 * C}, x.options().dtype(state_type(x)));
  args.norm.partial = partial.mutable_data_ptr();
  const bool lean = !args.store_seq && !args.norm.residual && !args.norm.grad_y;
  const CudaKernel whole = fused(call, lean ? kNormSums : kNormWhole);
  if (whole && lean) {
    KernelArgs first = args;  // the second pass stores the rest
    first.grad_x = nullptr;
    for (void*& p : first.grad_init) p = nullptr;
    for (void*& p : first.grad_param) p = nullptr;
    run(call, whole, first);
    finish_sums();
    return run(call, fused(call, kNormBackward), args);
  }
  if (whole) {
    run(call, whole, args);
  } else {
    const Tensor y = empty(x, kSequence, x.scalar_type());
    KernelArgs own = args;
    own.norm.y = y.mutable_data_ptr();
    normalise(call, own);
    own = args;
    own.x = y.const_data_ptr();
    own.norm = {};
    launch(call, own, true);
    KernelArgs sum = args;
    sum.grad_spike = args.grad_x;
    run(call, norm_alone(call, kNormWhole), sum);
  }
  args.grad_spike = args.grad_x;
  args.grad_x = grad_x;
  finish_sums();
  run(call, norm_alone(call, kNormBackward), args);
}

void check_norm_built(const Call& call) {
  SNNKERN_CHECK(call, kBuild.cuda || call.x.is_cpu() || call.x.is_meta(), "x_seq is on ", call.x.device(),
                ", and a BatchNorm in front of a neuron needs a snnkern that was built with CUDA there");
}

// [3, C]: mean, var and unbiased var of x.
void take_statistics(const Call& call, const Norm& norm, KernelArgs& args, const Tensor& x, const Tensor& statistics) {
  args.norm.statistics = statistics.mutable_data_ptr();
  const Tensor mean = statistics[0], var = statistics[1];
  if (x.is_cpu()) {
    const int64_t C = args.norm.size;
    const double count = args.norm.count;
    std::vector<double> sums(2 * C), near(C);
    Tensor first = x;  // value of each channel
    for (int64_t d = x.dim() - 1; d >= 0; --d)
      if (d != norm.dim) first = first.select(d, 0);
    first = first.to(at::kDouble).contiguous();
    std::copy_n(first.const_data_ptr<double>(), C, near.begin());
    args.norm.partial = sums.data();
    const Tensor result = at::empty({3, C}, statistics.options().dtype(at::kDouble));
    double* const to = result.mutable_data_ptr<double>();
    // In float64 once more, about the mean, which the first value of a channel may be far from.
    for (int round = 0; round < (x.scalar_type() == at::kDouble ? 2 : 1); ++round) {
      for_shares(args, [&](int64_t begin, int64_t end, double* share) {
        cpu::kNorm[call.dtype].moments(args, near.data(), share, begin, end);
      });
      for (int64_t c = 0; c < C; ++c) {
        const double away = sums[c] / count, squares = std::max(sums[C + c] - sums[c] * away, 0.0);
        near[c] += away;
        to[c] = near[c];
        to[C + c] = squares / count;
        to[2 * C + c] = squares / (count - 1);
      }
    }
    args.norm.partial = nullptr;
    statistics.copy_(result);
  } else {
    const Tensor partial = at::empty({3 * 1024 * args.norm.size}, statistics.options());
    args.norm.partial = partial.mutable_data_ptr();
    run(call, cuda::norm_statistics[call.dtype], args);
  }
  args.norm.mean = mean.const_data_ptr();
  args.norm.var = var.const_data_ptr();
}

void run_norm_forward(const NormSpec& spec, Stack& stack, bool training) {
  const NeuronSpec& neuron = spec.neuron;
  const int count = neuron.argument_count + NormSpec::kForwardArguments;
  const c10::IValue* values = arguments(neuron, stack, count);
  Call call = read(neuron, "_norm_forward", values);
  values += neuron.argument_count;
  Norm norm = read_norm(call, values, values[NormSpec::kGroup], values[NormSpec::kChannelDim].toInt());
  const bool with_sum = values[NormSpec::kWithSum].toBool(), batch = !norm.mean.defined();
  if (!batch) norm.group.clear();
  const int64_t processes = values[NormSpec::kGroupSize].toInt();
  torch::jit::drop(stack, count);
  check_norm_built(call);
  const c10::OptionalDeviceGuard guard(call.x.is_meta() ? std::optional<c10::Device>() : call.x.device());
  const Tensor x = workable(call.x);
  const at::ScalarType type = state_type(x);
  const auto none = [&](at::ScalarType type) { return at::empty({0}, x.options().dtype(type)); };
  Tensor spikes = empty(x, kSequence, x.scalar_type()), checkpoints;
  Tensor sum = with_sum ? empty(x, kSequence, x.scalar_type()) : none(x.scalar_type());
  Tensor statistics = batch ? at::empty_symint({3, x.sym_size(norm.dim)}, x.options().dtype(type)) : none(type);
  c10::SmallVector<Tensor, kMaxStates> states;
  for (int k = 0; k < neuron.states; ++k) states.push_back(empty(x, call.args.store_seq ? kSequence : kStep, type));
  if (training) checkpoints = CheckpointLayout(neuron, x).empty(x);
  if (!x.is_meta()) {
    SNNKERN_CHECK_VALUE(call, !batch || !norm.group.empty() || x.numel() > x.size(norm.dim),
                        "statistics need more than one value a channel, got x_seq of shape ", x.sym_sizes());
    prepare(call, x);
    prepare(call, norm, x);
    KernelArgs& args = call.args;
    args.spike = spikes.mutable_data_ptr();
    if (with_sum) args.norm.y = sum.mutable_data_ptr();
    for (int k = 0; k < neuron.states; ++k) args.state[k] = states[k].mutable_data_ptr();
    if (training && checkpoint_count(args.T) > 0) args.checkpoints = checkpoints.mutable_data_ptr();
    if (batch && x.numel() > 0) take_statistics(call, norm, args, x, statistics);
    if (!norm.group.empty()) {
      gather_statistics(norm.group, processes, args.norm.count, statistics);
      args.norm.statistics = nullptr;  // what they come from is not the kernel before
    }
    launch_normed(call, args, x);
  }
  stack.emplace_back(std::move(spikes));
  for (Tensor& t : states) stack.emplace_back(std::move(t));
  stack.emplace_back(std::move(sum));
  stack.emplace_back(std::move(statistics));
  if (training) stack.emplace_back(std::move(checkpoints));
}

// `with_norm`: before its arguments come those of the BatchNorm: grad_sum_seq, what read_norm reads, batch_statistics
// and group.
void run_backward(const NeuronSpec& neuron, Stack& stack, bool with_norm) {
  const int front = with_norm ? NormSpec::kBackwardArguments : 0;
  const int incoming = neuron.incoming(), count = front + neuron.backward_arguments();
  const c10::IValue* values = arguments(neuron, stack, count) + front;
  Call call = read(neuron, with_norm ? "_norm_backward" : "_backward", values + incoming);
  const bool weights = neuron.is_recurrent && values[count - front - 1].toBool();  // gradients in them are wanted
  Norm norm;
  Tensor grad_sum;
  bool batch = false;
  if (with_norm) {
    norm = read_norm(call, values - front + 1, values[-2], values[-1].toInt());
    SNNKERN_CHECK_VALUE(call, norm.mean.defined(), "mean and var must be given");
    if (!values[-front].isNone()) grad_sum = values[-front].toTensor();
    batch = values[-3].toBool();
    check_norm_built(call);
  }

  const auto optional = [&](int i) { return values[i].isNone() ? Tensor() : values[i].toTensor(); };
  Tensor grad_spikes = optional(0), checkpoints = optional(incoming - 1);
  Tensor spikes = neuron.is_recurrent ? optional(incoming - 2) : Tensor();
  c10::SmallVector<Tensor, kMaxStates> grad_states;
  for (int k = 0; k < neuron.states; ++k) grad_states.push_back(optional(1 + k));
  torch::jit::drop(stack, count);

  const c10::OptionalDeviceGuard guard(call.x.is_meta() ? std::optional<c10::Device>() : call.x.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::autocast_dispatch_keyset);  // products are of the state dtype
  const Tensor x = workable(call);
  const at::ScalarType type = state_type(x);
  if (grad_spikes.defined()) {
    check_tensor(call, neuron.grad_output, grad_spikes);
    check_shape(call, neuron.grad_output, grad_spikes, true);
  }
  for (const Tensor& t : grad_states) {
    if (!t.defined()) continue;
    check_tensor(call, "the gradient of a state", t);
    check_shape(call, "the gradient of a state", t, call.args.store_seq);
  }
  if (grad_sum.defined()) check_shape(call, "grad_sum_seq", grad_sum, true);
  if (neuron.is_recurrent) {
    check_tensor(call, "spike_seq", spikes);
    check_shape(call, "spike_seq", spikes, true);
  }
  const CheckpointLayout layout(neuron, x);
  check_tensor(call, "checkpoints", checkpoints);
  check_sizes(call, "checkpoints", checkpoints, layout.sizes, "the shape ");

  Tensor grad_x = empty(x, kSequence, x.scalar_type());
  // What the user did not give has no gradient: an empty tensor stands for it.
  const auto gradient = [&](const Tensor& t, Extent extent, at::ScalarType type) {
    return t.defined() ? empty(x, extent, type) : at::empty({0}, x.options().dtype(type));
  };
  c10::SmallVector<Tensor, kMaxStates> grad_init;
  for (const Tensor& t : call.init) grad_init.push_back(gradient(t, kStep, type));
  c10::SmallVector<Tensor, kRecurrents> grad_recurrent;
  for (const Tensor& t : call.recurrent)
    grad_recurrent.push_back(t.defined() && (weights || grad_recurrent.size() == kSpikeInit)
                                 ? at::empty_symint(t.sym_sizes(), x.options().dtype(t.scalar_type()))
                                 : at::empty({0}, x.options().dtype(type)));
  std::vector<Tensor> shares;  // each neuron's share of a parameter's gradient
  for (const Parameter& p : call.parameters)
    shares.push_back(gradient(p.tensor, p.in_time ? kSequence : kStep, p.like_x ? x.scalar_type() : type));
  const auto given = call.parameters;
  Tensor sums, grad_residual;
  if (with_norm) {
    sums = at::empty_symint({2, x.sym_size(norm.dim)}, x.options().dtype(type));
    grad_residual = gradient(norm.residual, kSequence, x.scalar_type());
  }
  const Tensor weight = norm.weight, bias = norm.bias, residual = norm.residual;
  if (!x.is_meta()) {
    const bool steps = neuron.is_recurrent && by_steps(call, x, true);
    const Tensor own = steps ? x.contiguous() : x;
    prepare(call, own);
    if (with_norm) prepare(call, norm, x);
    KernelArgs& args = call.args;
    Recurrence r;
    Tensor grad_input = grad_x;
    if (neuron.is_recurrent) {
      r = recurrence(call, own);
      if (x.scalar_type() != type) grad_input = empty(x, kSequence, type);
      spikes = laid_out(spikes, x, kSequence, x.scalar_type());
      args.spike = const_cast<void*>(spikes.const_data_ptr());
      r.args.grad_input = grad_input.mutable_data_ptr();
    }
    if (steps) {
      Steps(call, r, own).backward(spikes, checkpoints, grad_spikes, grad_states, grad_input, grad_init, shares);
    } else {
      grad_spikes = laid_out(grad_spikes, x, kSequence, x.scalar_type());
      for (Tensor& t : grad_states) t = laid_out(t, x, call.args.store_seq ? kSequence : kStep, type);
      if (checkpoint_count(args.T) > 0) {
        if (checkpoints.scalar_type() != type || !layout.holds(checkpoints))
          checkpoints = layout.empty(x).copy_(checkpoints);
        args.checkpoints = const_cast<void*>(checkpoints.const_data_ptr());
      }
      args.grad_spike = read_ptr(grad_spikes);
      args.grad_x = grad_x.mutable_data_ptr();
      for (int k = 0; k < neuron.states; ++k) {
        args.grad_state[k] = read_ptr(grad_states[k]);
        if (call.init[k].defined()) args.grad_init[k] = grad_init[k].mutable_data_ptr();
      }
      for (size_t k = 0; k < given.size(); ++k)
        if (given[k].tensor.defined()) args.grad_param[given[k].index] = shares[k].mutable_data_ptr();
    }
    if (with_norm) {
      grad_sum = laid_out(grad_sum, x, kSequence, x.scalar_type());
      args.norm.grad_y = read_ptr(grad_sum);
      if (x.numel() == 0) sums.zero_();
      launch_normed_backward(call, norm, args, x, residual.defined() ? grad_residual : Tensor(), sums, batch);
    } else if (neuron.is_recurrent && !x.is_cpu()) {
      if (!steps) launch_recurrent(call, args, r, x, grad_input, true);
    } else if (!steps) {
      launch(call, args, true, neuron.is_recurrent ? &r.args : nullptr);
    }
    if (neuron.is_recurrent) {
      recurrent_gradients(call, r, spikes, grad_input, weights, grad_recurrent);
      if (!grad_input.is_same(grad_x)) grad_x.copy_(grad_input);
    }
  }
  // The order of a sum is fixed by the shapes, so the result is the same on every run.
  for (size_t k = 0; k < given.size(); ++k) {
    const Tensor& t = given[k].tensor;
    if (!t.defined()) continue;
    const bool one_step = t.dim() == x.dim() && !given[k].in_time;  // of a time of its own
    shares[k] = at::sum_to(shares[k], t.sym_sizes().slice(one_step ? 1 : 0)).to(t.scalar_type());
    if (one_step) shares[k] = shares[k].unsqueeze(0);
  }
  size_t share = 0, init = 0, fed = 0;
  for (const Argument& argument : neuron) {
    if (argument.kind == Kind::kInput) stack.emplace_back(std::move(grad_x));
    if (argument.kind == Kind::kLearned || argument.kind == Kind::kTensor)
      stack.emplace_back(std::move(shares[share++]));
    if (argument.kind == Kind::kState) stack.emplace_back(std::move(grad_init[init++]));
    if (argument.kind == Kind::kRecurrent) stack.emplace_back(std::move(grad_recurrent[fed++]));
  }
  if (!with_norm) return;
  const auto of = [&](const Tensor& t, int row) {
    return t.defined() ? sums.select(0, row).to(t.scalar_type(), false, /*copy=*/true) : at::empty({0}, sums.options());
  };
  stack.emplace_back(of(weight, 1));
  stack.emplace_back(of(bias, 0));
  stack.emplace_back(residual.defined() && residual.scalar_type() != x.scalar_type()
                         ? grad_residual.to(residual.scalar_type())
                         : grad_residual);
}

}  // namespace

void forward(const NeuronSpec& neuron, Stack& stack) { run_forward(neuron, stack, false); }

void train(const NeuronSpec& neuron, Stack& stack) { run_forward(neuron, stack, true); }

void backward(const NeuronSpec& neuron, Stack& stack) { run_backward(neuron, stack, false); }

void norm_forward(const NormSpec& spec, Stack& stack) { run_norm_forward(spec, stack, false); }

void norm_train(const NormSpec& spec, Stack& stack) { run_norm_forward(spec, stack, true); }

void norm_backward(const NormSpec& spec, Stack& stack) { run_backward(spec.neuron, stack, true); }

NormSpec::NormSpec(const NeuronSpec& neuron) : neuron(neuron) {
  // From "lif_forward(A) -> (R)": the name, the arguments and the results.
  const auto split = [&](const char* schema, const char* role, std::string& key, std::string& arguments,
                         std::string& results) {
    const std::string text = schema;
    key = text.substr(0, text.find('('));
    key = key.substr(0, key.size() - std::string(role).size());
    const size_t arrow = text.find(") -> (");
    arguments = text.substr(text.find('(') + 1, arrow - text.find('(') - 1);
    results = text.substr(arrow + 6, text.size() - arrow - 7);
  };
  std::string key, inputs, results;
  split(neuron.forward_schema, "_forward", key, inputs, results);
  inputs +=
      ", Tensor? weight=None, Tensor? bias=None, Tensor? mean=None, Tensor? var=None, Tensor? residual_seq=None, "
      "float eps=1e-05, bool with_sum=False, str? group=None, int group_size=1, int channel_dim=2";
  results += ", Tensor sum_seq, Tensor statistics";
  forward_schema = key + "_norm_forward(" + inputs + ") -> (" + results + ")";
  train_schema = "_" + key + "_norm_train(" + inputs + ") -> (" + results + ", Tensor checkpoints)";
  split(neuron.backward_schema, "_backward", key, inputs, results);
  backward_schema = key +
                    "_norm_backward(Tensor? grad_sum_seq, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
                    "Tensor? residual_seq, float eps, bool batch_statistics, str? group, int channel_dim, " +
                    inputs + ") -> (" + results + ", Tensor grad_weight, Tensor grad_bias, Tensor grad_residual_seq)";
}

void set_compiler(MakeKernel make) { compiler = make; }

void add_surrogate(const SurrogateSpec& surrogate, const char* key) {
  const std::lock_guard<std::mutex> lock(defined().mutex);
  for (const char* name : {key, surrogate.name}) defined().by_name[name] = &surrogate;
}

namespace {

// What has_kernel(neuron, surrogate, reset, dtype) says is there; the surrogate may be null.
template <class HasKernel>
std::vector<std::string> list(const HasKernel& has_kernel) {
  std::vector<std::string> out;
  for (const NeuronSpec& neuron : kNeurons) {
    std::vector<const SurrogateSpec*> surrogates;
    if (neuron.has_surrogate)
      for (const SurrogateSpec& s : kSurrogates) surrogates.push_back(&s);
    else
      surrogates.push_back(nullptr);
    for (const SurrogateSpec* s : surrogates) {
      for (int r = 0; r < kResets; ++r) {
        for (int d = 0; d < kDtypes; ++d) {
          if (has_kernel(neuron, s, r, d))
            out.push_back(std::string(neuron.name) + ":" + surrogate_name(s) + ":" + kResetNames[r] + ":" +
                          kDtypeNames[d]);
        }
      }
    }
  }
  return out;
}

const char* cpu_instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return "x86-64-v4";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "x86-64-v3";
#endif
  return "baseline";
}

}  // namespace

const Info* snnkern_info() {
  static const auto* combinations = [] {
    auto* lines = new std::map<std::string, std::string, std::less<>>;
    const auto add = [&](const char* device, const auto& has_kernel) {
      for (const std::string& name : list(has_kernel)) (*lines)[device] += name + "\n";
    };
    add("cpu", [](const NeuronSpec& neuron, const SurrogateSpec* s, int r, int d) {
      return (!s || *s->cpu) && look_up(*neuron.cpu, kTensorBackward, r, d);
    });
    add("cuda", [](const NeuronSpec& neuron, const SurrogateSpec* s, int r, int d) {
      return neuron.cuda[s ? s->index + 1 : 0] && look_up(neuron.cuda[0], kTensorBackward, r, d);
    });
    return lines;
  }();
  static const Info info = {TORCH_VERSION, kBuild, cpu_instruction_set(), [](const char* device) {
                              const auto found = combinations->find(device);
                              return found == combinations->end() ? "" : found->second.c_str();
                            }};
  return &info;
}

namespace {

// From the memory of one tensor to that of another, `count` values of `type`, for tensors on one device.
void run_packing(bool unpack, bool as_bytes, at::ScalarType type, const Tensor& from, const Tensor& to, int64_t count) {
  const auto dtype = dtype_of(type);
  TORCH_CHECK_TYPE(dtype, "snnkern.packed_spikes: spikes must be ", dtype_names(), ", got ", type);
  if (from.is_meta() || count == 0) return;
  const Packings& row = from.is_cpu() ? cpu::kPackings[*dtype] : cuda::kPackings[*dtype];
  const PackingKernel kernel = (unpack ? row.unpack : row.pack)[as_bytes];
  TORCH_CHECK(kernel, "snnkern.packed_spikes: a tensor on ", from.device(),
              " needs a snnkern that was built with CUDA there");
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  if (!from.is_cpu()) {
    const c10::DeviceGuard guard(from.device());
    void* const stream = c10::impl::VirtualGuardImpl(from.device().type()).getStream(from.device()).native_handle();
    const char* error = kernel(source, target, count, stream);
    TORCH_CHECK(!error, "snnkern.packed_spikes: the CUDA launch failed: ", error);
    return;
  }
  constexpr int64_t kBytes = 4096;  // a share
  const int64_t values = as_bytes ? 1 : 8, element = static_cast<int64_t>(c10::elementSize(type));
  const int64_t bytes = (count + values - 1) / values;
  at::parallel_for(0, (bytes + kBytes - 1) / kBytes, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBytes, end = std::min(last * kBytes, bytes);
    const int64_t at_values = begin * values * element;
    kernel(source + (unpack ? begin : at_values), target + (unpack ? at_values : begin),
           std::min(end * values, count) - begin * values, nullptr);
  });
}

}  // namespace

Tensor pack_spikes(const Tensor& values, bool as_bytes) {
  TORCH_CHECK(values.is_non_overlapping_and_dense(), "snnkern._pack_spikes: values must be dense");
  const c10::SymInt count = values.sym_numel();
  const Tensor out = at::empty_symint({as_bytes ? count : (count + 7) / 8}, values.options().dtype(at::kByte));
  run_packing(false, as_bytes, values.scalar_type(), values, out, values.is_meta() ? 0 : values.numel());
  return out;
}

void unpack_spikes(const Tensor& packed, bool as_bytes, Tensor& out) {
  TORCH_CHECK(out.is_non_overlapping_and_dense(), "snnkern._unpack_spikes: size and stride must be dense");
  const c10::SymInt count = out.sym_numel();
  TORCH_CHECK(packed.scalar_type() == at::kByte && packed.is_contiguous() &&
                  packed.sym_numel() == (as_bytes ? count : (count + 7) / 8),
              "snnkern._unpack_spikes: packed does not hold ", count, " values");
  run_packing(true, as_bytes, out.scalar_type(), packed, out, out.is_meta() ? 0 : out.numel());
}

}  // namespace snnkern
