// Neurons whose spikes come back to them, on CUDA. Rows of neurons are independent, so a block owns some of them for all
// steps, and no step needs a barrier beyond its block.
//
// forward   runs the steps. A spike adds its row of weights, which come through the caches.
// record    makes the tape of all steps, each chunk from the states that entered it, all chunks at once: the spikes are
//           known, so that nothing waits for the step before.
// backward  runs BPTT over the tape. A block keeps all weights in its registers, 32 rows of 64 columns a warp; where
//           they do not fit, the host makes the product of a step, and step_back does the rest.
#pragma once
#include "multistep.cuh"

namespace snnkern::cuda {

constexpr int kWord = RecurrentArgs::kGroup;  // neurons of a group, and of a warp
constexpr int kWarp = 32;
static_assert(kWord == kWarp, "a warp asks for the spikes of a group at once");

// Number `i` of a sequence, whose type is known at run time: kernels are made for R alone.
template <class R>
__device__ __forceinline__ R load_number(const void* sequence, int64_t i, Dtype dtype) {
  if constexpr (sizeof(R) == 8) return static_cast<const R*>(sequence)[i];
  else {
    if (dtype == kF32) return static_cast<const float*>(sequence)[i];
    if (dtype == kF16) return to_real(static_cast<const f16*>(sequence)[i]);
    return to_real(static_cast<const bf16*>(sequence)[i]);
  }
}

// Returns the number as it is read again.
template <class R>
__device__ __forceinline__ R store_number(void* sequence, int64_t i, Dtype dtype, R value) {
  if constexpr (sizeof(R) == 8) {
    return static_cast<R*>(sequence)[i] = value;
  } else {
    if (dtype == kF32) return static_cast<float*>(sequence)[i] = value;
    if (dtype == kF16) return to_real(static_cast<f16*>(sequence)[i] = from_real<f16>(value));
    return to_real(static_cast<bf16*>(sequence)[i] = from_real<bf16>(value));
  }
}

SNNKERN_FN int dtype_size(Dtype dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; }

__device__ __forceinline__ void prefetch(const void* sequence, int64_t i, int size) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(sequence) + i * size));
#endif
}
constexpr int64_t kSoon = 4;  // steps before it is needed that what comes from memory is asked for

__device__ __forceinline__ char* block_memory() {
#ifdef __NVCC__
  extern __shared__ __align__(16) char recurrent_memory[];
  return recurrent_memory;
#else
  return host_shared;
#endif
}

// Takes arrays out of the memory of a block, or counts how much they take.
struct Room {
  char* at;
  template <class Number>
  SNNKERN_FN Number* take(int64_t count) {
    char* const begin = at;
    at += (count * int64_t(sizeof(Number)) + 15) / 16 * 16;
    return reinterpret_cast<Number*>(begin);
  }
};

// How neurons lie in a block: `rows` of them, each filled up to a multiple of a warp.
struct Tile {
  int rows, width;
  SNNKERN_FN Tile(const RecurrentArgs& r, int multiple) : rows(r.rows) {
    width = static_cast<int>((r.size + multiple - 1) / multiple * multiple);
  }
  SNNKERN_FN int count() const { return rows * width; }
};

constexpr int kTogether = 8;  // weights on their way

// The neurons of a row that fire, in ascending order.
struct alignas(16) Firing {
  uint16_t neuron[kTogether];
};

template <class Neuron, class R>
struct ForwardMemory {
  R *spike, *state;  // spikes of two steps: while some are made, others are read
  uint16_t* firing;
  uint32_t* word;  // of each group, a bit for each that fires
  int* fired;      // how many in each row

  SNNKERN_FN ForwardMemory(Room& room, const Tile& tile) {
    spike = room.take<R>(2 * tile.count());
    state = room.take<R>(int64_t(Neuron::kStates) * tile.count());
    firing = room.take<uint16_t>(tile.count());
    word = room.take<uint32_t>(tile.count() / kWord);
    fired = room.take<int>(tile.rows);
  }
};

// The sum over a row's spikes, in the order of RecurrentArgs.
template <class R>
__device__ __forceinline__ R weighted(const RecurrentArgs& r, const R* spike, const uint16_t* firing, int count,
                                      int column) {
  const R* const weight = static_cast<const R*>(r.forward) + column;
  R total = 0, sum = 0;
  int group = 0;
  for (int i = 0; i < count; i += kTogether) {
    const Firing from = *reinterpret_cast<const Firing*>(firing + i);
    R w[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u)
      if (i + u < count) w[u] = weight[from.neuron[u] * r.stride];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      if (i + u < count) {
        if (from.neuron[u] / kWord != group) {
          total += sum;
          sum = 0;
          group = from.neuron[u] / kWord;
        }
        sum += spike[from.neuron[u]] * w[u];
      }
    }
  }
  return total + sum;
}

