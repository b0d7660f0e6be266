// A BatchNorm in front of a neuron, for CUDA: statistics, the stages in the time loops of multistep.cuh, and the sums
// that the gradient needs. Sums are taken in two steps whose order the shape alone decides: each thread's and each
// block's, which are written as partial sums, and those.
#pragma once
#include "multistep.cuh"

namespace snnkern::cuda {

constexpr int kSumThreads = 128;     // most threads of a block that sums
constexpr int kMostPartials = 1024;  // partial sums a channel
constexpr int kFinishChannels = 8, kFinishRows = 128;

// A kernel that was launched early waits here for those before it; and here it lets the next one start early.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 1 / sqrt(var + eps)
template <class R>
__device__ __forceinline__ R deviation_inverse(const NormArgs& n, R var) {
  return R(1) / sqrt(var + R(n.eps));
}

// The values of V neighbouring neurons in tables of channels: get(lane, channel). One channel does for all where they
// are in the same; `first` is the first neuron.
template <int V, class Get>
__device__ __forceinline__ void for_channels(const KernelArgs& a, int64_t first, const Get& get) {
  const NormArgs& n = a.norm;
  if (a.N <= INT32_MAX) {  // a division of 64 bits takes four times as long
    const uint32_t inner = static_cast<uint32_t>(n.inner), size = static_cast<uint32_t>(n.size);
    const uint32_t quotient = static_cast<uint32_t>(first) / inner;
    uint32_t channel = quotient % size, left = inner - (static_cast<uint32_t>(first) - quotient * inner);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      get(v, channel);
      if (--left > 0) continue;
      left = inner;
      if (++channel == size) channel = 0;
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) get(v, (first + v) / n.inner % n.size);
  }
}

// A table of channels, which is `otherwise` where there is none.
template <class R>
__device__ __forceinline__ R entry(const void* table, int64_t channel, R otherwise = R(0)) {
  return table ? static_cast<const R*>(table)[channel] : otherwise;
}

// y = (x - mean) scale + bias [+ residual]. A lean one has neither residual nor y nor its gradient, for which registers
// would be kept.
template <class T, int V, int C, bool kIsLean>
class NormInput {
 public:
  using R = real_t<T>;
  using Row = Numbers<R, V>;
  static constexpr bool kLean = kIsLean;
  static constexpr bool kReversed = true;  // what the sums read last may still lie in the L2 cache

  __device__ __forceinline__ NormInput(const KernelArgs& a, int64_t first) {
    for_channels<V>(a, first, [&](int v, int64_t channel) {
      mean_.lane[v] = entry<R>(a.norm.mean, channel);
      scale_.lane[v] =
          entry<R>(a.norm.weight, channel, R(1)) * deviation_inverse(a.norm, entry<R>(a.norm.var, channel));
      bias_.lane[v] = entry<R>(a.norm.bias, channel);
    });
  }
  __device__ __forceinline__ void load(const KernelArgs& a, int64_t start, int steps, int64_t origin) {
    if constexpr (!kLean) load_rows(a.norm.residual, residual_, a, start, steps, origin);
  }
  __device__ __forceinline__ Row input(int j, const Row& x) {
    Row y;
#pragma unroll
    for (int v = 0; v < V; ++v) y.lane[v] = (x.lane[v] - mean_.lane[v]) * scale_.lane[v] + bias_.lane[v];
    if constexpr (!kLean) {
      const Row residual = unpack<T, V>(residual_[j]);
#pragma unroll
      for (int v = 0; v < V; ++v) y.lane[v] += residual.lane[v];
    }
    return y;
  }

 protected:
  // Rows of a sequence, or zeros where there is none.
  template <int K>
  static __device__ __forceinline__ void load_rows(const void* sequence, Packed<T, V> (&rows)[K], const KernelArgs& a,
                                                   int64_t start, int steps, int64_t origin) {
    Column<T, V> column(sequence, start, a.inner, origin);
#pragma unroll
    for (int j = 0; j < K; ++j) {
      rows[j] = {};
      if (sequence && j < steps) rows[j] = column.load();
      column.down();
    }
  }

