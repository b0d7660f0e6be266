// How a launch on CUDA spreads the neurons over threads. No CUDA in here: the host asks it as well, for kernels that
// are compiled at run time.
#pragma once
#include "multistep.h"

namespace snnkern::cuda {

constexpr int kThreads = 128;  // most threads of a block

// A kernel of a pass: V neurons to a thread, and the rows that it loads ahead or, in BPTT, the steps of a chunk.
struct Shape {
  int V, steps;
  constexpr int threads() const { return V == 1 ? kThreads / 2 : kThreads; }
};

// What the shapes of a pass depend on.
struct Family {
  bool is_backward;
  bool tensors;  // a value for each neuron where a parameter is a tensor
  bool is_wide;  // in vectors too
  int element;   // bytes of an element of x
};

// The kernels of a pass, the widest first.
struct Shapes {
  int count;
  Shape shape[3];
};
constexpr Shapes shapes(const Family& of) {
  constexpr Shape narrow = {1, kCheckpointPeriod}, pair = {2, kCheckpointPeriod};
  if (!of.is_wide) return {1, {narrow}};
  if (of.tensors) return {2, {of.is_backward ? pair : Shape{2, 8}, narrow}};
  if (!of.is_backward) return {2, {{4, 4}, narrow}};
  return {3, {{8 / of.element, 8}, pair, narrow}};
}

// Whether every row of every tensor may be read in vectors of V.
inline bool vectors_fit(const KernelArgs& a, int V, int element) {
  if (a.inner % V) return false;
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const auto fit = [V](uintptr_t at, int size) { return at % (size * V < 16 ? size * V : 16) == 0; };
  uintptr_t states = bits(a.checkpoints);
  for (int k = 0; k < kMaxStates; ++k)
    states |= bits(a.state_init[k]) | bits(a.state[k]) | bits(a.grad_state[k]) | bits(a.grad_init[k]);
  for (const void* p : a.grad_param) states |= bits(p);
  return fit(bits(a.x) | bits(a.spike) | bits(a.grad_spike) | bits(a.grad_x), element) &&
         fit(bits(a.norm.residual) | bits(a.norm.y) | bits(a.norm.grad_y), element) &&
         fit(states, element == 8 ? 8 : 4);
}

// Which of shapes(of) a launch takes: the widest that leaves enough threads to hide the latency of the memory.
inline int choose(const KernelArgs& a, const Family& of, int multiprocessors) {
  constexpr int64_t kEnough = 256;  // threads a multiprocessor
  const Shapes all = shapes(of);
  for (int i = 0; i + 1 < all.count; ++i) {
    const Shape shape = all.shape[i];
    if (of.is_backward && shape.steps < kCheckpointPeriod && a.T > shape.steps) continue;  // it has but one chunk
    if (a.N / shape.V >= kEnough * multiprocessors && vectors_fit(a, shape.V, of.element)) return i;
  }
  return all.count - 1;
}

inline int64_t blocks(const KernelArgs& a, Shape shape) {
  const int64_t threads = (a.N + shape.V - 1) / shape.V;
  return (threads + shape.threads() - 1) / shape.threads();
}

// ---- spikes that are fed back: see recurrent.cuh

constexpr int kRowThreads = 1024, kResidentThreads = 512;  // most threads of a block
constexpr int64_t kUsualMemory = 48 << 10;                 // of a block, in bytes, without asking for more
constexpr int64_t kMostMemory = 64 << 10;                  // that every device has

// Whether a block has room for a row, whose neurons have so many states of so many bytes.
inline bool row_fits(int64_t neurons, int states, int element) {
  constexpr int kRest = 4;  // bytes that are kept of a neuron besides its states and its spikes, and a little more
  return (neurons + 32) * (int64_t(element) * (states + 2) + kRest) <= kMostMemory;
}

}  // namespace snnkern::cuda
