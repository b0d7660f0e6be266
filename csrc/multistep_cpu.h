// The time loops for the CPU, forward and BPTT, over a generated neuron. Time runs outside, a block of neurons inside:
// the inner loops have a constant trip count and no branch, so that the compiler vectorises them for each instruction
// set.
#pragma once
#include "elementary.h"
#include "multistep.h"

// One binary for every x86-64: the loader picks the widest clone that the processor runs.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(SNNKERN_NO_CLONES)
#define SNNKERN_CPU_KERNEL __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SNNKERN_CPU_KERNEL
#endif

namespace snnkern::cpu {

// The neurons [first, first + count) of a [T, N] sequence. A block shorter than kCpuBlock is worked on in a buffer.
struct Block {
  int64_t first, count;
  bool full() const { return count == kCpuBlock; }

  template <class T>
  SNNKERN_FN const T* read(const void* sequence, int64_t row, int64_t N, T* buffer) const {
    const T* p = static_cast<const T*>(sequence) + row * N + first;
    if (full()) return p;
    std::memcpy(buffer, p, count * sizeof(T));
    return buffer;
  }

  // Where to write a row; commit() it afterwards.
  template <class T>
  SNNKERN_FN T* write(void* sequence, int64_t row, int64_t N, T* buffer) const {
    return full() ? static_cast<T*>(sequence) + row * N + first : buffer;
  }

  template <class T>
  SNNKERN_FN void commit(void* sequence, int64_t row, int64_t N, const T* buffer) const {
    if (!full()) std::memcpy(static_cast<T*>(sequence) + row * N + first, buffer, count * sizeof(T));
  }

  template <class R>
  SNNKERN_FN void load(R* values, const void* sequence, int64_t row, int64_t N) const {
    std::memcpy(values, static_cast<const R*>(sequence) + row * N + first, count * sizeof(R));
  }

  template <class R>
  SNNKERN_FN void store(void* sequence, int64_t row, int64_t N, const R* values) const {
    std::memcpy(static_cast<R*>(sequence) + row * N + first, values, count * sizeof(R));
  }
};

template <class R>
SNNKERN_FN void fill(R* values, R value) {
  for (int64_t i = 0; i < kCpuBlock; ++i) values[i] = value;
}

template <class R, int S>
SNNKERN_FN void load_initial(R (&state)[S][kCpuBlock], const KernelArgs& a, const Block& block) {
  for (int k = 0; k < S; ++k) {
    fill(state[k], R(a.state_start[k]));
    if (a.state_init[k]) block.load(state[k], a.state_init[k], 0, a.N);
  }
}

// One time step of a block: the states advance in place.
template <class Neuron, class Surrogate, class T, class R, int S>
SNNKERN_FN void step(const typename Neuron::template Params<R>& p, const Surrogate& surrogate, const T* __restrict x,
                     R (&__restrict state)[S][kCpuBlock], T* __restrict spike_row) {
  for (int64_t i = 0; i < kCpuBlock; ++i) {
    R s[S];
    for (int k = 0; k < S; ++k) s[k] = state[k][i];
    spike_row[i] = from_real<T>(Neuron::template forward<R>(p, surrogate, to_real(x[i]), s));
    for (int k = 0; k < S; ++k) state[k][i] = s[k];
  }
}

// The same, without the spikes and with a tape.
template <class Neuron, class Surrogate, class T, class R, int S, int K>
SNNKERN_FN void record(const typename Neuron::template Params<R>& p, const Surrogate& surrogate, const T* __restrict x,
                       R (&__restrict state)[S][kCpuBlock], R (&__restrict tape)[K][kCpuBlock]) {
  for (int64_t i = 0; i < kCpuBlock; ++i) {
    R s[S], note[K];
    for (int k = 0; k < S; ++k) s[k] = state[k][i];
    Neuron::template record<R>(p, surrogate, to_real(x[i]), s, note);
    for (int k = 0; k < S; ++k) state[k][i] = s[k];
    for (int k = 0; k < Neuron::kTape; ++k) tape[k][i] = note[k];
  }
}

template <class Neuron, template <class> class SurrogateOf, class T>
SNNKERN_FN void forward(const KernelArgs& a, int64_t begin, int64_t end) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates;
  typename Neuron::template Params<R> p(a);
  p.load(a);
  const SurrogateOf<R> surrogate(a);
  alignas(64) R state[S][kCpuBlock];
  alignas(64) T x_buffer[kCpuBlock] = {}, spike_buffer[kCpuBlock];
  for (int64_t first = begin; first < end; first += kCpuBlock) {
    const Block block{first, end - first < kCpuBlock ? end - first : kCpuBlock};
    load_initial(state, a, block);
    for (int64_t t = 0; t < a.T; ++t) {
      if (a.checkpoints && t > 0 && t % kCheckpointPeriod == 0)
        for (int k = 0; k < S; ++k) block.store(a.checkpoints, (t / kCheckpointPeriod - 1) * S + k, a.N, state[k]);
      step<Neuron>(p, surrogate, block.read(a.x, t, a.N, x_buffer), state, block.write(a.spike, t, a.N, spike_buffer));
      block.commit(a.spike, t, a.N, spike_buffer);
      if (a.store_seq)
        for (int k = 0; k < S; ++k) block.store(a.state[k], t, a.N, state[k]);
    }
    if (!a.store_seq)
      for (int k = 0; k < S; ++k) block.store(a.state[k], 0, a.N, state[k]);
  }
}

