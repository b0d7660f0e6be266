// Neurons whose spikes come back to them, on CUDA. Rows of neurons are independent, so a block or a cluster owns some
// of them for all steps, and no step needs a barrier beyond it. There are two plans.
//
// resident  the weights stay in registers, 32 rows of 64 columns a warp, of one block or of a cluster's; spikes travel
//           as bits, gradients as numbers. For float32 and up to 512 neurons, and for spikes that are 0 or 1.
// rows      forward, a spike adds its row of weights, which comes through the caches. Back, the host makes the product
//           of each step, and a launch the step of the neurons.
//
// In between, record makes the tape of BPTT, each chunk from the states that entered it, all chunks at once: the spikes
// are known then, so that nothing waits for the step before.
#pragma once
#include "multistep.cuh"

namespace snnkern::cuda {

constexpr int kWord = RecurrentArgs::kGroup;  // neurons of a group, and of a warp
constexpr int kWarp = 32;
static_assert(kWord == kWarp, "a warp asks for the spikes of a group at once");

// Number `i` of a sequence, whose type is known at run time: kernels are made for R alone.
template <class R>
__device__ __forceinline__ R load_number(const void* sequence, int64_t i, Dtype dtype) {
  if constexpr (sizeof(R) == 8)
    return static_cast<const R*>(sequence)[i];
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
  SNNKERN_FN explicit Tile(const RecurrentArgs& r) : rows(r.rows) {
    width = static_cast<int>((r.size + kWarp - 1) / kWarp * kWarp);
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

// A neuron's step, from what comes back to it; its states lie `stride` apart. Returns the spike. kRecords: the tape, of
// a spike that is known.
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
    spike = store_number(a.spike, at, r.dtype, Neuron::template forward<R>(parameters.of(0), surrogate, input, state));
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

// The input of step t; what comes soon is asked for.
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
  const Tile tile(r);
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
        if (word >> lane & 1) m.firing[row * tile.width + place + __popc(word & ((1u << lane) - 1))] = e % tile.width;
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

// ---- blocks that keep all weights in their registers: one for some rows or, on sm_90, a cluster of them

constexpr int kColumns = 64;  // columns of a warp's weights, two for each lane; of as many rows as a group has

// How rows lie in such blocks: each block has `width` columns of them.
struct Resident {
  int rows, blocks, groups, width, whole;

  SNNKERN_FN explicit Resident(const RecurrentArgs& r) : rows(r.rows), blocks(r.blocks) {
    const int size = static_cast<int>(r.size);
    groups = (size + kWord - 1) / kWord;
    width = ((size + kColumns - 1) / kColumns + blocks - 1) / blocks * kColumns;
    whole = width * blocks;
  }
  SNNKERN_FN int count() const { return rows * width; }
  SNNKERN_FN int threads() const { return groups * (width / kColumns) * kWarp; }
};

// Where a thread stands in them.
struct Place {
  const Resident& all;
  int size, rank, group, column;  // column: the first of two, in the block
  int64_t row0, rows;

  __device__ __forceinline__ Place(const Resident& all, const KernelArgs& a, const RecurrentArgs& r)
      : all(all), size(static_cast<int>(r.size)) {
    const int warp = threadIdx.x / kWarp;
    rank = blockIdx.x % all.blocks;
    group = warp % all.groups;
    column = warp / all.groups * kColumns + threadIdx.x % kWarp * 2;
    row0 = int64_t(blockIdx.x / all.blocks) * all.rows;
    rows = a.N / size;
  }
  // Of neuron e of the block.
  __device__ __forceinline__ int row(int e) const { return e / all.width; }
  __device__ __forceinline__ int column_of(int e) const { return rank * all.width + e % all.width; }
  __device__ __forceinline__ int in_rows(int e) const { return row(e) * all.whole + column_of(e); }
  __device__ __forceinline__ int64_t neuron(int e) const { return (row0 + row(e)) * size + column_of(e); }
  __device__ __forceinline__ bool is_real(int e) const {
    return e < all.count() && column_of(e) < size && row0 + row(e) < rows;
  }
  // What a thread has of the weights.
  __device__ __forceinline__ void load(const void* matrix, float (&weight)[kWord][2]) const {
    const int first = group * kWord, from = rank * all.width + column;
#pragma unroll
    for (int u = 0; u < kWord; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool is_real = first + u < size && from + i < size;
        weight[u][i] = is_real ? static_cast<const float*>(matrix)[int64_t(first + u) * size + from + i] : 0.0f;
      }
    }
  }
  // Its sums, for one row; and all of a neuron, group by group.
  __device__ __forceinline__ void store(float* partial, int row, const float (&sum)[2]) const {
    float* const to = partial + group * all.count() + row * all.width + column;
    to[0] = sum[0];
    to[1] = sum[1];
  }
  __device__ __forceinline__ float total(const float* partial, int e) const {
    float sum = 0;
    for (int g = 0; g < all.groups; ++g) sum += partial[g * all.count() + e];
    return sum;
  }
};

// What the blocks of a cluster tell one another in a step: so many bytes into each block's memory, counted by a barrier
// there. Two buffers suffice: a block sends what overwrites step t - 1 when it has all of step t, and then no block
// reads t - 1 any more.
class Exchange {
 public:
  __device__ __forceinline__ Exchange(uint64_t* barrier, int blocks, int bytes)
      : barrier_(barrier), blocks_(blocks), bytes_(bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (blocks_ > 1 && threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&barrier_[i])) : "memory");
        expect(i);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#endif
  }
  // All blocks, and all that they wrote: at the start and the end only, for it waits for the memory of the device too.
  __device__ __forceinline__ void meet() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // A word of a warp, to the same place in all blocks.
  __device__ __forceinline__ void send(uint32_t* to, uint32_t value, int buffer) const {
    const int lane = threadIdx.x % kWarp;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      if (lane < blocks_)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                         in_block(address(to), lane)),
                     "r"(value), "r"(in_block(address(&barrier_[buffer]), lane))
                     : "memory");
      return;
    }
