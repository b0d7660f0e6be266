#include "../csrc/kernels/norm.cuh"
#include "../csrc/generated/neurons/lif.h"
#include "../csrc/generated/surrogates/any.h"
namespace snnkern::cuda {
template <class T>
const char* one(const KernelArgs& a, int what, int number, void* s) {
  switch (what) {
    case 0: return statistics<T>(a, s);
    case 1: return norm_forward<LIFHard, NoSurrogate, T>(a, s);
    case 2: return number ? norm_sums<LIFHard, AnySurrogate, T>(a, s) : norm_sums<LIFHard, ATan, T>(a, s);
    case 3: return number ? norm_backward<LIFHard, AnySurrogate, T>(a, s) : norm_backward<LIFHard, ATan, T>(a, s);
    case 4: return norm_whole<LIFHard, ATan, T>(a, s);
    case 5: return norm_backward<Identity, NoSurrogate, T>(a, s);
    case 6: return backward<LIFHard, ATan, T>(a, s);
    case 7: return forward<LIFHard, NoSurrogate, T>(a, s);
  }
  return "?";
}
}
// p: x spike grad_spike grad_x statistics sums partial weight bias v residual checkpoints
extern "C" const char* norm_run(int what, int half, int number, void** p, int64_t T, int64_t N, int64_t inner, int64_t C, int64_t S, int id, void* s) {
  using namespace snnkern;
  KernelArgs a = {};
  a.T = T, a.N = N, a.inner = inner;
  a.x = p[0], a.spike = p[1], a.grad_spike = p[2], a.grad_x = p[3];
  if (what == 2) a.grad_x = nullptr;
  a.state[0] = p[9];
  a.checkpoints = T > 16 ? p[11] : nullptr;
  a.params[0] = 0.5, a.params[1] = 1.0, a.params[2] = 0.0;
  a.flags[0] = -1;
  a.surrogate[0] = 2.0, a.surrogate_id = id;
  a.norm.size = C, a.norm.inner = S, a.norm.eps = 1e-5, a.norm.weight = p[7], a.norm.bias = p[8];
  a.norm.statistics = p[4], a.norm.mean = p[4], a.norm.var = static_cast<float*>(p[4]) + C;
  a.norm.sums = p[5], a.norm.count = double(T) * N / C, a.norm.partial = p[6], a.norm.residual = p[10];
  return half ? cuda::one<bf16>(a, what, number, s) : cuda::one<float>(a, what, number, s);
}
