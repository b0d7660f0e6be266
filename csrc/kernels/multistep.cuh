// The time loops for CUDA, forward and BPTT, over a generated neuron. A thread owns V neighbouring neurons for all time
// steps: rows are read and written in vectors of V, states stay in registers.
#pragma once
#include <cuda_runtime.h>

#include "elementary.h"
#include "multistep.h"
#include "shape.h"

namespace snnkern::cuda {

constexpr int kGroup = 4;  // steps between two looks at how many are left

// V neighbouring numbers of a row, as they lie in memory.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Packed {
  std::conditional_t<sizeof(T) * V % 4 == 0, uint32_t, uint16_t> word[sizeof(T) * V % 4 == 0 ? sizeof(T) * V / 4 : 1];
};

template <class R, int V>
struct Numbers {
  R lane[V];
};

template <class T, int V>
__device__ __forceinline__ Numbers<real_t<T>, V> unpack(const Packed<T, V>& packed) {
  static_assert(V == 1 || V % 2 == 0, "16-bit numbers come alone or in pairs");
  Numbers<real_t<T>, V> out;
  if constexpr (sizeof(T) == 2 && V > 1) {
#pragma unroll
    for (int v = 0; v < V; v += 2) snnkern::unpack<T>(packed.word[v / 2], out.lane[v], out.lane[v + 1]);
  } else {
    T lane[V];
    memcpy(lane, &packed, sizeof(lane));
#pragma unroll
    for (int v = 0; v < V; ++v) out.lane[v] = to_real(lane[v]);
  }
  return out;
}

template <class T, int V>
__device__ __forceinline__ Packed<T, V> pack(const Numbers<real_t<T>, V>& numbers) {
  Packed<T, V> out;
  if constexpr (sizeof(T) == 2 && V > 1) {
#pragma unroll
    for (int v = 0; v < V; v += 2) out.word[v / 2] = snnkern::pack<T>(numbers.lane[v], numbers.lane[v + 1]);
  } else {
    T lane[V];
#pragma unroll
    for (int v = 0; v < V; ++v) lane[v] = from_real<T>(numbers.lane[v]);
    memcpy(&out, lane, sizeof(lane));
  }
  return out;
}

// Keeps the compiler from making a second copy of the code that follows for the case that the value is known.
__device__ __forceinline__ void opaque(float& value) {
#ifdef __CUDA_ARCH__
  asm("" : "+f"(value));
#endif
}
__device__ __forceinline__ void opaque(double& value) {
#ifdef __CUDA_ARCH__
  asm("" : "+d"(value));
#endif
}

// Where in a sequence neuron n has its first step.
__device__ __forceinline__ int64_t origin(const KernelArgs& a, int64_t n) {
  if (a.inner == a.N) return n;
  // A division of 64 bits takes four times as long.
  const int64_t outer = a.N > INT32_MAX ? n / a.inner : static_cast<uint32_t>(n) / static_cast<uint32_t>(a.inner);
  return n + outer * (a.T - 1) * a.inner;
}

// A thread's V neurons in one row of a tensor; moves from row to row. The row is `stride` elements long, and `first` is
// where in it they lie.
template <class T, int V>
class Column {
 public:
  Column() = default;
  __device__ __forceinline__ Column(const void* tensor, int64_t row, int64_t stride, int64_t first)
      : at_(static_cast<char*>(const_cast<void*>(tensor)) + (row * stride + first) * int64_t(sizeof(T))),
        stride_(stride * int64_t(sizeof(T))) {}
  __device__ __forceinline__ Packed<T, V> load() const { return *reinterpret_cast<const Packed<T, V>*>(global()); }
  __device__ __forceinline__ void store(const Packed<T, V>& values) const {
    *reinterpret_cast<Packed<T, V>*>(global()) = values;
  }
  __device__ __forceinline__ void down() { move(stride_); }
  __device__ __forceinline__ void up() { move(-stride_); }

 private:
  // Two additions. Left to itself the compiler works out each address anew: 20 instructions, or 4 registers a row.
  __device__ __forceinline__ void move(int64_t bytes) {
    at_ += bytes;
#ifdef __CUDA_ARCH__
    asm("" : "+l"(at_));
#endif
  }
  __device__ __forceinline__ char* global() const {
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(at_));
#endif
    return at_;
  }

  char* at_;
  int64_t stride_;
};

// K numbers for each of V neurons: states, their gradients, a tape.
template <class R, int K, int V>
struct Lanes {
  Numbers<R, V> row[K > 0 ? K : 1];