// One step of BPTT of a block.
template <class Neuron, class Surrogate, class T, class R, int S, int K, int L>
SNNKERN_FN void step_back(const typename Neuron::template Params<R>& p, const Surrogate& surrogate,
                          const R (&__restrict tape)[K][kCpuBlock], const T* __restrict grad_spike,
                          R (&__restrict grad)[S][kCpuBlock], R (&__restrict grad_param)[L][kCpuBlock],
                          T* __restrict grad_x) {
  for (int64_t i = 0; i < kCpuBlock; ++i) {
    R note[K], g[S], gp[L];
    for (int k = 0; k < Neuron::kTape; ++k) note[k] = tape[k][i];
    for (int k = 0; k < S; ++k) g[k] = grad[k][i];
    for (int k = 0; k < Neuron::kLearned; ++k) gp[k] = grad_param[k][i];
    grad_x[i] = from_real<T>(Neuron::template backward<R>(p, surrogate, note, to_real(grad_spike[i]), g, gp));
    for (int k = 0; k < S; ++k) grad[k][i] = g[k];
    for (int k = 0; k < Neuron::kLearned; ++k) grad_param[k][i] = gp[k];
  }
}

template <class Neuron, template <class> class SurrogateOf, class T>
SNNKERN_FN void backward(const KernelArgs& a, int64_t begin, int64_t end) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates, C = kCheckpointPeriod;
  constexpr int K = Neuron::kTape > 0 ? Neuron::kTape : 1, L = Neuron::kLearned > 0 ? Neuron::kLearned : 1;
  typename Neuron::template Params<R> p(a);
  p.load(a);
  const SurrogateOf<R> surrogate(a);
  alignas(64) R tape[C][K][kCpuBlock], state[S][kCpuBlock], grad[S][kCpuBlock], grad_param[L][kCpuBlock];
  alignas(64) T x_buffer[kCpuBlock] = {}, grad_buffer[kCpuBlock] = {}, out_buffer[kCpuBlock];
  alignas(64) const T zeros[kCpuBlock] = {};
  for (int64_t first = begin; first < end; first += kCpuBlock) {
    const Block block{first, end - first < kCpuBlock ? end - first : kCpuBlock};
    for (int k = 0; k < S; ++k) {
      fill(grad[k], R(0));
      if (a.grad_state[k] && !a.store_seq) block.load(grad[k], a.grad_state[k], 0, a.N);
    }
    for (int k = 0; k < Neuron::kLearned; ++k) fill(grad_param[k], R(0));

    for (int64_t chunk = checkpoint_count(a.T); chunk >= 0; --chunk) {
      const int64_t start = chunk * C, steps = a.T - start < C ? a.T - start : C;
      load_initial(state, a, block);
      if (chunk > 0)
        for (int k = 0; k < S; ++k) block.load(state[k], a.checkpoints, (chunk - 1) * S + k, a.N);
      for (int64_t j = 0; j < steps; ++j)
        record<Neuron>(p, surrogate, block.read(a.x, start + j, a.N, x_buffer), state, tape[j]);
      for (int64_t j = steps - 1; j >= 0; --j) {
        const int64_t t = start + j;
        if (a.store_seq) {
          for (int k = 0; k < S; ++k) {
            if (!a.grad_state[k]) continue;
            const R* row = static_cast<const R*>(a.grad_state[k]) + t * a.N + first;
            for (int64_t i = 0; i < block.count; ++i) grad[k][i] += row[i];
          }
        }
        const T* grad_spike = a.grad_spike ? block.read(a.grad_spike, t, a.N, grad_buffer) : zeros;
        step_back<Neuron>(p, surrogate, tape[j], grad_spike, grad, grad_param,
                          block.write(a.grad_x, t, a.N, out_buffer));
        block.commit(a.grad_x, t, a.N, out_buffer);
      }
    }
    for (int k = 0; k < S; ++k)
      if (a.grad_init[k]) block.store(a.grad_init[k], 0, a.N, grad[k]);
    for (int k = 0; k < Neuron::kLearned; ++k) block.store(a.grad_param[k], 0, a.N, grad_param[k]);
  }
}

}  // namespace snnkern::cpu
