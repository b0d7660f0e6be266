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

#define SNNKERN_INLINE __attribute__((always_inline))

namespace snnkern::cpu {

// The neurons [first, first + count). Their part of a row of a sequence is worked on where it lies if that is in one
// piece and as long as a block, else in a buffer.
struct Block {
  int64_t first, count;
  bool in_place;

  Block(const KernelArgs& a, int64_t first, int64_t end)
      : first(first),
        count(end - first < kCpuBlock ? end - first : kCpuBlock),
        in_place(count == kCpuBlock && first % a.inner + count <= a.inner) {}

  // copy(place in the sequence, place in the block, count) for each piece that lies in one.
  template <class Copy>
  SNNKERN_FN void pieces(const KernelArgs& a, int64_t row, const Copy& copy) const {
    int64_t outer = first / a.inner, within = first % a.inner;
    for (int64_t i = 0; i < count; ++outer, within = 0) {
      const int64_t n = a.inner - within < count - i ? a.inner - within : count - i;
      copy((outer * a.T + row) * a.inner + within, i, n);
      i += n;
    }
  }

  // The start of the block in a row, where it lies in one piece.
  SNNKERN_FN int64_t start(const KernelArgs& a, int64_t row) const {
    return (first / a.inner * a.T + row) * a.inner + first % a.inner;
  }

  template <class T>
  SNNKERN_FN const T* read(const KernelArgs& a, const void* sequence, int64_t row, T* buffer) const {
    const T* p = static_cast<const T*>(sequence);
    if (in_place) return p + start(a, row);
    pieces(a, row, [&](int64_t from, int64_t to, int64_t n) { std::memcpy(buffer + to, p + from, n * sizeof(T)); });
    return buffer;
  }

  // Where to write a row; commit() it afterwards.
  template <class T>
  SNNKERN_FN T* write(const KernelArgs& a, void* sequence, int64_t row, T* buffer) const {
    return in_place ? static_cast<T*>(sequence) + start(a, row) : buffer;
  }

  template <class T>
  SNNKERN_FN void commit(const KernelArgs& a, void* sequence, int64_t row, const T* buffer) const {
    if (!in_place) copy_out(a, sequence, row, buffer);
  }

  template <class T>
  SNNKERN_FN void copy_out(const KernelArgs& a, void* sequence, int64_t row, const T* values) const {
    T* p = static_cast<T*>(sequence);
    pieces(a, row, [&](int64_t to, int64_t from, int64_t n) { std::memcpy(p + to, values + from, n * sizeof(T)); });
  }

  // States, one for each neuron.
  template <class R>
  SNNKERN_FN void load(R* values, const void* states, int64_t row, int64_t N) const {
    std::memcpy(values, static_cast<const R*>(states) + row * N + first, count * sizeof(R));
  }

  template <class R>
  SNNKERN_FN void store(void* states, int64_t row, int64_t N, const R* values) const {
    std::memcpy(static_cast<R*>(states) + row * N + first, values, count * sizeof(R));
  }
};

template <class R>
SNNKERN_FN void fill(R* values, R value) {
  for (int64_t i = 0; i < kCpuBlock; ++i) values[i] = value;
}

// The parameters of a block: the same for all neurons, or rows with a value for each.
template <class Neuron, class R>
class Parameters {
 public:
  using Params = typename Neuron::template Params<R>;

  explicit Parameters(const KernelArgs& a) : common_(a) {
    if constexpr (!Neuron::kTensors) common_.load(a);
  }

  // Those of the first step.
  SNNKERN_FN void load(const KernelArgs& a, const Block& block) {
    if constexpr (Neuron::kTensors) load_rows<~0u>(a, block, 0);
  }

