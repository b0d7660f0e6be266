// Neurons whose spikes come back to them, on the CPU: the product with the weights, and the stage in the time loops of
// multistep_cpu.h. A block is whole rows of neurons, so that it needs no other.
#pragma once
#include "stage_cpu.h"

// Sums of a gradient may be rounded once for a product and a sum, where a processor has such an instruction.
#if defined(__GNUC__) && !defined(__clang__)
#define SNNKERN_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define SNNKERN_CONTRACT
#endif

namespace snnkern::cpu {

// As many numbers as fill the widest register; compilers make several of it for narrower ones. Of an array they would
// not keep sums in registers.
template <class R>
struct Wide {
  static constexpr int64_t kCount = 64 / sizeof(R);
  typedef R Vector __attribute__((vector_size(64), aligned(sizeof(R)), may_alias));
};

// Adds sums, or a part of them at the end of a row, to a row or puts them there.
template <bool add, class R, int64_t n>
SNNKERN_FN void put(R* to, const typename Wide<R>::Vector (&sums)[n], int64_t room) {
  using Vector = typename Wide<R>::Vector;
  constexpr int64_t kWidth = Wide<R>::kCount;
  if (room >= n * kWidth) {
    Vector* const out = reinterpret_cast<Vector*>(to);
    for (int64_t v = 0; v < n; ++v) out[v] = add ? out[v] + sums[v] : sums[v];
  } else {
    for (int64_t l = 0; l < room; ++l) to[l] = (add ? to[l] : R(0)) + sums[l / kWidth][l % kWidth];
  }
}

// to[k] = sum over j of from[j] weight[j, k], for each row, in the order of RecurrentArgs. Spikes are mostly 0, and
// those are left out.
template <class R>
SNNKERN_FN void recurrent_product(const RecurrentArgs& r, const void* from, void* to, int64_t rows) {
  using Vector = typename Wide<R>::Vector;
  constexpr int64_t kGroup = RecurrentArgs::kGroup, kLanes = RecurrentArgs::kLanes, kVectors = kLanes / Wide<R>::kCount;
  static_assert(kGroup == 32, "a bit for each spike of a group");
  const R* __restrict w = static_cast<const R*>(r.forward);
  const int64_t H = r.size;
  for (int64_t row = 0; row < rows; ++row) {
    const R* __restrict s = static_cast<const R*>(from) + row * H;
    R* __restrict z = static_cast<R*>(to) + row * H;
    if (r.stride == 0) {
      for (int64_t k = 0; k < H; ++k) z[k] = s[k] * w[k];
      continue;
    }
    for (int64_t k = 0; k < H; ++k) z[k] = 0;
    for (int64_t first = 0; first < H; first += kGroup) {
      uint32_t fired = 0;
      if (first + kGroup <= H) {
        for (int j = 0; j < kGroup; ++j) fired |= uint32_t(s[first + j] != R(0)) << j;
        if (!r.finite) fired = ~uint32_t(0);
      } else {
        for (int j = 0; first + j < H; ++j) fired |= uint32_t(s[first + j] != R(0) || !r.finite) << j;
      }
      for (int64_t k = 0; k < H && fired; k += kLanes) {
        Vector sum[kVectors] = {};
        for (uint32_t left = fired; left; left &= left - 1) {
          const int64_t j = first + __builtin_ctz(left);
          const R value = s[j];
          const Vector* lanes = reinterpret_cast<const Vector*>(w + j * r.stride + k);
#pragma GCC unroll 8
          for (int64_t v = 0; v < kVectors; ++v) sum[v] += value * lanes[v];
        }
        put<true>(z + k, sum, H - k);
      }
    }
  }
}

// The same for M rows of gradients, in any order, of the neurons from k on; see below.
template <int M, class R>
SNNKERN_FN void back_tile(const RecurrentArgs& r, const R* __restrict from, R* __restrict to, int64_t k) {
  using Vector = typename Wide<R>::Vector;
  constexpr int kVectors = 2;
  const R* __restrict w = static_cast<const R*>(r.backward) + k;
  Vector sum[M][kVectors] = {};
  for (int64_t j = 0; j < r.size; ++j) {
    const Vector* lanes = reinterpret_cast<const Vector*>(w + j * r.stride);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[m][v] += from[m * r.size + j] * lanes[v];
    }
  }
  for (int m = 0; m < M; ++m) put<false>(to + m * r.size + k, sum[m], r.size - k);
}

// The gradient: to[k] = sum over j of from[j] weight[j, k], for each row. What is read of the weights does for several.
template <class R>
SNNKERN_FN void recurrent_product_back(const RecurrentArgs& r, const void* from, void* to, int64_t rows) {
  const R* g = static_cast<const R*>(from);
  R* out = static_cast<R*>(to);
  const int64_t H = r.size;
  if (r.stride == 0) {
    const R* __restrict w = static_cast<const R*>(r.backward);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0; k < H; ++k) out[row * H + k] = g[row * H + k] * w[k];
    return;
  }
  for (int64_t k = 0; k < H; k += 2 * Wide<R>::kCount) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) back_tile<4>(r, g + row * H, out + row * H, k);
    for (; row + 2 <= rows; row += 2) back_tile<2>(r, g + row * H, out + row * H, k);
    for (; row < rows; ++row) back_tile<1>(r, g + row * H, out + row * H, k);
  }
}

// T: of the sequences.
template <class T>
class RecurrentStage final : public RowStage<T> {
  using Base = RowStage<T>;
  using Base::a_, Base::block_, Base::load, Base::store, Base::load_grad_spike;
  using typename Base::R;
  using Product = decltype(CpuRecurrence::product);

 public:
  RecurrentStage(const KernelArgs& a, const RecurrentArgs& r, Product product, Product back)
      : Base(a), r_(r), product_(product), back_(back) {}

  void enter(const Block& block) override {
    block_ = &block;
    for (int64_t i = 0; r_.bias && i < block.count; ++i) bias_[i] = static_cast<const R*>(r_.bias)[i % r_.size];
  }

  const void* input(int64_t t) override {
    if (t > 0)
      load(a_.spike, t - 1, spike_);
    else if (r_.spike_init)
      block_->load(spike_, r_.spike_init, 0, a_.N);
    else
      fill(spike_, R(0));
    product_(r_, spike_, z_, block_->count / r_.size);
    load(a_.x, t, row_);
    for (int64_t i = 0; i < kCpuBlock; ++i) row_[i] += r_.bias ? z_[i] + bias_[i] : z_[i];
    return row_;
  }

  void output(int64_t t, const void* spike) override { store(a_.spike, t, static_cast<const R*>(spike)); }

  const void* grad_output(int64_t t) override {
    load_grad_spike(t, row_);
    if (t + 1 == a_.T || !r_.backward) return row_;
    back_(r_, grad_, z_, block_->count / r_.size);
    for (int64_t i = 0; i < kCpuBlock; ++i) row_[i] += z_[i];
    return row_;
  }

  void grad_input(int64_t t, const void* gradient) override {
    std::memcpy(grad_, gradient, sizeof(grad_));
    block_->copy_out(a_, r_.grad_input, t, grad_);
  }

  void leave() override {}

 private:
  const RecurrentArgs& r_;
  const Product product_, back_;
  alignas(64) R spike_[kCpuBlock] = {}, z_[kCpuBlock] = {}, row_[kCpuBlock] = {};
  alignas(64) R bias_[kCpuBlock] = {}, grad_[kCpuBlock] = {};
};

}  // namespace snnkern::cpu
