// A BatchNorm in front of a neuron, on the CPU: statistics, and the stage in the time loops of multistep_cpu.h. Sums
// are taken in double, over shares of the neurons that the shape alone decides, so that they are the same for any
// number of threads.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "stage_cpu.h"

namespace snnkern::cpu {

template <class T>
class NormStage;

// What the stage does with a row of a block, and at a block's begin and end: functions of which there are clones.
template <class T>
struct NormLoops {
  void (*enter)(NormStage<T>&);
  void (*input)(NormStage<T>&, int64_t t);
  void (*output)(NormStage<T>&, int64_t t, const void* spike);
  void (*grad_output)(NormStage<T>&, int64_t t);
  void (*grad_input)(NormStage<T>&, int64_t t, const void* gradient);
  void (*leave)(NormStage<T>&);
};

// T: of the sequences. `sums`, [2, size], is what is summed over a share of the neurons.
template <class T>
class NormStage final : public RowStage<T> {
  using Base = RowStage<T>;
  using Base::a_, Base::block_, Base::load, Base::store, Base::load_grad_spike;
  using typename Base::R;

 public:
  NormStage(const KernelArgs& a, double* sums, const NormLoops<T>& loops)
      : Base(a), sums_(sums), loops_(loops), tables_(kTables * a.norm.size) {
    const NormArgs& n = a.norm;
    if (!n.mean) return;  // for the moments
    const double share = n.sums ? 1 / n.count : 0;
    for (int64_t c = 0; c < n.size; ++c) {
      const R inverse = R(1) / std::sqrt(entry(n.var, c) + R(n.eps));
      table(kMean)[c] = entry(n.mean, c);
      table(kScale)[c] = (n.weight ? entry(n.weight, c) : R(1)) * inverse;
      table(kBias)[c] = entry(n.bias, c);
      table(kInverse)[c] = inverse;
      table(kConstant)[c] = n.sums ? R(entry(n.sums, c) * share) : R(0);
      table(kSlope)[c] = n.sums ? R(entry(n.sums, n.size + c) * share) * inverse : R(0);
    }
  }

  void enter(const Block& block) override {
    block_ = &block;
    loops_.enter(*this);
  }
  const void* input(int64_t t) override {
    loops_.input(*this, t);
    return y_;
  }
  void output(int64_t t, const void* spike) override { loops_.output(*this, t, spike); }
  const void* grad_output(int64_t t) override {
    loops_.grad_output(*this, t);
    return row_;
  }
  // Stores the gradient in y in the place of grad_x, for norm_gradient.
  void grad_input(int64_t t, const void* gradient) override { loops_.grad_input(*this, t, gradient); }
  void leave() override { loops_.leave(*this); }

  SNNKERN_FN void do_enter() {
    spread(table(kMean), mean_);
    spread(table(kScale), scale_);
    spread(table(kBias), bias_);
    spread(table(kInverse), inverse_);
    fill(gy_, 0.0);
    fill(product_, 0.0);
  }

  SNNKERN_FN void do_input(int64_t t) {
    load(a_.x, t, y_);
    for (int64_t i = 0; i < kCpuBlock; ++i) y_[i] = (y_[i] - mean_[i]) * scale_[i] + bias_[i];
    if (a_.norm.residual) {
      load(a_.norm.residual, t, row_);
      for (int64_t i = 0; i < kCpuBlock; ++i) y_[i] += row_[i];
    }
    if (a_.norm.y) store(a_.norm.y, t, y_);
  }

  SNNKERN_FN void do_output(int64_t t, const void* spike) { store(a_.spike, t, static_cast<const R*>(spike)); }

  SNNKERN_FN void do_grad_output(int64_t t) { load_grad_spike(t, row_); }