  // Those that change with time, of a sequence of T.
  template <class T>
  SNNKERN_FN void enter(const KernelArgs& a, const Block& block, int64_t time) {
    if constexpr (kInTime<Neuron> != 0) load_rows<kInTime<Neuron>>(a, block, time);
    for (int k = 0; k < Params::kCount; ++k) {
      if (!(kLikeX<Neuron> >> k & 1)) continue;
      const T* values = static_cast<const T*>(a.tensor[k].data);
      block.pieces(a, time, [&](int64_t from, int64_t to, int64_t n) SNNKERN_INLINE {
        for (int64_t i = 0; i < n; ++i) row_[k][to + i] = to_real(values[from + i]);
      });
    }
  }

  SNNKERN_FN Params operator[](int64_t i) const {
    Params p = common_;
    if constexpr (Neuron::kTensors) {
      R value[Params::kCount > 0 ? Params::kCount : 1];
      for (int k = 0; k < Params::kCount; ++k) value[k] = row_[k][i];
      p.set(value);
    }
    return p;
  }

  // Where a state starts: a parameter's row, or null for 0.
  SNNKERN_FN const R* row(int k) const { return k < 0 ? nullptr : row_[k]; }

 private:
  template <uint32_t which>
  SNNKERN_FN void load_rows(const KernelArgs& a, const Block& block, int64_t time) {
    for (int k = 0; k < Params::kCount; ++k) {
      if (!(which >> k & 1)) continue;
      const ParamTensor& t = a.tensor[k];
      fill(row_[k], R(a.params[k]));
      if (!t.data || kLikeX<Neuron> >> k & 1) continue;
      const R* values = static_cast<const R*>(t.data) + time * t.step;
      int64_t j = block.first / t.inner % t.size, left = t.inner - block.first % t.inner;
      for (int64_t i = 0; i < block.count; ++i) {
        row_[k][i] = values[j];
        if (--left > 0) continue;
        left = t.inner;
        if (++j == t.size) j = 0;
      }
    }
  }

  Params common_;
  alignas(64) R row_[Neuron::kTensors && Params::kCount > 0 ? Params::kCount : 1][kCpuBlock];
};

// Stands in for a surrogate, with which a neuron's step is taken apart where it asks for it, at Q places: the first N
// questions are answered with what CpuSurrogate has made of a block of them, the next is noted.
template <class R, int Q, int N>
struct StandIn {
  R slope[Q], value[Q];
  R* u;

  SNNKERN_FN R gradient(R x) const { return answer<0>(slope, x); }
  SNNKERN_FN R primitive(R x) const { return answer<0>(value, x); }
  template <int K>
  SNNKERN_FN R answer(const R (&answers)[Q], R x) const {
    if constexpr (K < N) return answers[K];
    if constexpr (K == N) *u = x;
    return x;
  }
};
template <int K, class R, int Q, int N>
struct Question {
  const StandIn<R, Q, N>& surrogate;
  SNNKERN_FN R gradient(R x) const { return surrogate.template answer<K>(surrogate.slope, x); }
  SNNKERN_FN R primitive(R x) const { return surrogate.template answer<K>(surrogate.value, x); }
};
template <int K, class R, int Q, int N>
SNNKERN_FN Question<K, R, Q, N> question(const StandIn<R, Q, N>& surrogate) {
  return {surrogate};
}

// The questions in the code for what a function asks, two bits each; and most that a function of a neuron has.
constexpr int questions(int asks) { return asks ? 1 + questions(asks >> 2) : 0; }
template <class Neuron>
constexpr int kQuestions = questions(Neuron::kForwardAsks | Neuron::kRecordAsks | Neuron::kBackwardAsks | 1);

// The answers for a block.
template <class R, int Q>
class Answers {
 public:
  Answers(const KernelArgs& a, const CpuSurrogate* surrogate) : parameters_(a.surrogate), surrogate_(surrogate) {}

  // step(i, stand_in): what asks, for each neuron; kAsks: for what.
  template <int kAsks, int N = 0, class Step>
  SNNKERN_FN void ask(const Step& step) {
    if constexpr (kAsks >> 2 * N) {
      for (int64_t i = 0; i < kCpuBlock; ++i) step(i, stand_in<kAsks, N>(i));
      if constexpr (kAsks >> 2 * N & 1) surrogate_->gradient[sizeof(R) == 8](parameters_, u_, slope_[N]);
      if constexpr (kAsks >> 2 * N & 2) surrogate_->primitive[sizeof(R) == 8](parameters_, u_, value_[N]);
      ask<kAsks, N + 1>(step);
    }
  }