// A neuron's step, from what comes back to it; its states lie `stride` apart. Returns the spike. kRecords: the tape, of a
// spike that is known.
template <bool kRecords, class Neuron, class Surrogate, class R>
__device__ __forceinline__ R recurrent_step(const KernelArgs& a, const RecurrentArgs& r,
                                            const typename Neuron::template Params<R>& common,
                                            const Surrogate& surrogate, int64_t t, int64_t n, int column, R x, R z,
                                            R* state_of, int stride) {
  constexpr int S = Neuron::kStates, K = Neuron::kTape;
  const Parameters<Neuron, R, 1> parameters(common, a, n);
  const int64_t at = origin(a, n) + t * a.inner;
  if (r.bias) z += static_cast<const R*>(r.bias)[column];
  const R input = x + z;
  R state[S > 0 ? S : 1], spike;
#pragma unroll
  for (int k = 0; k < S; ++k) state[k] = state_of[k * stride];
  if constexpr (kRecords) {
    R tape[K > 0 ? K : 1];
    Neuron::template record<R>(parameters.of(0), surrogate, input, state, tape);
#pragma unroll
    for (int k = 0; k < K; ++k) static_cast<R*>(r.tape)[(t * K + k) * a.N + n] = tape[k];
    spike = load_number<R>(a.spike, at, r.dtype);
  } else {
    if (a.checkpoints && t > 0 && t % kCheckpointPeriod == 0) {
#pragma unroll
      for (int k = 0; k < S; ++k)
        static_cast<R*>(a.checkpoints)[((t / kCheckpointPeriod - 1) * S + k) * a.N + n] = state[k];
    }
    spike = store_number(a.spike, at, r.dtype,
                         Neuron::template forward<R>(parameters.of(0), surrogate, input, state));
#pragma unroll
    for (int k = 0; k < S; ++k) {
      if (a.store_seq)
        static_cast<R*>(a.state[k])[at] = state[k];
      else if (t + 1 == a.T)
        static_cast<R*>(a.state[k])[n] = state[k];
    }
  }
#pragma unroll
  for (int k = 0; k < S; ++k) state_of[k * stride] = state[k];
  return spike;
}

// What a neuron starts with: its states, `stride` apart, and the spike before.
template <class Neuron, class R>
__device__ __forceinline__ R recurrent_start(const KernelArgs& a, const RecurrentArgs& r,
                                             const typename Neuron::template Params<R>& common, int64_t begin,
                                             int64_t n, R* state_of, int stride) {
  const Parameters<Neuron, R, 1> parameters(common, a, n);
  const Lanes<R, Neuron::kStates, 1> states = entry_states(a, parameters, begin, n);
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) state_of[k * stride] = states.row[k].lane[0];
  if (begin > 0) return load_number<R>(a.spike, origin(a, n) + (begin - 1) * a.inner, r.dtype);
  return r.spike_init ? static_cast<const R*>(r.spike_init)[n] : R(0);
}

// An x for step t, with a word ahead to the memory.
template <class R>
__device__ __forceinline__ R load_x(const KernelArgs& a, const RecurrentArgs& r, int64_t t, int64_t n) {
  const int64_t at = origin(a, n) + t * a.inner;
  if (t + kSoon < a.T) prefetch(a.x, at + kSoon * a.inner, dtype_size(r.dtype));
  return load_number<R>(a.x, at, r.dtype);
}