  Row mean_, scale_, bias_;
  Packed<T, V> residual_[kLean ? 1 : C];
};

// In the forward pass. Statistics may still be on their way.
template <class T, int V, int C, bool kIsLean>
class NormForward : public NormInput<T, V, C, kIsLean> {
  using Base = NormInput<T, V, C, kIsLean>;

 public:
  __device__ __forceinline__ NormForward(const KernelArgs& a, int64_t first) : Base((wait_for_previous(), a), first) {}
  __device__ __forceinline__ void load(const KernelArgs& a, int64_t start, int steps, int64_t origin) {
    if constexpr (kIsLean) return;
    Base::load(a, start, steps, origin);
    wanted_ = a.norm.y;
    y_ = Column<T, V>(a.norm.y, start, a.inner, origin);
  }
  __device__ __forceinline__ typename Base::Row input(int j, const typename Base::Row& x) {
    const auto y = Base::input(j, x);
    if (!kIsLean && wanted_) {
      y_.store(pack<T, V>(y));
      y_.down();
    }
    return y;
  }

 private:
  bool wanted_;
  Column<T, V> y_;
};

// In BPTT, the gradient in x from gy, the gradient in y.
template <class T, int V, int C, bool kIsLean>
class NormGradient : public NormInput<T, V, C, kIsLean> {
  using Base = NormInput<T, V, C, kIsLean>;

 public:
  using typename Base::R;
  using typename Base::Row;
  static constexpr bool kStores = true;

  using Base::Base;
  __device__ __forceinline__ void begin(const KernelArgs& a, int64_t first) {
    wait_for_previous();  // for the sums
    const R share = R(1 / a.norm.count);
    for_channels<V>(a, first, [&](int v, int64_t channel) {
      const R inverse = deviation_inverse(a.norm, entry<R>(a.norm.var, channel));
      constant_.lane[v] = entry<R>(a.norm.sums, channel) * share;
      slope_.lane[v] = entry<R>(a.norm.sums, a.norm.size + channel) * share * inverse;
    });
  }
  __device__ __forceinline__ void load_gradients(const KernelArgs&, int64_t, int, int64_t) {}
  __device__ __forceinline__ Row gradient(int, bool, const Packed<T, V>& packed, const Row& gy) {
    const Row x = unpack<T, V>(packed);
    Row gx;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const R away = x.lane[v] - this->mean_.lane[v];
      gx.lane[v] = this->scale_.lane[v] * (gy.lane[v] - constant_.lane[v] - away * slope_.lane[v]);
    }
    return gx;
  }

 private:
  Row constant_, slope_;
};

// ---- sums ----------------------------------------------------------------------------------------------------------

// How a block's threads are spread over a tensor: with channels side by side in memory, blockDim.x vectors of channels
// by blockDim.y positions; else all are in one channel. gridDim.y blocks share a channel's positions.
inline bool channels_last(const NormArgs& n) { return n.inner == 1 && n.size > 1; }

// Partial sums a channel, of the shape alone.
inline int64_t partials(const KernelArgs& a) {
  constexpr int64_t kBlocksLast = 528, kBlocks = 2112;
  const NormArgs& n = a.norm;
  const int64_t positions = a.N / n.size;
  int64_t wanted, most;
  if (channels_last(n)) {
    const int64_t vectors = (n.size + 3) / 4;
    wanted = kBlocksLast / ((vectors + 63) / 64);
    most = positions / (vectors < kSumThreads ? kSumThreads / vectors : 1);
  } else {
    wanted = kBlocks / n.size;
    most = positions / (4 * kSumThreads);
  }
  if (wanted > most) wanted = most;
  return wanted < 1 ? 1 : wanted > kMostPartials ? kMostPartials : wanted;
}

// How many numbers of room sums need.
inline int64_t partial_numbers(const KernelArgs& a) { return 3 * a.norm.size * partials(a); }

