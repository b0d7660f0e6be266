// A BatchNorm in front of a neuron, on the CPU: statistics, and the stage in the time loops of multistep_cpu.h. Sums
// are taken in double, over shares of the neurons that the shape alone decides, so that they are the same for any
// number of threads.
#pragma once
#include <algorithm>
#include <memory>

#include "multistep_cpu.h"

namespace snnkern::cpu {

// T: of the sequences. `sums`, [2, size], is what is summed over a share of the neurons.
template <class T>
class NormStage final : public Stage {
  using R = real_t<T>;

 public:
  NormStage(const KernelArgs& a, double* sums) : a_(a), sums_(sums) {}

  void enter(const Block& block) override {
    block_ = &block;
    const NormArgs& n = a_.norm;
    const double share = n.sums ? 1 / n.count : 0;
    each_channel([&](int64_t i, int64_t c) {
      const R inverse = R(1) / std::sqrt(entry(n.var, c) + R(n.eps));
      mean_[i] = entry(n.mean, c);
      scale_[i] = (n.weight ? entry(n.weight, c) : R(1)) * inverse;
      bias_[i] = entry(n.bias, c);
      inverse_[i] = inverse;
      constant_[i] = n.sums ? R(entry(n.sums, c) * share) : R(0);
      slope_[i] = n.sums ? R(entry(n.sums, n.size + c) * share) * inverse : R(0);
      first_[i] = gy_[i] = product_[i] = 0;
    });
  }

  const void* input(int64_t t) override {
    load(a_.x, t, y_);
    for (int64_t i = 0; i < kCpuBlock; ++i) y_[i] = (y_[i] - mean_[i]) * scale_[i] + bias_[i];
    if (a_.norm.residual) {
      load(a_.norm.residual, t, row_);
      for (int64_t i = 0; i < kCpuBlock; ++i) y_[i] += row_[i];
    }
    if (a_.norm.y) store(a_.norm.y, t, y_);
    return y_;
  }

  void output(int64_t t, const void* spike) override { store(a_.spike, t, static_cast<const R*>(spike)); }

  const void* grad_output(int64_t t) override {
    if (a_.grad_spike)
      load(a_.grad_spike, t, row_);
    else
      fill(row_, R(0));
    return row_;
  }

  // Stores the gradient in y in the place of grad_x, for norm_gradient.
  void grad_input(int64_t t, const void* gradient) override {
    const R* __restrict from = static_cast<const R*>(gradient);
    std::memcpy(row_, from, sizeof(row_));
    if (a_.norm.grad_y) {
      load(a_.norm.grad_y, t, y_);
      for (int64_t i = 0; i < kCpuBlock; ++i) row_[i] += y_[i];
    }
    store(a_.grad_x, t, row_);
    load(a_.x, t, y_);
    for (int64_t i = 0; i < kCpuBlock; ++i) {
      const double gy = to_real(from_real<T>(row_[i]));  // as it is stored
      gy_[i] += gy;
      product_[i] += gy * double((y_[i] - mean_[i]) * inverse_[i]);
    }
  }

  void leave() override {
    if (!sums_) return;
    each_channel([&](int64_t i, int64_t c) {
      sums_[c] += gy_[i];
      sums_[a_.norm.size + c] += product_[i];
    });
  }

  // The sums of x - near and its square, where near, [size], has a value of each channel.
  void add_moments(const Block& block, const double* near) {
    block_ = &block;
    each_channel([&](int64_t i, int64_t c) {
      first_[i] = near[c];
      gy_[i] = product_[i] = 0;
    });
    for (int64_t t = 0; t < a_.T; ++t) {
      load(a_.x, t, y_);
      for (int64_t i = 0; i < kCpuBlock; ++i) {
        const double away = double(y_[i]) - first_[i];
        gy_[i] += away;
        product_[i] += away * away;
      }
    }
    leave();
  }

  // The gradient in x from that in y, which is in the place of grad_spike.
  void gradient(const Block& block) {
    enter(block);
    for (int64_t t = 0; t < a_.T; ++t) {
      load(a_.grad_spike, t, row_);
      load(a_.x, t, y_);
      for (int64_t i = 0; i < kCpuBlock; ++i)
        row_[i] = scale_[i] * (row_[i] - constant_[i] - (y_[i] - mean_[i]) * slope_[i]);
      store(a_.grad_x, t, row_);
    }
  }

 private:
  static R entry(const void* table, int64_t c) { return table ? static_cast<const R*>(table)[c] : R(0); }

  // use(place in the block, channel)
  template <class Use>
  SNNKERN_FN void each_channel(const Use& use) const {
    const NormArgs& n = a_.norm;
    int64_t c = block_->first / n.inner % n.size, left = n.inner - block_->first % n.inner;
    for (int64_t i = 0; i < block_->count; ++i) {
      use(i, c);
      if (--left > 0) continue;
      left = n.inner;
      if (++c == n.size) c = 0;
    }
  }

  SNNKERN_FN void load(const void* sequence, int64_t t, R* to) {
    const T* __restrict from = block_->read(a_, sequence, t, in_);
    for (int64_t i = 0; i < kCpuBlock; ++i) to[i] = to_real(from[i]);
  }

  SNNKERN_FN void store(void* sequence, int64_t t, const R* values) {
    T* __restrict to = block_->write(a_, sequence, t, out_);
    for (int64_t i = 0; i < kCpuBlock; ++i) to[i] = from_real<T>(values[i]);
    block_->commit(a_, sequence, t, out_);
  }

  const KernelArgs& a_;
  double* sums_;
  const Block* block_ = nullptr;
  alignas(64) R mean_[kCpuBlock] = {}, scale_[kCpuBlock] = {}, bias_[kCpuBlock] = {}, inverse_[kCpuBlock] = {};
  alignas(64) R constant_[kCpuBlock] = {}, slope_[kCpuBlock] = {}, y_[kCpuBlock] = {}, row_[kCpuBlock] = {};
  alignas(64) double first_[kCpuBlock] = {}, gy_[kCpuBlock] = {}, product_[kCpuBlock] = {};
  alignas(64) T in_[kCpuBlock] = {}, out_[kCpuBlock] = {};
};

}  // namespace snnkern::cpu