// kRecords: the tape of a chunk, of spikes that are known.
template <class Neuron, class Surrogate, class R, bool kRecords>
__device__ __forceinline__ void recurrent_loop(const KernelArgs& a, const RecurrentArgs& r,
                                               const typename Neuron::template Params<R>& common,
                                               const Surrogate& surrogate) {
  const int H = static_cast<int>(r.size);
  const int64_t rows = a.N / H, tiles = (rows + r.rows - 1) / r.rows;
  const int64_t row0 = blockIdx.x % tiles * r.rows, chunk = blockIdx.x / tiles;
  const int64_t begin = chunk * kCheckpointPeriod, left = a.T - begin;
  const int64_t end = kRecords && left > kCheckpointPeriod ? begin + kCheckpointPeriod : a.T;
  const Tile tile(r, kWarp);
  Room room = {block_memory()};
  const ForwardMemory<Neuron, R> m(room, tile);
  const bool is_dense = r.stride > 0;
  const bool all = is_dense && *static_cast<const R*>(r.check) != R(0);  // a weight is infinite or NaN
  const int groups = tile.width / kWord;
  const auto neuron = [&](int e) { return (row0 + e / tile.width) * H + e % tile.width; };
  const auto is_real = [&](int e) { return e % tile.width < H && row0 + e / tile.width < rows; };

  R *before = m.spike, *now = m.spike + tile.count();  // spikes
  for (int e = threadIdx.x; e < tile.count(); e += blockDim.x)
    if (is_real(e)) before[e] = recurrent_start<Neuron, R>(a, r, common, begin, neuron(e), m.state + e, tile.count());
  for (int64_t t = begin; t < end; ++t) {
    if (is_dense) {
      for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
        const uint32_t word = __ballot_sync(~0u, is_real(e) && (all || before[e] != R(0)));
        if (e % kWarp == 0) m.word[e / kWord] = word;
      }
      __syncthreads();
      for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
        const int row = e / tile.width, group = e % tile.width / kWord;
        int place = 0;
        for (int g = 0; g < group; ++g) place += __popc(m.word[row * groups + g]);
        const uint32_t word = m.word[e / kWord], lane = e % kWarp;
        if (word >> lane & 1)
          m.firing[row * tile.width + place + __popc(word & ((1u << lane) - 1))] = e % tile.width;
        if (group + 1 == groups && lane == 0) m.fired[row] = place + __popc(word);
      }
      __syncthreads();
    }
    for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
      if (!is_real(e)) continue;
      const int column = e % tile.width, row = e / tile.width;
      const int64_t n = neuron(e);
      const R x = load_x<R>(a, r, t, n);
      const R z = is_dense ? weighted(r, before + row * tile.width, m.firing + row * tile.width, m.fired[row], column)
                           : before[e] * static_cast<const R*>(r.forward)[column];
      now[e] = recurrent_step<kRecords, Neuron>(a, r, common, surrogate, t, n, column, x, z, m.state + e, tile.count());
    }
    R* const last = before;
    before = now;
    now = last;
  }
}

// ---- BPTT

// What a neuron's step back reads.
template <class Neuron, class R>
struct Incoming {
  static constexpr int S = Neuron::kStates, K = Neuron::kTape;
  R tape[K > 0 ? K : 1], spike, state[S > 0 ? S : 1];

  __device__ __forceinline__ void load(const KernelArgs& a, const RecurrentArgs& r, int64_t t, int64_t n, int64_t at) {
#pragma unroll
    for (int k = 0; k < K; ++k) tape[k] = static_cast<const R*>(r.tape)[(t * K + k) * a.N + n];
    spike = a.grad_spike ? load_number<R>(a.grad_spike, at, r.dtype) : R(0);
#pragma unroll
    for (int k = 0; k < S; ++k)
      state[k] = a.store_seq && a.grad_state[k] ? static_cast<const R*>(a.grad_state[k])[at] : R(0);
  }
};

// Ask for what step t will need.
template <class Neuron, class R>
__device__ __forceinline__ void prefetch_back(const KernelArgs& a, const RecurrentArgs& r, int64_t t, int64_t n,
                                              int64_t at) {
#pragma unroll
  for (int k = 0; k < Neuron::kTape; ++k) prefetch(r.tape, (t * Neuron::kTape + k) * a.N + n, sizeof(R));
  if (a.grad_spike) prefetch(a.grad_spike, at, dtype_size(r.dtype));
}

// The gradients that a neuron carries from step to step: in its states, and so far in its parameters.
template <class Neuron, class R>
struct Carried {
  static constexpr int S = Neuron::kStates, L = Neuron::kGradients, kCount = S + L;
  R state[S > 0 ? S : 1], param[L > 0 ? L : 1];