  template <int kAsks>
  SNNKERN_FN StandIn<R, Q, Q> given(int64_t i) {
    return stand_in<kAsks, Q>(i);
  }

 private:
  template <int kAsks, int N>
  SNNKERN_FN StandIn<R, Q, N> stand_in(int64_t i) {
    StandIn<R, Q, N> out = {};
    for (int k = 0; k < N; ++k) {
      if (kAsks >> 2 * k & 1) out.slope[k] = slope_[k][i];
      if (kAsks >> 2 * k & 2) out.value[k] = value_[k][i];
    }
    out.u = &u_[i];
    return out;
  }

  const double* parameters_;
  const CpuSurrogate* surrogate_;
  alignas(64) R u_[kCpuBlock], slope_[Q][kCpuBlock], value_[Q][kCpuBlock];
};

template <class Neuron, class R, int S>
SNNKERN_FN void load_initial(R (&state)[S][kCpuBlock], const KernelArgs& a, const Parameters<Neuron, R>& p,
                             const Block& block) {
  for (int k = 0; k < S; ++k) {
    fill(state[k], R(a.state_start[k]));
    if (a.state_init[k]) {
      block.load(state[k], a.state_init[k], 0, a.N);
    } else if (Neuron::kTensors && p.row(Neuron::start(k))) {
      std::memcpy(state[k], p.row(Neuron::start(k)), sizeof(state[k]));
    }
  }
}

// One time step of a block: the states advance in place. step(i, surrogate, state, out) makes numbers, keep(i, out)
// stores them.
template <int kAsks, int kOut, class R, int S, int Q, class Step, class Keep>
SNNKERN_FN void advance(R (&__restrict state)[S][kCpuBlock], Answers<R, Q>& answers, const Step& step,
                        const Keep& keep) {
  const auto run = [&](int64_t i, const auto& surrogate, R* s, R* out) SNNKERN_INLINE {
    for (int k = 0; k < S; ++k) s[k] = state[k][i];
    step(i, surrogate, s, out);
  };
  answers.template ask<kAsks>([&](int64_t i, const auto& asked) SNNKERN_INLINE {
    R s[S], out[kOut];
    run(i, asked, s, out);
  });
  for (int64_t i = 0; i < kCpuBlock; ++i) {
    R s[S], out[kOut];
    run(i, answers.template given<kAsks>(i), s, out);
    keep(i, out);
    for (int k = 0; k < S; ++k) state[k][i] = s[k];
  }
}

template <class Neuron, class T>
SNNKERN_FN void forward(const KernelArgs& a, const CpuSurrogate* surrogate, int64_t begin, int64_t end) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates;
  Parameters<Neuron, R> p(a);
  Answers<R, kQuestions<Neuron>> answers(a, surrogate);
  alignas(64) R state[S][kCpuBlock];
  alignas(64) T x_buffer[kCpuBlock] = {}, spike_buffer[kCpuBlock];
  for (int64_t first = begin; first < end; first += kCpuBlock) {
    const Block block(a, first, end);
    if (a.stage) a.stage->enter(block);
    p.load(a, block);
    p.template enter<T>(a, block, 0);
    load_initial(state, a, p, block);
    for (int64_t t = 0; t < a.T; ++t) {
      if (a.checkpoints && t > 0 && t % kCheckpointPeriod == 0)
        for (int k = 0; k < S; ++k) block.store(a.checkpoints, (t / kCheckpointPeriod - 1) * S + k, a.N, state[k]);
      p.template enter<T>(a, block, t);
      const T* __restrict x = a.stage ? static_cast<const T*>(a.stage->input(t)) : block.read(a, a.x, t, x_buffer);
      T* __restrict spike = a.stage ? spike_buffer : block.write(a, a.spike, t, spike_buffer);
      advance<Neuron::kForwardAsks, 1>(
          state, answers,
          [&](int64_t i, const auto& s, R* v, R* out)
              SNNKERN_INLINE { out[0] = Neuron::template forward<R>(p[i], s, to_real(x[i]), v); },
          [&](int64_t i, const R* out) SNNKERN_INLINE { spike[i] = from_real<T>(out[0]); });
      a.stage ? a.stage->output(t, spike) : block.commit(a, a.spike, t, spike_buffer);
      if (a.store_seq)
        for (int k = 0; k < S; ++k) block.copy_out(a, a.state[k], t, state[k]);
    }
    if (!a.store_seq)
      for (int k = 0; k < S; ++k) block.store(a.state[k], 0, a.N, state[k]);
  }
}