  __device__ __forceinline__ void get(int lane, R* values) const {
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = row[k].lane[lane];
  }
  __device__ __forceinline__ void set(int lane, const R* values) {
#pragma unroll
    for (int k = 0; k < K; ++k) row[k].lane[lane] = values[k];
  }
  __device__ __forceinline__ void fill(int k, R value) {
#pragma unroll
    for (int v = 0; v < V; ++v) row[k].lane[v] = value;
  }
  __device__ __forceinline__ void load(int k, const void* tensor, int64_t row_index, const KernelArgs& a,
                                       int64_t first) {
    row[k] = unpack<R, V>(Column<R, V>(tensor, row_index, a.N, first).load());
  }
  __device__ __forceinline__ void store(int k, void* tensor, int64_t row_index, const KernelArgs& a,
                                        int64_t first) const {
    Column<R, V>(tensor, row_index, a.N, first).store(pack<R, V>(row[k]));
  }
};

// The parameters of a thread's neurons: the same for all, or, where one may be a tensor, those of each.
template <class Neuron, class R, int V>
struct Parameters {
  using Params = typename Neuron::template Params<R>;

  __device__ __forceinline__ Parameters(const Params& common, const KernelArgs& a, int64_t first) : common_(common) {
    if constexpr (Neuron::kTensors) {
#pragma unroll
      for (int k = 0; k < Params::kCount; ++k) {
        const ParamTensor& t = a.tensor[k];
        value_.fill(k, R(a.params[k]));
        if (!t.data || kLikeX<Neuron> >> k & 1) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const R* at = static_cast<const R*>(t.data) + element(t, a.N, first + v);
          value_.row[k].lane[v] = *at;
          if (kInTime<Neuron> >> k & 1) first_[k][v] = at;
        }
      }
    } else {
      common_.load(a);
    }
  }
  // Those that change with time, in step t of a sequence of T.
  template <class T>
  __device__ __forceinline__ void enter(const KernelArgs& a, int64_t t, int64_t origin) {
#pragma unroll
    for (int k = 0; k < Params::kCount; ++k) {
      if (!(kInTime<Neuron> >> k & 1)) continue;
      if (kLikeX<Neuron> >> k & 1) {
        value_.row[k] = unpack<T, V>(Column<T, V>(a.tensor[k].data, t, a.inner, origin).load());
        continue;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) value_.row[k].lane[v] = first_[k][v][t * a.tensor[k].step];
    }
  }
  __device__ __forceinline__ Params of(int lane) const {
    Params p = common_;
    if constexpr (Neuron::kTensors) {
      R value[Params::kCount > 0 ? Params::kCount : 1];
      value_.get(lane, value);
      p.set(value);
    }
    return p;
  }
  // Of a tensor pass: parameter k of each neuron.
  __device__ __forceinline__ const Numbers<R, V>& row(int k) const { return value_.row[k]; }

 private:
  // A division of 64 bits takes four times as long.
  static __device__ __forceinline__ int64_t element(const ParamTensor& t, int64_t N, int64_t n) {
    if (N > INT32_MAX) return n / t.inner % t.size;
    return static_cast<uint32_t>(n) / static_cast<uint32_t>(t.inner) % static_cast<uint32_t>(t.size);
  }

  Params common_;
  Lanes<R, Neuron::kTensors ? Params::kCount : 0, V> value_;
  const R* first_[kInTime<Neuron> ? Params::kCount : 1][V];  // where those that change with time are in the first step
};

// The states that enter step t, a multiple of the checkpoint period.
template <class Neuron, class R, int V, int S = Neuron::kStates>
__device__ __forceinline__ Lanes<R, S, V> entry_states(const KernelArgs& a, const Parameters<Neuron, R, V>& parameters,
                                                       int64_t t, int64_t first) {
  Lanes<R, S, V> states;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (t > 0) {
      states.load(k, a.checkpoints, (t / kCheckpointPeriod - 1) * S + k, a, first);
    } else if (a.state_init[k]) {
      states.load(k, a.state_init[k], 0, a, first);
    } else if (Neuron::kTensors && Neuron::start(k) >= 0) {
      states.row[k] = parameters.row(Neuron::start(k));
    } else {
      states.fill(k, R(a.state_start[k]));
    }
  }
  return states;
}

// Neurons are counted in 64 bits: T * N may pass 2^31.
template <int V>
__device__ __forceinline__ int64_t first_neuron() {
  return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
}

// How many of the C steps from `start` there are.
__device__ __forceinline__ int steps_left(const KernelArgs& a, int64_t start, int C) {
  return a.T - start < C ? static_cast<int>(a.T - start) : C;
}