#endif
    if (lane == 0) *to = value;
  }
  // A number of each lane; `to` is the place of the first.
  __device__ __forceinline__ void send(float* to, float value, int buffer) const {
    const int lane = threadIdx.x % kWarp;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {  // 8 lanes hold the 32 numbers in fours, and 4 blocks are served at a time
      const int four = lane % 8 * 4;
      uint32_t part[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i] = __float_as_uint(__shfl_sync(~0u, value, four + i));
      for (int k = lane / 8; k < blocks_; k += 4)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                         in_block(address(to + four), k)),
                     "r"(part[0]), "r"(part[1]), "r"(part[2]), "r"(part[3]),
                     "r"(in_block(address(&barrier_[buffer]), k))
                     : "memory");
      return;
    }
#endif
    to[lane] = value;
  }
  // Until all of a step has come, the steps counted from 0 in the order in which they are made.
  __device__ __forceinline__ void wait(int64_t step) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      const int buffer = step & 1;
      uint32_t done;
      do {
        asm volatile(
            "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(done)
            : "r"(address(&barrier_[buffer])), "r"(static_cast<uint32_t>(step >> 1 & 1))
            : "memory");
      } while (!done);
      if (threadIdx.x == 0) expect(buffer);
      return;
    }
#endif
    __syncthreads();
  }

 private:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ uint32_t address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
  static __device__ __forceinline__ uint32_t in_block(uint32_t address, int rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
  }
  __device__ __forceinline__ void expect(int buffer) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&barrier_[buffer])), "r"(bytes_)
                 : "memory");
  }
#endif
  uint64_t* barrier_;
  int blocks_, bytes_;
};

template <class Neuron>
struct ResidentForwardMemory {
  uint64_t* barrier;
  float *partial, *state;
  uint32_t* word;  // of two steps: for each group of a row, a bit for each spike