// One step of BPTT of a block.
template <class Neuron, class T, class R, int S, int K, int L, int Q>
SNNKERN_FN void step_back(const Parameters<Neuron, R>& p, const R (&__restrict tape)[K][kCpuBlock],
                          const T* __restrict grad_spike, R (&__restrict grad)[S][kCpuBlock],
                          R (&__restrict grad_param)[L][kCpuBlock], T* __restrict grad_x, Answers<R, Q>& answers) {
  constexpr int kAsks = Neuron::kBackwardAsks;
  const auto back = [&](int64_t i, const auto& surrogate, R gs, R* g, R* gp) SNNKERN_INLINE {
    R note[K];
    for (int k = 0; k < Neuron::kTape; ++k) note[k] = tape[k][i];
    return Neuron::template backward<R>(p[i], surrogate, note, gs, g, gp);
  };
  answers.template ask<kAsks>([&](int64_t i, const auto& asked) SNNKERN_INLINE {
    R g[S] = {}, gp[L] = {};
    back(i, asked, R(0), g, gp);
  });
  for (int64_t i = 0; i < kCpuBlock; ++i) {
    R g[S], gp[L];
    for (int k = 0; k < S; ++k) g[k] = grad[k][i];
    for (int k = 0; k < Neuron::kGradients; ++k) gp[k] = grad_param[k][i];
    grad_x[i] = from_real<T>(back(i, answers.template given<kAsks>(i), to_real(grad_spike[i]), g, gp));
    for (int k = 0; k < S; ++k) grad[k][i] = g[k];
    for (int k = 0; k < Neuron::kGradients; ++k) grad_param[k][i] = gp[k];
  }
}