// kAhead rows of the input are loaded while the kAhead rows before them are worked on.
template <class Neuron, class Surrogate, class T, int V, int kAhead>
__device__ __forceinline__ void forward_loop(const KernelArgs& a,
                                             const typename Neuron::template Params<real_t<T>>& common,
                                             const Surrogate& surrogate) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates;
  static_assert(kAhead % kGroup == 0 && kCheckpointPeriod % kGroup == 0, "a checkpoint falls between two groups");
  const int64_t first = first_neuron<V>();
  if (first >= a.N) return;
  const int64_t origin = cuda::origin(a, first);
  Parameters<Neuron, R, V> parameters(common, a, first);
  parameters.template enter<T>(a, 0, origin);
  Lanes<R, S, V> states = entry_states(a, parameters, 0, first);
  Packed<T, V> x[kAhead];
  const auto load = [&](int64_t start, Packed<T, V>* rows) {
    Column<T, V> column(a.x, start, a.inner, origin);
    const int steps = steps_left(a, start, kAhead);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j % kGroup == 0 && j >= steps) break;
      if (j < steps) rows[j] = column.load();
      column.down();
    }
  };
  Column<T, V> spikes(a.spike, 0, a.inner, origin);
  Column<R, V> sequence[S];
#pragma unroll
  for (int k = 0; k < S; ++k) sequence[k] = Column<R, V>(a.state[k], 0, a.inner, origin);
  load(0, x);
  for (int64_t start = 0; start < a.T; start += kAhead) {
    Packed<T, V> next[kAhead];
    load(start + kAhead, next);
    const int steps = steps_left(a, start, kAhead);
#pragma unroll
    for (int group = 0; group < kAhead; group += kGroup) {
      if (group >= steps) break;
      const int64_t t = start + group;
      if (a.checkpoints && t > 0 && t % kCheckpointPeriod == 0) {
#pragma unroll
        for (int k = 0; k < S; ++k) states.store(k, a.checkpoints, (t / kCheckpointPeriod - 1) * S + k, a, first);
      }
      const auto step = [&](int j) {
        parameters.template enter<T>(a, t + j, origin);
        const Numbers<R, V> input = unpack<T, V>(x[group + j]);
        Numbers<R, V> fired;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          R s[S];
          states.get(v, s);
          fired.lane[v] = Neuron::template forward<R>(parameters.of(v), surrogate, input.lane[v], s);
          states.set(v, s);
        }
        spikes.store(pack<T, V>(fired));
        spikes.down();
        if (a.store_seq) {
#pragma unroll
          for (int k = 0; k < S; ++k) {
            sequence[k].store(pack<R, V>(states.row[k]));
            sequence[k].down();
          }
        }
      };
      if (group + kGroup <= steps) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) step(j);
      } else {
#pragma unroll
        for (int j = 0; j + 1 < kGroup; ++j)
          if (group + j < steps) step(j);
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) x[j] = next[j];
  }
  if (!a.store_seq) {
#pragma unroll
    for (int k = 0; k < S; ++k) states.store(k, a.state[k], 0, a, first);
  }
}

// Blocks of BPTT that a multiprocessor should hold. With 16-bit numbers the memory waits for arithmetic, and where
// little is kept 128 or 168 registers do, but unless it is told so the compiler takes up to 70 more. `--report` shows
// where they do not.
template <class Neuron, class T, int V>
constexpr int blocks_wanted() {
  if (sizeof(T) > 2 || V == 1) return 1;
  if (Neuron::kTape == 1 && Neuron::kStates <= 2 && !Neuron::kTensors) return 4;
  return Neuron::kTape <= 2 && V * Neuron::kStates <= 4 && Neuron::kGradients <= 4 ? 3 : 1;
}

// A parameter that changes with time has a gradient in each step.
template <class Neuron, class T, int V>
__device__ __forceinline__ void leave_step(const KernelArgs& a, int64_t t, int64_t origin,
                                           Lanes<real_t<T>, Neuron::kGradients, V>& grad_param) {
  using R = real_t<T>;
#pragma unroll
  for (int k = 0; k < Neuron::kGradients; ++k) {
    if (!(kInTime<Neuron> >> k & 1)) continue;
    if (a.grad_param[k] && kLikeX<Neuron> >> k & 1) {
      Column<T, V>(a.grad_param[k], t, a.inner, origin).store(pack<T, V>(grad_param.row[k]));
    } else if (a.grad_param[k]) {
      Column<R, V>(a.grad_param[k], t, a.inner, origin).store(pack<R, V>(grad_param.row[k]));
    }
    grad_param.fill(k, R(0));
  }
}