  SNNKERN_FN ResidentForwardMemory(Room& room, const Resident& all) {
    barrier = room.take<uint64_t>(2);
    partial = room.take<float>(int64_t(all.groups) * all.count());
    state = room.take<float>(int64_t(Neuron::kStates) * all.count());
    word = room.take<uint32_t>(2 * all.rows * all.whole / kWord);
  }
};

// For spikes that are 0 or 1.
template <class Neuron>
__device__ __forceinline__ void resident_loop(const KernelArgs& a, const RecurrentArgs& r,
                                              const typename Neuron::template Params<float>& common,
                                              const NoSurrogate<float>& surrogate) {
  const Resident all(r);
  const Place place(all, a, r);
  Room room = {block_memory()};
  const ResidentForwardMemory<Neuron> m(room, all);
  const int words = all.whole / kWord;  // of a row
  float weight[kWord][2];
  place.load(r.forward, weight);
  const bool is_infinite = *static_cast<const float*>(r.check) != 0.0f;  // a weight is, or NaN
  for (int e = threadIdx.x; e < all.count(); e += blockDim.x)
    if (place.is_real(e)) recurrent_start<Neuron, float>(a, r, common, 0, place.neuron(e), m.state + e, all.count());
  for (int i = threadIdx.x; i < 2 * all.rows * words; i += blockDim.x) m.word[i] = 0;
  const Exchange exchange(m.barrier, all.blocks, all.rows * words * int(sizeof(uint32_t)));
  exchange.meet();
  for (int64_t t = 0; t < a.T; ++t) {
    const uint32_t* const before = m.word + (t + 1) % 2 * all.rows * words;
    uint32_t* const now = m.word + t % 2 * all.rows * words;
    // What comes from memory comes while the sums are made.
    const float early = place.is_real(threadIdx.x) ? load_x<float>(a, r, t, place.neuron(threadIdx.x)) : 0.0f;
#pragma unroll 1
    for (int row = 0; row < all.rows; ++row) {
      const uint32_t word = before[row * words + place.group];
      float sum[2] = {0, 0};
      if (word) {
#pragma unroll
        for (int u = 0; u < kWord; ++u) {
          if (word >> u & 1) {
            sum[0] += weight[u][0];
            sum[1] += weight[u][1];
          }
        }
      }
      place.store(m.partial, row, sum);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < all.count(); e += blockDim.x) {
      float spike = 0;
      if (place.is_real(e)) {
        const int64_t n = place.neuron(e);
        const int column = place.column_of(e);
        float z = place.total(m.partial, e);
        if (is_infinite || (t == 0 && r.spike_init)) {  // a spike that is no bit, and 0 times infinity
          const float* const first = static_cast<const float*>(r.spike_init) + (n - column);
          z = 0;
          for (int g = 0; g < all.groups; ++g) {
            float sum = 0;
            for (int j = g * kWord; j < (g + 1) * kWord && j < place.size; ++j) {
              const float value = t > 0          ? float(before[place.row(e) * words + g] >> j % kWord & 1)
                                  : r.spike_init ? first[j]
                                                 : 0.0f;
              sum += value * static_cast<const float*>(r.forward)[int64_t(j) * place.size + column];
            }
            z += sum;
          }
        }
        const float x = e == static_cast<int>(threadIdx.x) ? early : load_x<float>(a, r, t, n);
        spike = recurrent_step<false, Neuron>(a, r, common, surrogate, t, n, column, x, z, m.state + e, all.count());
      }
      exchange.send(now + place.in_rows(e) / kWord, __ballot_sync(~0u, spike != 0.0f), t % 2);
    }
    exchange.wait(t);
  }
  exchange.meet();
}

template <class Neuron>
struct ResidentBackwardMemory {
  uint64_t* barrier;
  float *partial, *gradient, *carried;  // gradients of two steps