  SNNKERN_FN void do_grad_input(int64_t t, const void* gradient) {
    std::memcpy(row_, gradient, sizeof(row_));
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

  SNNKERN_FN void do_leave() {
    if (!sums_) return;
    add_up(gy_, sums_);
    add_up(product_, sums_ + a_.norm.size);
  }

  // The sums of x - near and its square, where near, [size], has a value of each channel.
  SNNKERN_FN void add_moments(const Block& block, const double* near) {
    block_ = &block;
    spread(near, first_);
    fill(gy_, 0.0);
    fill(product_, 0.0);
    for (int64_t t = 0; t < a_.T; ++t) {
      load(a_.x, t, y_);
      for (int64_t i = 0; i < kCpuBlock; ++i) {
        const double away = double(y_[i]) - first_[i];
        gy_[i] += away;
        product_[i] += away * away;
      }
    }
    do_leave();
  }

  // The gradient in x from that in y, which is in the place of grad_spike.
  SNNKERN_FN void gradient(const Block& block) {
    block_ = &block;
    spread(table(kMean), mean_);
    spread(table(kScale), scale_);
    spread(table(kConstant), constant_);
    spread(table(kSlope), slope_);
    for (int64_t t = 0; t < a_.T; ++t) {
      load(a_.grad_spike, t, row_);
      load(a_.x, t, y_);
      for (int64_t i = 0; i < kCpuBlock; ++i)
        row_[i] = scale_[i] * (row_[i] - constant_[i] - (y_[i] - mean_[i]) * slope_[i]);
      store(a_.grad_x, t, row_);
    }
  }

 private:
  enum Table { kMean, kScale, kBias, kInverse, kConstant, kSlope, kTables };

  R* table(Table which) { return tables_.data() + which * a_.norm.size; }
  static R entry(const void* table, int64_t c) { return table ? static_cast<const R*>(table)[c] : R(0); }

  // one(place, channel, count) for places of one channel, many(...) for places of neighbouring channels from that on.
  template <class One, class Many>
  SNNKERN_FN void each_run(const One& one, const Many& many) const {
    const NormArgs& n = a_.norm;
    const bool is_last = n.inner == 1;
    int64_t c = block_->first / n.inner % n.size, left = is_last ? n.size - c : n.inner - block_->first % n.inner;
    for (int64_t i = 0; i < block_->count;) {
      const int64_t count = left < block_->count - i ? left : block_->count - i;
      is_last ? many(i, c, count) : one(i, c, count);
      i += count;
      left = is_last ? n.size : n.inner;
      c = is_last || c + 1 == n.size ? 0 : c + 1;
    }
  }

  template <class V>
  SNNKERN_FN void spread(const V* table, V* values) const {
    each_run(
        [&](int64_t place, int64_t channel, int64_t count) SNNKERN_INLINE {
          for (int64_t i = 0; i < count; ++i) values[place + i] = table[channel];
        },
        [&](int64_t place, int64_t channel, int64_t count)
            SNNKERN_INLINE { std::memcpy(values + place, table + channel, count * sizeof(V)); });
  }

  SNNKERN_FN void add_up(const double* values, double* sums) const {
    each_run(
        [&](int64_t place, int64_t channel, int64_t count) SNNKERN_INLINE {
          constexpr int kLanes = 16;  // an order that can be vectorised
          double lane[kLanes] = {}, sum = 0;
          int64_t i = 0;
          for (; i + kLanes <= count; i += kLanes)
            for (int k = 0; k < kLanes; ++k) lane[k] += values[place + i + k];
          for (; i < count; ++i) sum += values[place + i];
          for (int k = 0; k < kLanes; ++k) sum += lane[k];
          sums[channel] += sum;
        },
        [&](int64_t place, int64_t channel, int64_t count) SNNKERN_INLINE {
          for (int64_t i = 0; i < count; ++i) sums[channel + i] += values[place + i];
        });
  }

  double* sums_;
  const NormLoops<T>& loops_;
  std::vector<R> tables_;
  alignas(64) R mean_[kCpuBlock] = {}, scale_[kCpuBlock] = {}, bias_[kCpuBlock] = {}, inverse_[kCpuBlock] = {};
  alignas(64) R constant_[kCpuBlock] = {}, slope_[kCpuBlock] = {}, y_[kCpuBlock] = {}, row_[kCpuBlock] = {};
  alignas(64) double first_[kCpuBlock] = {}, gy_[kCpuBlock] = {}, product_[kCpuBlock] = {};
};

}  // namespace snnkern::cpu