// Chunks of C steps, from the last to the first. A chunk is run forward from the states that entered it, which leaves a
// tape in registers, and then back. C is the checkpoint period, or T <= C and there is one chunk.
template <class Neuron, class Surrogate, class T, int V, int C>
__device__ __forceinline__ void backward_loop(const KernelArgs& a,
                                              const typename Neuron::template Params<real_t<T>>& common,
                                              const Surrogate& surrogate) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates, K = Neuron::kTape, L = Neuron::kGradients;
  static_assert(C % kGroup == 0);
  const int64_t first = first_neuron<V>();
  if (first >= a.N) return;
  const int64_t origin = cuda::origin(a, first);
  Parameters<Neuron, R, V> parameters(common, a, first);
  Lanes<R, S, V> grad;
  Lanes<R, L, V> grad_param;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    grad.fill(k, R(0));
    if (a.grad_state[k] && !a.store_seq) grad.load(k, a.grad_state[k], 0, a, first);
  }
#pragma unroll
  for (int k = 0; k < L; ++k) grad_param.fill(k, R(0));

  for (int64_t start = C < kCheckpointPeriod ? 0 : (a.T - 1) / C * C; start >= 0; start -= C) {
    const int steps = steps_left(a, start, C);
    Packed<T, V> x[C], grad_spike[C];
    Column<T, V> x_row(a.x, start, a.inner, origin), grad_row(a.grad_spike, start, a.inner, origin);
#pragma unroll
    for (int j = 0; j < C; ++j) {
      if (j % kGroup == 0 && j >= steps) break;
      x[j] = grad_spike[j] = {};
      if (j < steps) x[j] = x_row.load();
      if (j < steps && a.grad_spike) grad_spike[j] = grad_row.load();
      x_row.down();
      grad_row.down();
    }
    parameters.template enter<T>(a, 0, origin);  // where a state may start
    Lanes<R, S, V> states = entry_states(a, parameters, start, first);
    Lanes<R, K, V> tape[C];
#pragma unroll
    for (int group = 0; group < C; group += kGroup) {
      if (group >= steps) break;
#pragma unroll
      for (int j = group; j < group + kGroup; ++j) {
        if (j < steps) parameters.template enter<T>(a, start + j, origin);
        const Numbers<R, V> input = unpack<T, V>(x[j]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          R s[S], note[K > 0 ? K : 1];
          states.get(v, s);
          Neuron::template record<R>(parameters.of(v), surrogate, input.lane[v], s, note);
          states.set(v, s);
          tape[j].set(v, note);
        }
      }
    }
#pragma unroll
    for (int group = C - kGroup; group >= 0; group -= kGroup) {
      if (group >= steps) continue;
      Column<T, V> grad_x(a.grad_x, start + group + kGroup - 1, a.inner, origin);
      Lanes<R, S, V> incoming[kGroup];
#pragma unroll
      for (int k = 0; k < S; ++k) {
        Column<R, V> column(a.grad_state[k], start + group, a.inner, origin);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          incoming[j].fill(k, R(-0.0));  // adding it changes nothing, not even a zero's sign
          if (a.store_seq && a.grad_state[k] && group + j < steps) incoming[j].row[k] = unpack<R, V>(column.load());
          column.down();
#pragma unroll
          for (int v = 0; v < V; ++v) opaque(incoming[j].row[k].lane[v]);
        }
      }
#pragma unroll
      for (int j = group + kGroup - 1; j >= group; --j) {
        const bool real = j < steps;  // a step after the last one leaves all as it was
        if (real) parameters.template enter<T>(a, start + j, origin);
        const Numbers<R, V> gs = unpack<T, V>(grad_spike[j]);
        Numbers<R, V> gx;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          R note[K > 0 ? K : 1], g[S], gp[L > 0 ? L : 1], old[S], old_param[L > 0 ? L : 1];
          tape[j].get(v, note);
          grad.get(v, old);
          grad_param.get(v, old_param);
#pragma unroll
          for (int k = 0; k < S; ++k) g[k] = old[k] = old[k] + incoming[j - group].row[k].lane[v];
#pragma unroll
          for (int k = 0; k < L; ++k) gp[k] = old_param[k];
          gx.lane[v] = Neuron::template backward<R>(parameters.of(v), surrogate, note, gs.lane[v], g, gp);
#pragma unroll
          for (int k = 0; k < S; ++k) g[k] = real ? g[k] : old[k];
#pragma unroll
          for (int k = 0; k < L; ++k) gp[k] = real ? gp[k] : old_param[k];
          grad.set(v, g);
          grad_param.set(v, gp);
        }
        if (real) grad_x.store(pack<T, V>(gx));
        grad_x.up();
        if (real && start + j > 0) leave_step<Neuron, T, V>(a, start + j, origin, grad_param);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (a.grad_init[k]) grad.store(k, a.grad_init[k], 0, a, first);
    if (Neuron::kTensors && !a.state_init[k] && Neuron::start(k) >= 0)
#pragma unroll
      for (int v = 0; v < V; ++v) grad_param.row[Neuron::start(k)].lane[v] += grad.row[k].lane[v];
  }
  leave_step<Neuron, T, V>(a, 0, origin, grad_param);