  SNNKERN_FN ResidentBackwardMemory(Room& room, const Resident& all) {
    barrier = room.take<uint64_t>(2);
    partial = room.take<float>(int64_t(all.groups) * all.count());
    gradient = room.take<float>(2 * all.rows * all.whole);
    carried = room.take<float>(int64_t(Carried<Neuron, float>::kCount) * all.count());
  }
};

template <class Neuron, class Surrogate>
__device__ __forceinline__ void resident_back_loop(const KernelArgs& a, const RecurrentArgs& r,
                                                   const typename Neuron::template Params<float>& common,
                                                   const Surrogate& surrogate) {
  const Resident all(r);
  const Place place(all, a, r);
  Room room = {block_memory()};
  const ResidentBackwardMemory<Neuron> m(room, all);
  float weight[kWord][2];
  place.load(r.backward, weight);
  for (int e = threadIdx.x; e < all.count(); e += blockDim.x) {
    if (!place.is_real(e)) continue;
    Carried<Neuron, float> carried;
    carried.start(a, place.neuron(e));
    carried.store(m.carried + e, all.count());
  }
  for (int i = threadIdx.x; i < 2 * all.rows * all.whole; i += blockDim.x) m.gradient[i] = 0;
  const Exchange exchange(m.barrier, all.blocks, all.rows * all.whole * int(sizeof(float)));
  exchange.meet();
  for (int64_t done = 0; done < a.T; ++done) {
    const int64_t t = a.T - 1 - done;
    const float* const before = m.gradient + (done + 1) % 2 * all.rows * all.whole + place.group * kWord;
    float* const now = m.gradient + done % 2 * all.rows * all.whole;
    const auto load = [&](int e, Incoming<Neuron, float>& incoming) {
      const int64_t n = place.neuron(e), at = origin(a, n) + t * a.inner;
      incoming.load(a, r, t, n, at);
      if (t >= kSoon) prefetch_back<Neuron, float>(a, r, t - kSoon, n, at - kSoon * a.inner);
    };
    Incoming<Neuron, float> early;  // what comes from memory comes while the products are made
    if (place.is_real(threadIdx.x)) load(threadIdx.x, early);
#pragma unroll 1
    for (int row = 0; row < all.rows; ++row) {
      float sum[2] = {0, 0};
#pragma unroll
      for (int u = 0; u < kWord; ++u) {
        const float g = before[row * all.whole + u];
        sum[0] = fmaf(g, weight[u][0], sum[0]);
        sum[1] = fmaf(g, weight[u][1], sum[1]);
      }
      place.store(m.partial, row, sum);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < all.count(); e += blockDim.x) {
      float gradient = 0;
      if (place.is_real(e)) {
        Incoming<Neuron, float> incoming = early;
        if (e != static_cast<int>(threadIdx.x)) load(e, incoming);
        const int64_t n = place.neuron(e);
        Carried<Neuron, float> carried;
        carried.load(m.carried + e, all.count());
        gradient =
            carried.step(Parameters<Neuron, float, 1>(common, a, n), surrogate, incoming, place.total(m.partial, e));
        carried.store(m.carried + e, all.count());
        static_cast<float*>(r.grad_input)[origin(a, n) + t * a.inner] = gradient;
      }
      exchange.send(now + place.in_rows(e) / kWarp * kWarp, gradient, done % 2);
    }
    exchange.wait(done);
  }
  exchange.meet();
  for (int e = threadIdx.x; e < all.count(); e += blockDim.x) {
    if (!place.is_real(e)) continue;
    Carried<Neuron, float> carried;
    carried.load(m.carried + e, all.count());
    carried.finish(a, place.neuron(e));
  }
}

