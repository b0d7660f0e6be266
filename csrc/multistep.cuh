// The time loops for CUDA, forward and BPTT, over a generated neuron. A thread owns V neighbouring neurons for all time
// steps: rows are read and written in vectors of V, states stay in registers.
#pragma once
#include <cuda_runtime.h>

#include <initializer_list>

#include "elementary.h"
#include "multistep.h"

namespace snnkern::cuda {

constexpr int kThreads = 128;

template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vec {
  T lane[V];
};

template <int V, class T>
__device__ __forceinline__ Vec<T, V> load(const void* sequence, int64_t at) {
  return *reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(sequence) + at);
}

template <int V, class T>
__device__ __forceinline__ void store(void* sequence, int64_t at, const Vec<T, V>& values) {
  *reinterpret_cast<Vec<T, V>*>(static_cast<T*>(sequence) + at) = values;
}

// The states of V neurons, one row a state.
template <class R, int S, int V>
struct States {
  Vec<R, V> row[S];

  __device__ __forceinline__ void load_rows(const void* source, int64_t row_index, int64_t N, int64_t first) {
#pragma unroll
    for (int k = 0; k < S; ++k) row[k] = load<V, R>(source, (row_index + k) * N + first);
  }
  __device__ __forceinline__ void get(int lane, R* values) const {
#pragma unroll
    for (int k = 0; k < S; ++k) values[k] = row[k].lane[lane];
  }
  __device__ __forceinline__ void set(int lane, const R* values) {
#pragma unroll
    for (int k = 0; k < S; ++k) row[k].lane[lane] = values[k];
  }
};

template <class R, int S, int V>
__device__ __forceinline__ States<R, S, V> initial_states(const KernelArgs& a, int64_t first) {
  States<R, S, V> states;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (a.state_init[k]) {
      states.row[k] = load<V, R>(a.state_init[k], first);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) states.row[k].lane[v] = R(a.state_start[k]);
    }
  }
  return states;
}

// One time step of V neurons; returns the spikes.
template <class Neuron, class Surrogate, class T, class R, int S, int V>
__device__ __forceinline__ Vec<T, V> step(const typename Neuron::template Params<R>& p, const Surrogate& surrogate,
                                          const Vec<T, V>& x, States<R, S, V>& states) {
  Vec<T, V> spikes;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    R s[S];
    states.get(v, s);
    spikes.lane[v] = from_real<T>(Neuron::template forward<R>(p, surrogate, to_real(x.lane[v]), s));
    states.set(v, s);
  }
  return spikes;
}

// Neurons are counted in 64 bits: T * N may pass 2^31.
template <int V>
__device__ __forceinline__ int64_t first_neuron() {
  return (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
}

template <class Neuron, class Surrogate, class T, int V>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const KernelArgs a, typename Neuron::template Params<real_t<T>> p, const Surrogate surrogate) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates, kAhead = 4;  // rows of x in flight
  static_assert(kCheckpointPeriod % kAhead == 0, "a checkpoint falls between two groups of rows");
  const int64_t first = first_neuron<V>();
  if (first >= a.N) return;
  p.load(a);
  States<R, S, V> states = initial_states<R, S, V>(a, first);
  for (int64_t t0 = 0; t0 < a.T; t0 += kAhead) {
    if (a.checkpoints && t0 > 0 && t0 % kCheckpointPeriod == 0) {
#pragma unroll
      for (int k = 0; k < S; ++k)
        store<V, R>(a.checkpoints, ((t0 / kCheckpointPeriod - 1) * S + k) * a.N + first, states.row[k]);
    }
    Vec<T, V> x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (t0 + j < a.T) x[j] = load<V, T>(a.x, (t0 + j) * a.N + first);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (t0 + j < a.T) {
        store<V, T>(a.spike, (t0 + j) * a.N + first, step<Neuron>(p, surrogate, x[j], states));
        if (a.store_seq) {
#pragma unroll
          for (int k = 0; k < S; ++k) store<V, R>(a.state[k], (t0 + j) * a.N + first, states.row[k]);
        }
      }
    }
  }
  if (!a.store_seq) {
#pragma unroll
    for (int k = 0; k < S; ++k) store<V, R>(a.state[k], first, states.row[k]);
  }
}

// Chunks of C steps, from the last to the first: the states that enter each step are recomputed into registers, then
// the chunk is walked back. C is the checkpoint period, or less when T <= C and there is one chunk.
template <class Neuron, class Surrogate, class T, int V, int C>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const KernelArgs a, typename Neuron::template Params<real_t<T>> p, const Surrogate surrogate) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates, L = Neuron::kLearned > 0 ? Neuron::kLearned : 1;
  const int64_t first = first_neuron<V>();
  if (first >= a.N) return;
  p.load(a);
  States<R, S, V> grad;
  Vec<R, V> grad_param[L] = {};