#pragma unroll
  for (int k = 0; k < L; ++k)
    if (a.grad_param[k] && !(kInTime<Neuron> >> k & 1)) grad_param.store(k, a.grad_param[k], 0, a, first);
}

// ---- the library's own kernels, and their launch; what is compiled at run time has its kernel from
// codegen/emit/kernels.py

#ifndef __CUDACC_RTC__

template <class Neuron, class Surrogate, class T, int V, int kAhead>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const KernelArgs a, const typename Neuron::template Params<real_t<T>> common,
                   const Surrogate surrogate) {
  forward_loop<Neuron, Surrogate, T, V, kAhead>(a, common, surrogate);
}

template <class Neuron, class Surrogate, class T, int V, int C>
__global__ void __launch_bounds__(kThreads, blocks_wanted<Neuron, T, V>())
    backward_kernel(const KernelArgs a, const typename Neuron::template Params<real_t<T>> common,
                    const Surrogate surrogate) {
  backward_loop<Neuron, Surrogate, T, V, C>(a, common, surrogate);
}

template <class Neuron, class Surrogate, class R>
using Kernel = void (*)(KernelArgs, typename Neuron::template Params<R>, Surrogate);

template <class Neuron, class Surrogate, class R>
const char* launch(const KernelArgs& a, void* stream, Shape shape, Kernel<Neuron, Surrogate, R> kernel) {
  const int64_t count = blocks(a, shape);
  if (count > INT32_MAX) return "too many neurons for one launch";
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(count));
  config.blockDim = dim3(shape.threads());
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, KernelArgs(a), typename Neuron::template Params<R>(a), Surrogate(a));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

// Calls run(place) with the place `chosen` as a constant.
template <int kCount, int kPlace = 0, class Run>
const char* with_constant(int chosen, const Run& run) {
  if constexpr (kPlace + 1 < kCount) {
    if (chosen != kPlace) return with_constant<kCount, kPlace + 1>(chosen, run);
  }
  return run(std::integral_constant<int, kPlace>());
}

// The passes for tensors and conventions also come in vectors, but for those for checking, those that call the
// surrogate by its number.
template <class Neuron, class Surrogate, class T>
constexpr bool kWide =
    Neuron::kWide && (!Neuron::kTensors || (sizeof(T) < 8 && !Neuron::kSmooth && !Surrogate::kByNumber));

template <class Neuron, template <class> class SurrogateOf, class T>
const char* forward(const KernelArgs& a, void* stream) {
  using Surrogate = SurrogateOf<real_t<T>>;
  constexpr Family of = {false, Neuron::kTensors, kWide<Neuron, Surrogate, T>, sizeof(T)};
  return with_constant<shapes(of).count>(choose(a, of, multiprocessors()), [&](auto place) {
    constexpr Shape shape = shapes(of).shape[decltype(place)::value];
    return launch<Neuron, Surrogate, real_t<T>>(a, stream, shape,
                                                forward_kernel<Neuron, Surrogate, T, shape.V, shape.steps>);
  });
}

template <class Neuron, template <class> class SurrogateOf, class T>
const char* backward(const KernelArgs& a, void* stream) {
  using Surrogate = SurrogateOf<real_t<T>>;
  constexpr Family of = {true, Neuron::kTensors, kWide<Neuron, Surrogate, T>, sizeof(T)};
  return with_constant<shapes(of).count>(choose(a, of, multiprocessors()), [&](auto place) {
    constexpr Shape shape = shapes(of).shape[decltype(place)::value];
    return launch<Neuron, Surrogate, real_t<T>>(a, stream, shape,
                                                backward_kernel<Neuron, Surrogate, T, shape.V, shape.steps>);
  });
}

#endif  // __CUDACC_RTC__

}  // namespace snnkern::cuda
