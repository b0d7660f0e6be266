// What the stages between sequences and steps on the CPU have in common.
#pragma once
#include "multistep_cpu.h"

namespace snnkern::cpu {

// T: of the sequences.
template <class T>
class RowStage : public Stage {
 protected:
  using R = real_t<T>;

  explicit RowStage(const KernelArgs& a) : a_(a) {}

  SNNKERN_FN void load(const void* sequence, int64_t t, R* to) {
    const T* __restrict from = block_->read(a_, sequence, t, in_);
    for (int64_t i = 0; i < kCpuBlock; ++i) to[i] = to_real(from[i]);
  }

  SNNKERN_FN void store(void* sequence, int64_t t, const R* values) {
    T* __restrict to = block_->write(a_, sequence, t, out_);
    for (int64_t i = 0; i < kCpuBlock; ++i) to[i] = from_real<T>(values[i]);
    block_->commit(a_, sequence, t, out_);
  }

  SNNKERN_FN void load_grad_spike(int64_t t, R* to) {
    if (a_.grad_spike)
      load(a_.grad_spike, t, to);
    else
      fill(to, R(0));
  }

  const KernelArgs& a_;
  const Block* block_ = nullptr;

 private:
  alignas(64) T in_[kCpuBlock] = {}, out_[kCpuBlock] = {};
};

}  // namespace snnkern::cpu