  // After the last step.
  __device__ __forceinline__ void start(const KernelArgs& a, int64_t n) {
#pragma unroll
    for (int k = 0; k < S; ++k)
      state[k] = a.grad_state[k] && !a.store_seq ? static_cast<const R*>(a.grad_state[k])[n] : R(0);
#pragma unroll
    for (int k = 0; k < L; ++k) param[k] = 0;
  }
  // In the memory of the block, or of the device; `stride` between two numbers of a neuron.
  __device__ __forceinline__ void load(const R* from, int64_t stride) {
#pragma unroll
    for (int k = 0; k < S; ++k) state[k] = from[k * stride];
#pragma unroll
    for (int k = 0; k < L; ++k) param[k] = from[(S + k) * stride];
  }
  __device__ __forceinline__ void store(R* to, int64_t stride) const {
#pragma unroll
    for (int k = 0; k < S; ++k) to[k * stride] = state[k];
#pragma unroll
    for (int k = 0; k < L; ++k) to[(S + k) * stride] = param[k];
  }
  // A step; `product` is what comes through the weights. Returns the gradient in the neuron's input.
  template <class Surrogate>
  __device__ __forceinline__ R step(const Parameters<Neuron, R, 1>& parameters, const Surrogate& surrogate,
                                    const Incoming<Neuron, R>& incoming, R product) {
#pragma unroll
    for (int k = 0; k < S; ++k) state[k] += incoming.state[k];
    return Neuron::template backward<R>(parameters.of(0), surrogate, incoming.tape, incoming.spike + product, state,
                                        param);
  }
  // Before the first step.
  __device__ __forceinline__ void finish(const KernelArgs& a, int64_t n) {
#pragma unroll
    for (int k = 0; k < S; ++k) {
      if (a.grad_init[k]) static_cast<R*>(a.grad_init[k])[n] = state[k];
      if (Neuron::kTensors && !a.state_init[k] && Neuron::start(k) >= 0) param[Neuron::start(k)] += state[k];
    }
#pragma unroll
    for (int k = 0; k < L; ++k)
      if (a.grad_param[k]) static_cast<R*>(a.grad_param[k])[n] = param[k];
  }
};

constexpr int kColumns = 64;  // columns of a warp's weights, two for each lane

template <class Neuron>
struct BackwardMemory {
  float *partial, *gradient, *carried;

  SNNKERN_FN BackwardMemory(Room& room, const Tile& tile) {
    partial = room.take<float>(int64_t(tile.width / kWord) * tile.count());
    gradient = room.take<float>(tile.count());
    carried = room.take<float>(int64_t(Carried<Neuron, float>::kCount) * tile.count());
  }
};

template <class Neuron, class Surrogate>
__device__ __forceinline__ void recurrent_back_loop(const KernelArgs& a, const RecurrentArgs& r,
                                                    const typename Neuron::template Params<float>& common,
                                                    const Surrogate& surrogate) {
  const int H = static_cast<int>(r.size), warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t rows = a.N / H, row0 = int64_t(blockIdx.x) * r.rows;
  const Tile tile(r, kColumns);
  const int groups = (H + kWord - 1) / kWord, first = warp % groups * kWord, column = warp / groups * kColumns + 2 * lane;
  Room room = {block_memory()};
  const BackwardMemory<Neuron> m(room, tile);
  float weight[kWord][2];
#pragma unroll
  for (int u = 0; u < kWord; ++u) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool is_real = first + u < H && column + i < H;
      weight[u][i] = is_real ? static_cast<const float*>(r.backward)[int64_t(first + u) * H + column + i] : 0.0f;
    }
  }
  const auto neuron = [&](int e) { return (row0 + e / tile.width) * H + e % tile.width; };
  const auto is_real = [&](int e) { return e % tile.width < H && row0 + e / tile.width < rows; };

  for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
    m.gradient[e] = 0;
    if (!is_real(e)) continue;
    Carried<Neuron, float> carried;
    carried.start(a, neuron(e));
    carried.store(m.carried + e, tile.count());
  }
  __syncthreads();
  for (int64_t t = a.T - 1; t >= 0; --t) {
    const auto load = [&](int e, Incoming<Neuron, float>& incoming) {
      const int64_t n = neuron(e), at = origin(a, n) + t * a.inner;
      incoming.load(a, r, t, n, at);
      if (t >= kSoon) prefetch_back<Neuron, float>(a, r, t - kSoon, n, at - kSoon * a.inner);
    };
    Incoming<Neuron, float> early;  // what comes from memory comes while the products are made
    if (static_cast<int>(threadIdx.x) < tile.count() && is_real(threadIdx.x)) load(threadIdx.x, early);
#pragma unroll 1
    for (int row = 0; row < tile.rows; ++row) {
      float sum[2] = {0, 0};
#pragma unroll
      for (int u = 0; u < kWord; ++u) {
        const float g = m.gradient[row * tile.width + first + u];
        sum[0] = fmaf(g, weight[u][0], sum[0]);
        sum[1] = fmaf(g, weight[u][1], sum[1]);
      }
      float* const to = m.partial + (first / kWord * tile.rows + row) * tile.width + column;
      to[0] = sum[0];
      to[1] = sum[1];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
      if (!is_real(e)) continue;
      float product = 0;
      for (int g = 0; g < groups; ++g) product += m.partial[g * tile.count() + e];
      Incoming<Neuron, float> incoming = early;
      if (e != static_cast<int>(threadIdx.x)) load(e, incoming);
      const int64_t n = neuron(e);
      Carried<Neuron, float> carried;
      carried.load(m.carried + e, tile.count());
      const float gradient =
          carried.step(Parameters<Neuron, float, 1>(common, a, n), surrogate, incoming, product);
      carried.store(m.carried + e, tile.count());
      m.gradient[e] = gradient;
      static_cast<float*>(r.grad_input)[origin(a, n) + t * a.inner] = gradient;
    }
    __syncthreads();
  }
  for (int e = threadIdx.x; e < tile.count(); e += blockDim.x) {
    if (!is_real(e)) continue;
    Carried<Neuron, float> carried;
    carried.load(m.carried + e, tile.count());
    carried.finish(a, neuron(e));
  }
}