struct Grid {
  dim3 blocks, threads;
};

inline Grid sum_grid(const KernelArgs& a, int V) {
  const NormArgs& n = a.norm;
  const unsigned shares = static_cast<unsigned>(partials(a));
  if (!channels_last(n)) return {dim3(static_cast<unsigned>(n.size), shares), dim3(kSumThreads)};
  const int64_t vectors = n.size / V, slices = (vectors + 63) / 64;
  const unsigned width = static_cast<unsigned>((vectors + slices - 1) / slices);
  return {dim3(static_cast<unsigned>(slices), shares), dim3(width, kSumThreads / width)};
}

// The vectors of V neurons that a thread sums, all of the same channels.
template <int V>
class Walk {
 public:
  __device__ __forceinline__ explicit Walk(const KernelArgs& a) : size_(a.norm.size), inner_(a.norm.inner) {
    const int64_t positions = a.N / size_;
    if (blockDim.y > 1 || (inner_ == 1 && size_ > 1)) {
      channel_ = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
      row_ = 0;
      at_ = int64_t(blockIdx.y) * blockDim.y + threadIdx.y;
      step_ = gridDim.y * blockDim.y;
      end_ = channel_ < size_ ? positions : 0;
    } else {
      channel_ = blockIdx.x;
      row_ = inner_ / V;
      const int64_t vectors = positions / V, share = ((vectors + gridDim.y - 1) / gridDim.y + 31) / 32 * 32;
      at_ = blockIdx.y * share + threadIdx.x;
      step_ = blockDim.x;
      end_ = (blockIdx.y + 1) * share < vectors ? (blockIdx.y + 1) * share : vectors;
    }
  }
  __device__ __forceinline__ bool is_last() const { return row_ == 0; }
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ bool has_channel() const { return channel_ < size_; }
  __device__ __forceinline__ bool more() const { return at_ < end_; }
  __device__ __forceinline__ void next() { at_ += step_; }
  // A neuron of the thread's channels, whether there is work or not.
  __device__ __forceinline__ int64_t any_neuron() const { return has_channel() ? channel_ * inner_ : 0; }
  __device__ __forceinline__ int64_t neuron() const {
    if (is_last()) return at_ * size_ + channel_;
    const int64_t outer = at_ > INT32_MAX ? at_ / row_ : static_cast<uint32_t>(at_) / static_cast<uint32_t>(row_);
    return (outer * size_ + channel_) * inner_ + (at_ - outer * row_) * V;
  }

 private:
  int64_t size_, inner_, channel_, row_, at_, end_;
  int step_;
};

// The sums of gy and gy (x - mean) / sqrt(var + eps).
template <class R>
struct GradientSums {
  R gy, product;

  __device__ __forceinline__ void add(const GradientSums& o) {
    gy += o.gy;
    product += o.product;
  }
  static __device__ __forceinline__ GradientSums read(const R* from, int64_t plane) { return {from[0], from[plane]}; }
  __device__ __forceinline__ void write(R* to, int64_t plane) const {
    to[0] = gy;
    to[plane] = product;
  }
  __device__ __forceinline__ void write_result(R* to, int64_t plane) const { write(to, plane); }
  static __device__ __forceinline__ R* result(const KernelArgs& a) { return static_cast<R*>(a.norm.sums); }
};

// Count, mean, and the sum of squares about it. Means are differences to one value of the channel, which waits where
// the result goes: far from zero, rounded means would not tell the parts of a channel apart.
template <class R>
struct Moments {
  R count, mean, squares;