template <class Neuron, class T>
SNNKERN_FN void backward(const KernelArgs& a, const CpuSurrogate* surrogate, int64_t begin, int64_t end) {
  using R = real_t<T>;
  constexpr int S = Neuron::kStates, C = kCheckpointPeriod;
  constexpr int K = Neuron::kTape > 0 ? Neuron::kTape : 1, L = Neuron::kGradients > 0 ? Neuron::kGradients : 1;
  Parameters<Neuron, R> p(a);
  Answers<R, kQuestions<Neuron>> answers(a, surrogate);
  alignas(64) R tape[C][K][kCpuBlock], state[S][kCpuBlock], grad[S][kCpuBlock], grad_param[L][kCpuBlock];
  alignas(64) T x_buffer[kCpuBlock] = {}, grad_buffer[kCpuBlock] = {}, out_buffer[kCpuBlock];
  alignas(64) const T zeros[kCpuBlock] = {};
  for (int64_t first = begin; first < end; first += kCpuBlock) {
    const Block block(a, first, end);
    if (a.stage) a.stage->enter(block);
    p.load(a, block);
    for (int k = 0; k < S; ++k) {
      fill(grad[k], R(0));
      if (a.grad_state[k] && !a.store_seq) block.load(grad[k], a.grad_state[k], 0, a.N);
    }
    for (int k = 0; k < Neuron::kGradients; ++k) fill(grad_param[k], R(0));
    // A parameter that changes with time has a gradient in each step.
    const auto leave = [&](int64_t t) SNNKERN_INLINE {
      for (int k = 0; k < Neuron::kGradients; ++k) {
        if (!(kInTime<Neuron> >> k & 1)) continue;
        if (a.grad_param[k] && kLikeX<Neuron> >> k & 1) {
          T* values = static_cast<T*>(a.grad_param[k]);
          block.pieces(a, t, [&](int64_t to, int64_t from, int64_t n) SNNKERN_INLINE {
            for (int64_t i = 0; i < n; ++i) values[to + i] = from_real<T>(grad_param[k][from + i]);
          });
        } else if (a.grad_param[k]) {
          block.copy_out(a, a.grad_param[k], t, grad_param[k]);
        }
        fill(grad_param[k], R(0));
      }
    };

    for (int64_t chunk = checkpoint_count(a.T); chunk >= 0; --chunk) {
      const int64_t start = chunk * C, steps = a.T - start < C ? a.T - start : C;
      p.template enter<T>(a, block, 0);  // where a state may start
      load_initial(state, a, p, block);
      if (chunk > 0)
        for (int k = 0; k < S; ++k) block.load(state[k], a.checkpoints, (chunk - 1) * S + k, a.N);
      for (int64_t j = 0; j < steps; ++j) {
        p.template enter<T>(a, block, start + j);
        const T* __restrict x =
            a.stage ? static_cast<const T*>(a.stage->input(start + j)) : block.read(a, a.x, start + j, x_buffer);
        R(&__restrict notes)[K][kCpuBlock] = tape[j];
        advance<Neuron::kRecordAsks, K>(
            state, answers,
            [&](int64_t i, const auto& s, R* v, R* out)
                SNNKERN_INLINE { Neuron::template record<R>(p[i], s, to_real(x[i]), v, out); },
            [&](int64_t i, const R* out) SNNKERN_INLINE {
              for (int k = 0; k < Neuron::kTape; ++k) notes[k][i] = out[k];
            });
      }
      for (int64_t j = steps - 1; j >= 0; --j) {
        const int64_t t = start + j;
        if (a.store_seq) {
          for (int k = 0; k < S; ++k) {
            if (!a.grad_state[k]) continue;
            const R* values = static_cast<const R*>(a.grad_state[k]);
            block.pieces(a, t, [&](int64_t from, int64_t to, int64_t n) {
              for (int64_t i = 0; i < n; ++i) grad[k][to + i] += values[from + i];
            });
          }
        }
        p.template enter<T>(a, block, t);
        const T* grad_spike = a.stage        ? static_cast<const T*>(a.stage->grad_output(t))
                              : a.grad_spike ? block.read(a, a.grad_spike, t, grad_buffer)
                                             : zeros;
        T* const grad_x = a.stage ? out_buffer : block.write(a, a.grad_x, t, out_buffer);
        step_back(p, tape[j], grad_spike, grad, grad_param, grad_x, answers);
        a.stage ? a.stage->grad_input(t, grad_x) : block.commit(a, a.grad_x, t, out_buffer);
        if (t > 0) leave(t);
      }
    }
    for (int k = 0; k < S; ++k) {
      if (a.grad_init[k]) block.store(a.grad_init[k], 0, a.N, grad[k]);
      if constexpr (Neuron::kTensors) {
        if (a.state_init[k] || Neuron::start(k) < 0) continue;
        for (int64_t i = 0; i < kCpuBlock; ++i) grad_param[Neuron::start(k)][i] += grad[k][i];
      }
    }
    leave(0);
    for (int k = 0; k < Neuron::kGradients; ++k)
      if (a.grad_param[k] && !(kInTime<Neuron> >> k & 1)) block.store(a.grad_param[k], 0, a.N, grad_param[k]);
    if (a.stage) a.stage->leave();
  }
}

// A surrogate's function for a block.
template <class R, class Function>
SNNKERN_FN void for_block(const void* u, void* out, const Function& function) {
  const R* __restrict from = static_cast<const R*>(u);
  R* __restrict to = static_cast<R*>(out);
  for (int64_t i = 0; i < kCpuBlock; ++i) to[i] = function(from[i]);
}

}  // namespace snnkern::cpu