// The steps [begin, end), back, of neurons that come without those of their row: with the product of the weights, of the
// one step that there is; or all steps, where a weight is a neuron's own.
template <class Neuron, class Surrogate, class R>
__device__ __forceinline__ void recurrent_back_alone(const KernelArgs& a, const RecurrentArgs& r,
                                                     const typename Neuron::template Params<R>& common,
                                                     const Surrogate& surrogate) {
  const int64_t n = first_neuron<1>(false);
  if (n >= a.N) return;
  const Parameters<Neuron, R, 1> parameters(common, a, n);
  R* const place = static_cast<R*>(r.carried) + n;
  Carried<Neuron, R> carried;
  if (r.end == a.T)
    carried.start(a, n);
  else
    carried.load(place, a.N);
  R product = r.product ? static_cast<const R*>(r.product)[n] : R(0);
  const R weight = r.stride == 0 && r.backward ? static_cast<const R*>(r.backward)[n % r.size] : R(0);
  for (int64_t t = r.end - 1; t >= r.begin; --t) {
    const int64_t at = origin(a, n) + t * a.inner;
    Incoming<Neuron, R> incoming;
    incoming.load(a, r, t, n, at);
    if (t >= r.begin + kSoon) prefetch_back<Neuron, R>(a, r, t - kSoon, n, at - kSoon * a.inner);
    const R gradient = carried.step(parameters, surrogate, incoming, product);
    static_cast<R*>(r.grad_input)[at] = gradient;
    product = r.backward ? gradient * weight : R(0);
  }
  if (r.begin == 0)
    carried.finish(a, n);
  else
    carried.store(place, a.N);
}

// ---- launches

template <class Neuron, class Surrogate, class R>
using RecurrentKernel = void (*)(KernelArgs, RecurrentArgs, typename Neuron::template Params<R>, Surrogate);

template <class Neuron, class Surrogate, class R, bool kRecords>
__global__ void __launch_bounds__(kRowThreads)
    recurrent_kernel(const KernelArgs a, const RecurrentArgs r, const typename Neuron::template Params<R> common,
                     const Surrogate surrogate) {
  recurrent_loop<Neuron, Surrogate, R, kRecords>(a, r, common, surrogate);
}
template <class Neuron, class Surrogate>
__global__ void __launch_bounds__(kResidentThreads)
    recurrent_back_kernel(const KernelArgs a, const RecurrentArgs r,
                          const typename Neuron::template Params<float> common, const Surrogate surrogate) {
  recurrent_back_loop<Neuron, Surrogate>(a, r, common, surrogate);
}
template <class Neuron, class Surrogate, class R>
__global__ void __launch_bounds__(kThreads)
    recurrent_alone_kernel(const KernelArgs a, const RecurrentArgs r, const typename Neuron::template Params<R> common,
                           const Surrogate surrogate) {
  recurrent_back_alone<Neuron, Surrogate, R>(a, r, common, surrogate);
}