  __device__ __forceinline__ void add(const Moments& o) {
    const R total = count + o.count, share = total > R(0) ? o.count / total : R(0), away = o.mean - mean;
    mean += away * share;
    squares += o.squares + away * away * (count * share);
    count = total;
  }
  static __device__ __forceinline__ Moments read(const R* from, int64_t plane) {
    return {from[0], from[plane], from[2 * plane]};
  }
  __device__ __forceinline__ void write(R* to, int64_t plane) const {
    to[0] = count;
    to[plane] = mean;
    to[2 * plane] = squares;
  }
  __device__ __forceinline__ void write_result(R* to, int64_t plane) const {
    to[0] += mean;
    to[plane] = squares / count;
    to[2 * plane] = squares / (count - R(1));
  }
  static __device__ __forceinline__ R* result(const KernelArgs& a) { return static_cast<R*>(a.norm.statistics); }
};

// Adds up over the threads of a block with the same threadIdx.x, of `width`; those with threadIdx.y = 0 have the sum.
template <int kThreads, class Sum>
__device__ __forceinline__ void add_up(Sum& sum, int width) {
  __shared__ Sum shared[kThreads];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  int half = 1;
  while (half * width < threads) half *= 2;
  __syncthreads();
  shared[thread] = sum;
  for (half /= 2; half > 0; half /= 2) {
    __syncthreads();
    const int other = thread + half * width;
    if (thread >= half * width || other >= threads) continue;
    sum.add(shared[other]);
    shared[thread] = sum;
  }
}

// What the threads of a block have summed, a lane for each neuron of a vector: the block's part of its channels' sums,
// or all of it.
template <int V, class R, template <class> class Sum>
__device__ __forceinline__ void add_block(const KernelArgs& a, const Walk<V>& walk, Sum<R> (&lane)[V]) {
  const bool is_whole = gridDim.y == 1;
  const int64_t size = a.norm.size, plane = is_whole ? size : gridDim.y * size;
  R* const to = is_whole ? Sum<R>::result(a) : static_cast<R*>(a.norm.partial) + blockIdx.y * size;
  const auto write = [&](const Sum<R>& sum, int64_t channel) {
    is_whole ? sum.write_result(to + channel, plane) : sum.write(to + channel, plane);
  };
  if (walk.is_last()) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      add_up<kSumThreads>(lane[v], blockDim.x);
      if (threadIdx.y == 0 && walk.has_channel()) write(lane[v], walk.channel() + v);
    }
  } else {
#pragma unroll
    for (int v = 1; v < V; ++v) lane[0].add(lane[v]);
    add_up<kSumThreads>(lane[0], 1);
    if (threadIdx.x == 0) write(lane[0], walk.channel());
  }
}

// The partial sums, for kFinishChannels channels a block. All are loaded at once.
template <class R, template <class> class Sum>
__global__ void __launch_bounds__(kFinishChannels* kFinishRows) finish_kernel(const KernelArgs a, int count) {
  let_next_start();
  constexpr int kEach = kMostPartials / kFinishRows;
  const int64_t channel = int64_t(blockIdx.x) * kFinishChannels + threadIdx.x, size = a.norm.size;
  const R* from = static_cast<const R*>(a.norm.partial) + (channel < size ? channel : 0);
  Sum<R> part[kEach];
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int p = threadIdx.y + i * kFinishRows;
    part[i] = {};
    if (p < count) part[i] = Sum<R>::read(from + p * size, count * size);
  }
#pragma unroll
  for (int i = 1; i < kEach; ++i) part[0].add(part[i]);
  add_up<kFinishChannels * kFinishRows>(part[0], kFinishChannels);
  if (threadIdx.y == 0 && channel < size) part[0].write_result(Sum<R>::result(a) + channel, size);
}

// In BPTT, sums of gy, which is also stored where it is wanted.
template <class T, int V, int C, bool kIsLean>
class NormSums : public NormInput<T, V, C, kIsLean> {
  using Base = NormInput<T, V, C, kIsLean>;

 public:
  using typename Base::R;
  using typename Base::Row;
  static constexpr bool kStores = false;