// The steps [begin, end), back, of neurons that come without those of their row: with the product of the weights, of
// the one step that there is; or all steps, where a weight is a neuron's own.
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
    resident_kernel(const KernelArgs a, const RecurrentArgs r, const typename Neuron::template Params<float> common,
                    const Surrogate surrogate) {
  resident_loop<Neuron>(a, r, common, surrogate);
}
template <class Neuron, class Surrogate>
__global__ void __launch_bounds__(kResidentThreads)
    resident_back_kernel(const KernelArgs a, const RecurrentArgs r,
                         const typename Neuron::template Params<float> common, const Surrogate surrogate) {
  resident_back_loop<Neuron, Surrogate>(a, r, common, surrogate);
}
template <class Neuron, class Surrogate, class R>
__global__ void __launch_bounds__(kThreads)
    recurrent_alone_kernel(const KernelArgs a, const RecurrentArgs r, const typename Neuron::template Params<R> common,
                           const Surrogate surrogate) {
  recurrent_back_alone<Neuron, Surrogate, R>(a, r, common, surrogate);
}

inline int64_t bytes(const Room& room) { return room.at - static_cast<char*>(nullptr); }

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute cluster = {};

  Launch(int64_t blocks, int threads, int64_t memory, void* stream, int together = 1) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = memory;
    config.stream = static_cast<cudaStream_t>(stream);
    if (together == 1) return;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = together;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
};

template <class Kernel>
cudaError_t allow(Kernel kernel, int64_t memory) {
  if (memory <= kUsualMemory) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory));
}

template <class Neuron, class Surrogate, class R>
const char* launch(const KernelArgs& a, const RecurrentArgs& r, void* stream, int64_t blocks, int threads,
                   int64_t memory, RecurrentKernel<Neuron, Surrogate, R> kernel) {
  if (blocks > INT32_MAX) return "too many neurons for one launch";
  const Launch how(blocks, threads, memory, stream, r.blocks);
  cudaError_t error = allow(kernel, memory);
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&how.config, kernel, KernelArgs(a), RecurrentArgs(r),
                               typename Neuron::template Params<R>(a), Surrogate(a));
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
  const int width = Tile(r).width;
  r.blocks = 1;
  r.rows = rows_of_a_block(rows * chunks, width < kEnough ? kEnough / width : 1);
  const Tile tile(r);
  Room room = {nullptr};
  ForwardMemory<Neuron, R>(room, tile);
  return launch<Neuron, Surrogate, R>(a, r, stream, (rows + r.rows - 1) / r.rows * chunks,
                                      tile.count() < kRowThreads ? tile.count() : kRowThreads, bytes(room),
                                      recurrent_kernel<Neuron, Surrogate, R, kRecords>);
}

// How the blocks of a kernel keep the weights: `blocks` together, with `rows` rows.
struct ResidentPlan {
  int blocks, rows;
};

// The fewest blocks whose registers hold the weights; 0 where none do.
inline int resident_blocks(int64_t neurons) {
  if (neurons > kResidentThreads) return 0;
  const int most = attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 8 : 1;
  for (int blocks = 1; blocks <= most; ++blocks) {
    RecurrentArgs r = {};
    r.size = neurons;
    r.rows = 1;
    r.blocks = blocks;
    if (Resident(r).threads() <= kResidentThreads) return blocks;
  }
  return 0;
}

// With more rows than these for a cluster, it is quicker to read the weights at each step.
constexpr int kMostRowsOfACluster = 12;