inline int64_t bytes(const Room& room) { return room.at - static_cast<char*>(nullptr); }

template <class Neuron, class Surrogate, class R>
const char* launch(const KernelArgs& a, const RecurrentArgs& r, void* stream, int64_t blocks, int threads,
                   int64_t memory, RecurrentKernel<Neuron, Surrogate, R> kernel) {
  if (blocks > INT32_MAX) return "too many neurons for one launch";
  cudaError_t error = cudaSuccess;
  if (memory > kUsualMemory)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = memory;
  config.stream = static_cast<cudaStream_t>(stream);
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&config, kernel, KernelArgs(a), RecurrentArgs(r), typename Neuron::template Params<R>(a),
                               Surrogate(a));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks that have `rows` rows, or fewer where a multiprocessor would have none.
inline int rows_of_a_block(int64_t rows, int64_t most) {
  constexpr int kEach = 4;  // for a multiprocessor
  const int64_t blocks = kEach * multiprocessors(), enough = blocks > 0 ? (rows + blocks - 1) / blocks : rows;
  return static_cast<int>(enough < 1 ? 1 : enough < most ? enough : most);
}

template <class Neuron, class Surrogate, class R, bool kRecords>
const char* recurrent_rows(const KernelArgs& a, RecurrentArgs r, void* stream) {
  constexpr int kEnough = 128;  // threads
  const int64_t rows = a.N / r.size, chunks = kRecords ? checkpoint_count(a.T) + 1 : 1;
  const int width = Tile(r, kWarp).width;
  r.rows = rows_of_a_block(rows * chunks, width < kEnough ? kEnough / width : 1);
  const Tile tile(r, kWarp);
  Room room = {nullptr};
  ForwardMemory<Neuron, R>(room, tile);
  return launch<Neuron, Surrogate, R>(a, r, stream, (rows + r.rows - 1) / r.rows * chunks,
                                      tile.count() < kRowThreads ? tile.count() : kRowThreads, bytes(room),
                                      recurrent_kernel<Neuron, Surrogate, R, kRecords>);
}

template <class Neuron, class Surrogate>
const char* recurrent_back(const KernelArgs& a, RecurrentArgs r, void* stream) {
  const auto kernel = recurrent_back_kernel<Neuron, Surrogate>;
  const int threads = resident_warps(r.size) * kWarp;
  const auto memory = [&](int rows) {
    r.rows = rows;
    Room room = {nullptr};
    BackwardMemory<Neuron>(room, Tile(r, kColumns));
    return bytes(room);
  };
  int blocks = 0;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, memory(1));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const int64_t rows = a.N / r.size, room = int64_t(blocks) * multiprocessors();
  int64_t each = room > 0 ? (rows + room - 1) / room : rows;  // the fewest with which all blocks run at once
  while (each > 1 && memory(static_cast<int>(each)) > kUsualMemory) --each;
  const int64_t needed = memory(static_cast<int>(each));
  return launch<Neuron, Surrogate, float>(a, r, stream, (rows + each - 1) / each, threads, needed, kernel);
}

template <class Neuron, class Surrogate, class R>
const char* recurrent_alone(const KernelArgs& a, RecurrentArgs r, void* stream) {
  return launch<Neuron, Surrogate, R>(a, r, stream, (a.N + kThreads - 1) / kThreads, kThreads, 0,
                                      recurrent_alone_kernel<Neuron, Surrogate, R>);
}

// What a generated file has of a neuron: `Asked` for the surrogate where the neuron has one.
template <class Neuron, template <class> class Asked, class R>
constexpr CudaRecurrence recurrence() {
  using InForward = std::conditional_t<Neuron::kSmooth, Asked<R>, NoSurrogate<R>>;
  CudaRecurrence all = {};
  all.forward = &recurrent_rows<Neuron, InForward, R, false>;
  all.record = &recurrent_rows<Neuron, Asked<R>, R, true>;
  if constexpr (sizeof(R) == 4) all.backward = &recurrent_back<Neuron, Asked<R>>;
  all.alone = &recurrent_alone<Neuron, Asked<R>, R>;
  all.tape = Neuron::kTape;
  all.carried = Carried<Neuron, R>::kCount;
  return all;
}
template <class Neuron, template <class> class Asked, class R>
constexpr CudaRecurrence kRecurrence = recurrence<Neuron, Asked, R>();

}  // namespace snnkern::cuda