  using Base::Base;
  __device__ __forceinline__ void begin(const KernelArgs&, int64_t) {}
  __device__ __forceinline__ void load_gradients(const KernelArgs& a, int64_t start, int steps, int64_t origin) {
    if constexpr (!kIsLean) Base::load_rows(a.norm.grad_y, grad_y_, a, start, steps, origin);
  }
  __device__ __forceinline__ Row gradient(int j, bool real, const Packed<T, V>& packed, const Row& from_neuron) {
    const Row x = unpack<T, V>(packed);
    Row gy = from_neuron;
    if constexpr (!kIsLean) {
      const Row from_y = unpack<T, V>(grad_y_[j]);
#pragma unroll
      for (int v = 0; v < V; ++v) gy.lane[v] += from_y.lane[v];
      gy = unpack<T, V>(pack<T, V>(gy));  // as it is stored
    }
    if (real) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum[v].gy += gy.lane[v];
        sum[v].product = fma(gy.lane[v], x.lane[v] - this->mean_.lane[v], sum[v].product);
      }
    }
    return gy;
  }

  GradientSums<R> sum[V] = {};

 private:
  Packed<T, V> grad_y_[kGroup];
};

template <class Neuron, class Surrogate, class T, int V, int C, bool kLean>
__global__ void __launch_bounds__(kSumThreads)
    sums_kernel(const KernelArgs a, const typename Neuron::template Params<real_t<T>> common,
                const Surrogate surrogate) {
  using R = real_t<T>;
  let_next_start();
  Walk<V> walk(a);
  NormSums<T, V, C, kLean> stage(a, walk.any_neuron());
  SNNKERN_ROLLED
  for (; walk.more(); walk.next()) step_back<Neuron, T, V, C>(a, common, surrogate, walk.neuron(), stage);
  for_channels<V>(a, walk.any_neuron(), [&](int v, int64_t channel) {
    stage.sum[v].product *= deviation_inverse(a.norm, entry<R>(a.norm.var, channel));
  });
  add_block<V, R, GradientSums>(a, walk, stage.sum);
}

// Moments of x, of the differences to the thread's first value, near which sums lose nothing.
template <class T, int V>
__global__ void __launch_bounds__(kSumThreads) statistics_kernel(const KernelArgs a) {
  using R = real_t<T>;
  constexpr int kRows = 4;
  let_next_start();
  Walk<V> walk(a);
  Numbers<R, V> base = unpack<T, V>(Column<T, V>(a.x, 0, a.inner, origin(a, walk.any_neuron())).load());
  if (!walk.is_last()) {  // one channel
#pragma unroll
    for (int v = 1; v < V; ++v) base.lane[v] = base.lane[0];
  }
  Numbers<R, V> near = base, sum, squares;
#pragma unroll
  for (int v = 0; v < V; ++v) sum.lane[v] = squares.lane[v] = R(0);
  int64_t positions = 0;
  for (; walk.more(); walk.next()) {
    Column<T, V> column(a.x, 0, a.inner, origin(a, walk.neuron()));
    SNNKERN_ROLLED
    for (int64_t start = 0; start < a.T; start += kRows) {
      Packed<T, V> rows[kRows];
      const int steps = steps_left(a, start, kRows);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        rows[j] = {};
        if (j < steps) rows[j] = column.load();
        column.down();
      }
      if (positions == 0 && start == 0) near = unpack<T, V>(rows[0]);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const Numbers<R, V> x = unpack<T, V>(rows[j]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const R away = j < steps ? x.lane[v] - near.lane[v] : R(0);
          sum.lane[v] += away;
          squares.lane[v] = fma(away, away, squares.lane[v]);
        }
      }
    }
    ++positions;
  }
  Moments<R> moments[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const R count = R(positions * a.T), shift = positions > 0 ? sum.lane[v] / count : R(0);
    const R rest = squares.lane[v] - sum.lane[v] * shift;
    moments[v] = {count, near.lane[v] - base.lane[v] + shift, rest < R(0) ? R(0) : rest};
  }
  if (blockIdx.y == 0 && threadIdx.y == 0 && walk.has_channel() && (walk.is_last() || threadIdx.x == 0)) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v == 0 || walk.is_last()) Moments<R>::result(a)[walk.channel() + v] = base.lane[v];
    }
  }
  add_block<V, R, Moments>(a, walk, moments);
}

