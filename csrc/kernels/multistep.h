// What a kernel is: its arguments, and the row of kernels that one generated file defines. No torch header from here
// down.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define SNNKERN_FN __host__ __device__ __forceinline__
#define SNNKERN_CALL __host__ __device__ __attribute__((noinline))
#define SNNKERN_ROLLED _Pragma("unroll 1")  // the loop that follows stays a loop
#else
#define SNNKERN_FN inline __attribute__((always_inline))
#define SNNKERN_CALL inline __attribute__((noinline))
#define SNNKERN_ROLLED
#endif

// What one library shows to another; all else is hidden.
#define SNNKERN_EXPORT __attribute__((visibility("default")))

namespace snnkern {

enum Reset { kHard, kSoft, kResets };
enum Dtype { kF32, kF64, kF16, kBF16, kDtypes };
// A tensor pass takes a value for each neuron where a parameter is a tensor, and has a gradient for every parameter. A
// smooth pass is one that emits the surrogate's primitive in place of the spike. A general pass is a tensor pass with
// the neuron's conventions, which for all others are at their usual values.
enum Pass {
  kForward,
  kBackward,
  kTensorForward,
  kTensorBackward,
  kSmoothForward,
  kSmoothBackward,
  kGeneralForward,
  kGeneralBackward,
  // On CUDA, a plain pass with a BatchNorm in front, whose gradient needs sums of that in the neuron's input: BPTT runs
  // twice, for the sums and for the gradient; or once, and stores what it finds.
  kNormForward,
  kNormSums,
  kNormBackward,
  kNormWhole,
  kPasses
};

constexpr int kMaxStates = 8;   // states of a neuron
constexpr int kMaxParams = 24;  // float and tensor parameters of a neuron
constexpr int kMaxFlags = 8;
constexpr int kMaxSurrogateParams = 4;

// The training forward keeps the states that enter steps 16, 32, ...; the backward recomputes the steps between from x.
constexpr int64_t kCheckpointPeriod = 16;
constexpr int64_t checkpoint_count(int64_t T) { return (T - 1) / kCheckpointPeriod; }

// A parameter that is a tensor of the state dtype: in step t, neuron n reads element t * step + n / inner % size.
struct ParamTensor {
  const void* data;  // null: a number
  int64_t inner, size;
  int64_t step;  // 0: the same in every step
};

// A BatchNorm in front of a neuron, which then gets y = (x - mean) scale + bias [+ residual], scale = weight / sqrt(var
// + eps). Neuron n is in channel n / inner % size. Tensors are [size] of the state dtype, and sequences have x's dtype.
struct NormArgs {
  int64_t size, inner;  // size 0: there is none
  double eps;
  const void *mean, *var, *weight, *bias;  // weight, bias: null for 1 and 0
  const void* residual;
  void* y;             // y itself, where it is a result
  const void* grad_y;  // the gradient in that result
  void* statistics;    // [3, size]: mean, var and unbiased var of x
  void* sums;     // [2, size]: of gy and gy (x - mean) / sqrt(var + eps), where gy is the gradient in y. Null where
                  // mean and var are not of x: they are no part of the gradient then.
  double count;   // values a channel that these are of
  void* partial;  // room for what is added up
};

// Neurons [N / size, size] whose spikes come back, a step later, to the neurons of their row: before the step, x gets
//   z[k] = sum over j of spike[j] weight[k, j], + bias[k]
// added up one by one within each group of neighbouring j, and then group by group. All is of the state dtype.
struct RecurrentArgs {
  static constexpr int64_t kGroup = 32;  // the order is part of the definition
  static constexpr int64_t kLanes = 64;  // dense weights have rows of a multiple of it: zeros fill them up
  int64_t size, stride;                  // stride 0: weight is [size], of each neuron to itself
  bool finite;                           // no weight is infinite or NaN: what is 0 adds nothing
  const void* forward;                   // a row for each j: the weights of its spike
  const void* backward;                  // a row for each k; null: no gradient goes this way
  const void *bias, *spike_init;         // [size], [N]; null: 0
  void* grad_input;                      // the gradient in x + z, a sequence
  // On CUDA, where numbers that only the device knows stand for `finite`:
  const void* check;    // a number that is 0 if all weights are finite, of the state dtype
  Dtype dtype;          // of sequences that have x's
  int rows, blocks;     // of a block or a cluster, and how many blocks that has
  void* tape;           // [T, tape, N]: what BPTT needs of each step
  void* carried;        // [carried, N]: of a neuron, between two launches for a step each
  const void* product;  // [N]: the gradient that comes through the weights in the one step of a launch; null: 0
  int64_t begin, end;   // the steps of a launch for neurons alone
};

namespace cpu {

struct Block;

// What may stand between the sequences and the steps: it has rows of a block in the state dtype, for kernels of that
// type.
class Stage {
 public:
  virtual ~Stage() = default;
  virtual void enter(const Block& block) = 0;  // what follows is of this block
  virtual const void* input(int64_t t) = 0;
  virtual void output(int64_t t, const void* spike) = 0;
  virtual const void* grad_output(int64_t t) = 0;
  virtual void grad_input(int64_t t, const void* gradient) = 0;
  virtual void leave() = 0;
};

}  // namespace cpu

// Sequences are [N / inner, T, inner] in storage order: with time outermost, inner is N; with the batch first, a row of
// one sample. States are [N]. Tensors of x's dtype: x, spike, grad_spike, grad_x. All others have the state dtype:
// float, or double for double x. A null pointer is a tensor that is not wanted, or a gradient that is zero.
struct KernelArgs {
  int64_t T, N, inner;
  const void* x;
  const void* state_init[kMaxStates];  // null: start at state_start
  double state_start[kMaxStates];
  void* spike;
  void* state[kMaxStates];  // [N] after the last step, or a sequence with store_seq
  bool store_seq;
  void* checkpoints;  // [checkpoint_count(T), states, N]; written by the training forward, read by the backward