// The fewest rows with which all blocks run at once: a block that waits for another to end waits for all its steps.
// None where another plan is quicker.
template <template <class> class Memory, class Neuron, class Kernel>
ResidentPlan resident_plan(const KernelArgs& a, RecurrentArgs r, Kernel kernel) {
  struct Known {
    int device;
    int64_t size, rows;
    ResidentPlan plan;
  };
  static thread_local Known last = {-1, 0, 0, {}};
  Known asked = {0, r.size, a.N / r.size, {}};
  cudaGetDevice(&asked.device);
  if (last.device == asked.device && last.size == asked.size && last.rows == asked.rows) return last.plan;
  r.blocks = asked.plan.blocks = resident_blocks(r.size);
  if (r.blocks > 0) {
    const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    const auto memory = [&](int64_t rows) {
      r.rows = static_cast<int>(rows);
      Room room = {nullptr};
      Memory<Neuron>(room, Resident(r));
      return bytes(room);
    };
    const auto capacity = [&](int64_t rows) -> int64_t {  // rows of all that run at once
      const int64_t needed = memory(rows);
      if (allow(kernel, needed) != cudaSuccess) return 0;
      int count = 0;
      const int threads = Resident(r).threads();
      if (r.blocks > 1) {
        const Launch how(r.blocks, threads, needed, nullptr, r.blocks);
        if (cudaOccupancyMaxActiveClusters(&count, kernel, &how.config) != cudaSuccess) count = 0;
      } else if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, needed) == cudaSuccess) {
        count *= multiprocessors();
      }
      return count * rows;
    };
    int64_t rows = 1, fit = capacity(1);
    if (fit == 0) asked.plan.blocks = 0;
    while (fit > 0 && fit < asked.rows) {
      const int64_t better = (asked.rows * rows + fit - 1) / fit;
      const int64_t more = better > rows ? better : rows + 1;
      if (memory(more) > most || capacity(more) == 0) break;
      rows = more;
      fit = capacity(rows);
    }
    asked.plan.rows = static_cast<int>(rows);
    const int64_t clusters = fit / rows;
    if (asked.plan.blocks > 1 && asked.rows > kMostRowsOfACluster * clusters) asked.plan.blocks = 0;
  }
  last = asked;
  return asked.plan;
}

// Returns an empty text where the weights do not fit, or another plan is quicker.
template <template <class> class Memory, class Neuron, class Surrogate>
const char* resident(const KernelArgs& a, RecurrentArgs r, void* stream,
                     RecurrentKernel<Neuron, Surrogate, float> kernel) {
  const ResidentPlan plan = resident_plan<Memory, Neuron>(a, r, kernel);
  if (plan.blocks == 0) return "";
  r.blocks = plan.blocks;
  r.rows = plan.rows;
  const Resident all(r);
  Room room = {nullptr};
  Memory<Neuron>(room, all);
  return launch<Neuron, Surrogate, float>(a, r, stream, (a.N / r.size + r.rows - 1) / r.rows * r.blocks, all.threads(),
                                          bytes(room), kernel);
}

template <class Neuron, class Surrogate>
const char* recurrent_back(const KernelArgs& a, RecurrentArgs r, void* stream) {
  return resident<ResidentBackwardMemory, Neuron, Surrogate>(a, r, stream, resident_back_kernel<Neuron, Surrogate>);
}

// The plain pass of a neuron whose spikes are bits has them in registers, if it can.
template <class Neuron, class Surrogate, class R>
const char* recurrent_forward(const KernelArgs& a, RecurrentArgs r, void* stream) {
  if constexpr (Neuron::kBits && !Neuron::kTensors && sizeof(R) == 4) {
    if (r.stride > 0) {
      const char* const error = resident<ResidentForwardMemory, Neuron, NoSurrogate<float>>(
          a, r, stream, resident_kernel<Neuron, NoSurrogate<float>>);
      if (!error || *error) return error;
    }
  }
  return recurrent_rows<Neuron, Surrogate, R, false>(a, r, stream);
}

template <class Neuron, class Surrogate, class R>
const char* recurrent_alone(const KernelArgs& a, RecurrentArgs r, void* stream) {
  r.blocks = 1;
  return launch<Neuron, Surrogate, R>(a, r, stream, (a.N + kThreads - 1) / kThreads, kThreads, 0,
                                      recurrent_alone_kernel<Neuron, Surrogate, R>);
}

// What a generated file has of a neuron: `Asked` for the surrogate where the neuron has one.
template <class Neuron, template <class> class Asked, class R>
constexpr CudaRecurrence recurrence() {
  using InForward = std::conditional_t<Neuron::kSmooth, Asked<R>, NoSurrogate<R>>;
  CudaRecurrence all = {};
  all.forward = &recurrent_forward<Neuron, InForward, R>;
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