// ---- launches ------------------------------------------------------------------------------------------------------

inline bool starts_early() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

// `early`: the kernel may start while the one before it still runs, and waits for it where it needs its results.
template <class... Params>
const char* start(void (*kernel)(Params...), Grid grid, void* stream, bool early, const Params&... args) {
  if (grid.blocks.y > 65535) return "too many channels for one launch";
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early && starts_early() ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A kernel that gives each thread V neurons.
template <class Neuron, class Surrogate, class R>
const char* launch_early(const KernelArgs& a, void* stream, Shape shape, bool early,
                         Kernel<Neuron, Surrogate, R> kernel) {
  const int64_t count = blocks(a, shape);
  if (count > INT32_MAX) return "too many neurons for one launch";
  const Grid grid = {dim3(static_cast<unsigned>(count)), dim3(shape.threads())};
  return start(kernel, grid, stream, early, a, typename Neuron::template Params<R>(a), Surrogate(a));
}

// Whether V neurons a thread are possible, and leave enough threads to hide the latency of the memory.
template <class T>
bool wide_pays(const KernelArgs& a, int V) {
  return a.N / V >= 256 * multiprocessors() && vectors_fit(a, V, sizeof(T));
}

// Whether vectors of V are of the same channels, in memory, for all time.
template <class T>
bool sums_fit(const KernelArgs& a, int V) {
  return (channels_last(a.norm) ? a.norm.size : a.norm.inner) % V == 0 && vectors_fit(a, V, sizeof(T));
}

template <class R, template <class> class Sum>
const char* finish(const KernelArgs& a, void* stream) {
  const int count = static_cast<int>(partials(a));
  if (count == 1) return nullptr;
  const unsigned blocks = static_cast<unsigned>((a.norm.size + kFinishChannels - 1) / kFinishChannels);
  return start(finish_kernel<R, Sum>, {dim3(blocks), dim3(kFinishChannels, kFinishRows)}, stream, true, a, count);
}

template <class T>
const char* statistics(const KernelArgs& a, void* stream) {
  const auto run = [&](int V, void (*kernel)(KernelArgs)) {
    const char* error = start(kernel, sum_grid(a, V), stream, false, a);
    return error ? error : finish<real_t<T>, Moments>(a, stream);
  };
  if constexpr (sizeof(T) == 2)
    if (!channels_last(a.norm) && sums_fit<T>(a, 8)) return run(8, statistics_kernel<T, 8>);
  if (sums_fit<T>(a, 4)) return run(4, statistics_kernel<T, 4>);
  return run(1, statistics_kernel<T, 1>);
}

template <class T, int V, int C>
using LeanForward = NormForward<T, V, C, true>;
template <class T, int V, int C>
using WholeForward = NormForward<T, V, C, false>;
template <class T, int V, int C>
using LeanGradient = NormGradient<T, V, C, true>;

template <class Neuron, template <class> class SurrogateOf, class T>
const char* norm_forward(const KernelArgs& a, void* stream) {
  using R = real_t<T>;
  using Surrogate = SurrogateOf<R>;
  const bool early = a.norm.statistics;
  const auto run = [&](Shape shape, Kernel<Neuron, Surrogate, R> kernel) {
    return launch_early<Neuron, Surrogate, R>(a, stream, shape, early, kernel);
  };
  if (a.store_seq || a.norm.residual || a.norm.y) {
    if (wide_pays<T>(a, 2)) return run({2, 8}, forward_kernel<Neuron, Surrogate, T, 2, 8, WholeForward>);
    return run({1, 16}, forward_kernel<Neuron, Surrogate, T, 1, 16, WholeForward>);
  }
  if (wide_pays<T>(a, 4)) return run({4, 4}, forward_kernel<Neuron, Surrogate, T, 4, 4, LeanForward>);
  return run({1, 16}, forward_kernel<Neuron, Surrogate, T, 1, 16, LeanForward>);
}

template <class Neuron, class Surrogate, class T>
const char* launch_sums(const KernelArgs& a, void* stream, int V, Kernel<Neuron, Surrogate, real_t<T>> kernel) {
  using R = real_t<T>;
  const char* error =
      start(kernel, sum_grid(a, V), stream, false, a, typename Neuron::template Params<R>(a), Surrogate(a));
  return error ? error : finish<R, GradientSums>(a, stream);
}

// The sums that norm_backward needs, without gy.
template <class Neuron, template <class> class SurrogateOf, class T>
const char* norm_sums(const KernelArgs& a, void* stream) {
  using Surrogate = SurrogateOf<real_t<T>>;
  const auto run = [&](int V, auto kernel) { return launch_sums<Neuron, Surrogate, T>(a, stream, V, kernel); };
  if (a.T <= 4 && sums_fit<T>(a, 4)) return run(4, sums_kernel<Neuron, Surrogate, T, 4, 4, true>);
  if (sums_fit<T>(a, 2)) return run(2, sums_kernel<Neuron, Surrogate, T, 2, kCheckpointPeriod, true>);
  return run(1, sums_kernel<Neuron, Surrogate, T, 1, kCheckpointPeriod, true>);
}

// The sums, and gy in the place of grad_x: where there is a residual, whose gradient it is, or y is a result.
template <class Neuron, template <class> class SurrogateOf, class T>
const char* norm_whole(const KernelArgs& a, void* stream) {
  using Surrogate = SurrogateOf<real_t<T>>;
  const auto run = [&](int V, auto kernel) { return launch_sums<Neuron, Surrogate, T>(a, stream, V, kernel); };
  if (sums_fit<T>(a, 2)) return run(2, sums_kernel<Neuron, Surrogate, T, 2, kCheckpointPeriod, false>);
  return run(1, sums_kernel<Neuron, Surrogate, T, 1, kCheckpointPeriod, false>);
}

template <class Neuron, template <class> class SurrogateOf, class T>
const char* norm_backward(const KernelArgs& a, void* stream) {
  using R = real_t<T>;
  using Surrogate = SurrogateOf<R>;
  // norm_sums may still run; but the BatchNorm alone reads a gy that may be still on its way.
  const bool early = a.norm.sums && Neuron::kStates > 0;
  const auto run = [&](Shape shape, Kernel<Neuron, Surrogate, R> kernel) {
    return launch_early<Neuron, Surrogate, R>(a, stream, shape, early, kernel);
  };
  if (a.T <= 4 && wide_pays<T>(a, 4)) return run({4, 4}, backward_kernel<Neuron, Surrogate, T, 4, 4, LeanGradient>);
  if (wide_pays<T>(a, 2))
    return run({2, kCheckpointPeriod}, backward_kernel<Neuron, Surrogate, T, 2, kCheckpointPeriod, LeanGradient>);
  return run({1, kCheckpointPeriod}, backward_kernel<Neuron, Surrogate, T, 1, kCheckpointPeriod, LeanGradient>);
}

// The neuron that gives what it gets: the BatchNorm alone.
struct Identity {
  static constexpr int kStates = 0, kGradients = 0, kTape = 0;
  static constexpr bool kTensors = false, kSmooth = false, kWide = true;
  template <class R>
  struct Params {
    static constexpr int kCount = 0;
    explicit Params(const KernelArgs&) {}
    SNNKERN_FN void load(const KernelArgs&) {}
  };
  static SNNKERN_FN constexpr int start(int) { return -1; }
  template <class R, class S>
  static SNNKERN_FN R forward(const Params<R>&, const S&, R x, R*) {
    return x;
  }
  template <class R, class S>
  static SNNKERN_FN void record(const Params<R>&, const S&, R, R*, R*) {}
  template <class R, class S>
  static SNNKERN_FN R backward(const Params<R>&, const S&, const R*, R gs, R*, R*) {
    return gs;
  }
};

}  // namespace snnkern::cuda