  const void* grad_spike;
  const void* grad_state[kMaxStates];  // laid out as state
  void* grad_x;
  void* grad_init[kMaxStates];
  // Each neuron's share of a parameter's gradient: [N], or a sequence where the parameter changes with time.
  void* grad_param[kMaxParams];

  double params[kMaxParams];
  ParamTensor tensor[kMaxParams];
  int64_t flags[kMaxFlags];  // 0 or -1
  int32_t surrogate_id;
  double surrogate[kMaxSurrogateParams];
  NormArgs norm;
  cpu::Stage* stage;  // on the CPU: what stands between the sequences and the steps, or null
};

// 16-bit floating-point storage; arithmetic is in float.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class T>
struct Real {
  using type = float;
};
template <>
struct Real<double> {
  using type = double;
};
template <class T>
using real_t = typename Real<T>::type;

template <class To, class From>
SNNKERN_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// A switch that is the same for all neurons: all bits set, or none. The choice is made in bits, one instruction on a
// GPU and vectorised on a CPU. Compilers make a branch of `flag ? a : b`, and with it a second copy of the loop, or
// none of the vectors.
template <class R>
using Mask = std::conditional_t<sizeof(R) == 8, int64_t, int32_t>;

template <class R>
SNNKERN_FN R choose(Mask<R> mask, R a, R b) {
  return bit_cast<R>((bit_cast<Mask<R> >(a) & mask) | (bit_cast<Mask<R> >(b) & ~mask));
}

// NaN does not spike.
template <class R>
SNNKERN_FN R spike(R u) {
  return u >= R(0) ? R(1) : R(0);
}

// A neuron's step for kernels in which some parameters change from step to step: bit k of a mask stands for the k-th.
// Those of `like_x` and their gradients are sequences of the type and layout of x; of the rest, see ParamTensor.
template <class Neuron, uint32_t in_time, uint32_t like_x>
struct InTime : Neuron {};
template <class Neuron>
constexpr uint32_t kInTime = 0;
template <class Neuron, uint32_t in_time, uint32_t like_x>
constexpr uint32_t kInTime<InTime<Neuron, in_time, like_x> > = in_time;
template <class Neuron>
constexpr uint32_t kLikeX = 0;
template <class Neuron, uint32_t in_time, uint32_t like_x>
constexpr uint32_t kLikeX<InTime<Neuron, in_time, like_x> > = like_x;
static_assert(kMaxParams <= 32, "a bit for each parameter");

// Stands where a kernel needs no surrogate: the forward pass.
template <class R>
struct NoSurrogate {
  static constexpr bool kByNumber = false;
  explicit NoSurrogate(const KernelArgs&) {}
};

// The K-th place, from 0, at which a step asks its surrogate. On the CPU each is answered for a block, see
// multistep_cpu.h; elsewhere the surrogate is code that does for all.
template <int K, class Surrogate>
SNNKERN_FN const Surrogate& question(const Surrogate& surrogate) {
  return surrogate;
}

constexpr int64_t kCpuBlock = 1024;  // neurons that a CPU kernel works on at a time
// out[i] = f(u[i]) for a block, with the parameters of a surrogate; u and out are float, or double.
using CpuFunction = void (*)(const double* parameters, const void* u, void* out);
// A surrogate on the CPU, [0] for float and [1] for double. A call for a block of neurons costs nothing, so the kernels
// of a neuron are compiled once for all surrogates.
struct CpuSurrogate {
  CpuFunction gradient[2], primitive[2];
};
// A CPU kernel computes the neurons [begin, end); begin is a multiple of kCpuBlock.
using CpuKernel = void (*)(const KernelArgs& args, const CpuSurrogate* surrogate, int64_t begin, int64_t end);
// The BatchNorm in front of a neuron on the CPU, for sequences of one dtype.
struct CpuNorm {
  // The stage for a share of the neurons, which adds to `sums`, [2, size], unless it is null: in BPTT what
  // NormArgs::sums are. The caller deletes it.
  cpu::Stage* (*stage)(const KernelArgs& args, double* sums);
  // The sums of x - near and its square; near is [size].
  void (*moments)(const KernelArgs& args, const double* near, double* sums, int64_t begin, int64_t end);
  // The gradient in x, from that in y in the place of grad_spike, which may be where grad_x is.
  void (*gradient)(const KernelArgs& args, int64_t begin, int64_t end);
};
// What feeds spikes back on the CPU, for sequences of one dtype.
struct CpuRecurrence {
  // The stage for neurons of whole rows, as many as fit in a block. The caller deletes it.
  cpu::Stage* (*stage)(const KernelArgs& args, const RecurrentArgs& recurrent);
  // to = from times the weights, of so many rows of spikes.
  void (*product)(const RecurrentArgs& recurrent, const void* from, void* to, int64_t rows);
};
// A CUDA kernel runs on a cudaStream_t; it returns an error text, or null.
using CudaKernel = const char* (*)(const KernelArgs& args, void* stream);
// A neuron whose spikes are fed back on CUDA, for states of one dtype; see recurrent.cuh.
struct CudaRecurrence {
  using Kernel = const char* (*)(const KernelArgs& args, RecurrentArgs recurrent, void* stream);
  Kernel forward;
  Kernel record;    // the tape
  Kernel backward;  // all steps; null, or an empty text, where it cannot
  Kernel alone;     // some steps of neurons without weights between them
  int tape, carried;
};

// Packs `count` values, or unpacks them, see packed.h; it returns an error text, or null. The stream is CUDA's.
using PackingKernel = const char* (*)(const void* from, void* to, int64_t count, void* stream);
struct Packings {
  PackingKernel pack[2], unpack[2];  // [0]: as bits; [1]: as bytes
};

// The kernels of one generated file; null where the file, or a restricted build, has none.
template <class Kernel>
struct Row {
  Kernel kernel[kPasses][kResets][kDtypes];
};

// How the kernels were built; null: without CUDA, or without a restriction. codegen/build.py writes it.
struct Build {
  const char *cuda, *cuda_architectures, *only, *compiler;
};
extern SNNKERN_EXPORT const Build kBuild;

}  // namespace snnkern