#pragma unroll
  for (int k = 0; k < S; ++k) {
    grad.row[k] = {};
    if (a.grad_state[k] && !a.store_seq) grad.row[k] = load<V, R>(a.grad_state[k], first);
  }
  for (int64_t chunk = (a.T - 1) / C; chunk >= 0; --chunk) {
    const int64_t start = chunk * C;
    Vec<T, V> x[C], grad_spike[C];
#pragma unroll
    for (int j = 0; j < C; ++j) {
      grad_spike[j] = {};
      if (start + j < a.T) {
        x[j] = load<V, T>(a.x, (start + j) * a.N + first);
        if (a.grad_spike) grad_spike[j] = load<V, T>(a.grad_spike, (start + j) * a.N + first);
      }
    }
    States<R, S, V> old[C];
    if (chunk == 0) {
      old[0] = initial_states<R, S, V>(a, first);
    } else {
      old[0].load_rows(a.checkpoints, (chunk - 1) * S, a.N, first);
    }
#pragma unroll
    for (int j = 0; j + 1 < C; ++j) {
      if (start + j + 1 < a.T) {
        old[j + 1] = old[j];
        step<Neuron>(p, surrogate, x[j], old[j + 1]);
      }
    }
#pragma unroll
    for (int j = C - 1; j >= 0; --j) {
      if (start + j >= a.T) continue;
      if (a.store_seq) {
#pragma unroll
        for (int k = 0; k < S; ++k) {
          if (!a.grad_state[k]) continue;
          const Vec<R, V> row = load<V, R>(a.grad_state[k], (start + j) * a.N + first);
#pragma unroll
          for (int v = 0; v < V; ++v) grad.row[k].lane[v] += row.lane[v];
        }
      }
      Vec<T, V> grad_x;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        R s[S], g[S], gp[L];
        old[j].get(v, s);
        grad.get(v, g);
#pragma unroll
        for (int k = 0; k < L; ++k) gp[k] = grad_param[k].lane[v];
        grad_x.lane[v] = from_real<T>(Neuron::template backward<R>(p, surrogate, to_real(x[j].lane[v]), s,
                                                                   to_real(grad_spike[j].lane[v]), g, gp));
        grad.set(v, g);
#pragma unroll
        for (int k = 0; k < L; ++k) grad_param[k].lane[v] = gp[k];
      }
      store<V, T>(a.grad_x, (start + j) * a.N + first, grad_x);
    }
  }
#pragma unroll
  for (int k = 0; k < S; ++k) store<V, R>(a.grad_init[k], first, grad.row[k]);
#pragma unroll
  for (int k = 0; k < Neuron::kLearned; ++k) store<V, R>(a.grad_param[k], first, grad_param[k]);
}

// Whether every row of every tensor may be read in vectors of V.
template <class T>
bool vectors_fit(const KernelArgs& a, int V) {
  if (a.N % V) return false;
  uintptr_t bits = 0;
  for (const void* p : {a.x, static_cast<const void*>(a.spike), a.grad_spike, static_cast<const void*>(a.grad_x)})
    bits |= reinterpret_cast<uintptr_t>(p);
  if (bits % (sizeof(T) * V < 16 ? sizeof(T) * V : 16)) return false;
  bits = reinterpret_cast<uintptr_t>(a.checkpoints);
  for (int k = 0; k < kMaxStates; ++k)
    for (const void* p : {a.state_init[k], static_cast<const void*>(a.state[k]), a.grad_state[k],
                          static_cast<const void*>(a.grad_init[k])})
      bits |= reinterpret_cast<uintptr_t>(p);
  for (const void* p : a.grad_param) bits |= reinterpret_cast<uintptr_t>(p);
  const size_t state = sizeof(real_t<T>) * V;
  return bits % (state < 16 ? state : 16) == 0;
}

template <class Neuron, class Surrogate, class R>
using Kernel = void (*)(KernelArgs, typename Neuron::template Params<R>, Surrogate);

template <class Neuron, class Surrogate, class R>
const char* launch(const KernelArgs& a, void* stream, int V, Kernel<Neuron, Surrogate, R> kernel) {
  const int64_t threads = (a.N + V - 1) / V, blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return "too many neurons for one launch";
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, KernelArgs(a), typename Neuron::template Params<R>(a), Surrogate(a));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// float64 and smooth passes are for checking: they have one variant. The others use 16-byte accesses where they fit.
template <class Neuron, class T>
constexpr bool kOneVariant = Neuron::kSmooth || sizeof(T) == 8;

template <class Neuron, template <class> class SurrogateOf, class T>
const char* forward(const KernelArgs& a, void* stream) {
  using R = real_t<T>;
  using Surrogate = SurrogateOf<R>;
  const auto run = [&](int V, Kernel<Neuron, Surrogate, R> kernel) {
    return launch<Neuron, Surrogate, R>(a, stream, V, kernel);
  };
  if constexpr (!kOneVariant<Neuron, T>) {
    constexpr int V = 16 / sizeof(T);
    if (vectors_fit<T>(a, V)) return run(V, forward_kernel<Neuron, Surrogate, T, V>);
  }
  return run(1, forward_kernel<Neuron, Surrogate, T, 1>);
}

// A chunk keeps C * V <= 32 old states in registers; a chunk longer than T wastes time.
template <class Neuron, template <class> class SurrogateOf, class T>
const char* backward(const KernelArgs& a, void* stream) {
  using R = real_t<T>;
  using Surrogate = SurrogateOf<R>;
  const auto run = [&](int V, Kernel<Neuron, Surrogate, R> kernel) {
    return launch<Neuron, Surrogate, R>(a, stream, V, kernel);
  };
  if constexpr (!kOneVariant<Neuron, T>) {
    constexpr int kWide = 16 / sizeof(T);
    if (a.T <= 4 && vectors_fit<T>(a, kWide)) return run(kWide, backward_kernel<Neuron, Surrogate, T, kWide, 4>);
    if (a.T <= 8 && vectors_fit<T>(a, 4)) return run(4, backward_kernel<Neuron, Surrogate, T, 4, 8>);
    if (vectors_fit<T>(a, 2)) return run(2, backward_kernel<Neuron, Surrogate, T, 2, kCheckpointPeriod>);
  }
  return run(1, backward_kernel<Neuron, Surrogate, T, 1, kCheckpointPeriod>);
}

}  // namespace snnkern::cuda
