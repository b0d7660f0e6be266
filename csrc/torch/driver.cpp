#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace snnkern::driver {

namespace {

using Result = int;
using Context = struct CUctx_st*;
using Library = struct CUlib_st*;

// What cuda.h declares, as far as it is used here.
struct Api {
  Result (*cuGetErrorString)(Result, const char**);
  Result (*cuDeviceGet)(int*, int);
  Result (*cuDeviceGetAttribute)(int*, int, int);
  Result (*cuDevicePrimaryCtxRetain)(Context*, int);
  Result (*cuCtxGetDevice)(int*);
  Result (*cuCtxPushCurrent)(Context);
  Result (*cuCtxPopCurrent)(Context*);
  Result (*cuLibraryLoadData)(Library*, const void*, void*, void*, unsigned, void*, void*, unsigned);
  Result (*cuLibraryGetKernel)(Function*, Library, const char*);
  Result (*cuLaunchKernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                           void**, void**);
  const char* error = nullptr;

  Api() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    const auto find = [&](auto& function, const char* name) {
      void* found = library ? dlsym(library, name) : nullptr;
      if (!found) error = "the NVIDIA driver, libcuda.so.1, was not found or is older than CUDA 12";
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
    };
    find(cuGetErrorString, "cuGetErrorString");
    find(cuDeviceGet, "cuDeviceGet");
    find(cuDeviceGetAttribute, "cuDeviceGetAttribute");
    find(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    find(cuCtxGetDevice, "cuCtxGetDevice");
    find(cuCtxPushCurrent, "cuCtxPushCurrent_v2");
    find(cuCtxPopCurrent, "cuCtxPopCurrent_v2");
    find(cuLibraryLoadData, "cuLibraryLoadData");
    find(cuLibraryGetKernel, "cuLibraryGetKernel");
    find(cuLaunchKernel, "cuLaunchKernel");
  }
  const char* text(Result result) const {
    const char* out = nullptr;
    if (result != 0 && cuGetErrorString(result, &out) != 0) out = "unknown error of the CUDA driver";
    return out;
  }
};

const Api& api() {
  static const auto* loaded = new Api;
  return *loaded;
}

// The context that PyTorch uses on a device. A thread of a backward pass may have none yet.
class Current {
 public:
  explicit Current(int device) {
    int current = -1;
    if (api().cuCtxGetDevice(&current) == 0 && current == device) return;
    static std::mutex mutex;
    static auto* contexts = new std::map<int, Context>;
    const std::lock_guard<std::mutex> lock(mutex);
    Context& context = (*contexts)[device];
    if (!context) result_ = api().cuDevicePrimaryCtxRetain(&context, device);
    if (result_ == 0) result_ = api().cuCtxPushCurrent(context);
    is_pushed_ = result_ == 0;
  }
  ~Current() {
    Context context;
    if (is_pushed_) api().cuCtxPopCurrent(&context);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  Result result() const { return result_; }

 private:
  Result result_ = 0;
  bool is_pushed_ = false;
};

}  // namespace

const char* describe(int device, Device& out) {
  if (api().error) return api().error;
  static std::mutex mutex;
  static auto* known = new std::map<int, Device>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known->find(device);
  if (found != known->end()) {
    out = found->second;
    return nullptr;
  }
  int handle = 0, major = 0, minor = 0;
  Result result = api().cuDeviceGet(&handle, device);
  constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76;  // of enum CUdevice_attribute
  if (result == 0) result = api().cuDeviceGetAttribute(&out.multiprocessors, kMultiprocessors, handle);
  if (result == 0) result = api().cuDeviceGetAttribute(&major, kMajor, handle);
  if (result == 0) result = api().cuDeviceGetAttribute(&minor, kMinor, handle);
  out.architecture = 10 * major + minor;
  if (result == 0) known->emplace(device, out);
  return api().text(result);
}

const char* load(const void* cubin, const char* name, Function& out) {
  if (api().error) return api().error;
  Library library = nullptr;  // is never unloaded: a CUDA graph may hold its kernel
  Result result = api().cuLibraryLoadData(&library, cubin, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (result == 0) result = api().cuLibraryGetKernel(&out, library, name);
  return api().text(result);
}

const char* launch(Function kernel, const KernelArgs& args, cuda::Shape shape, int device, void* stream) {
  const int64_t blocks = cuda::blocks(args, shape);
  if (blocks > INT32_MAX) return "too many neurons for one launch";
  const Current current(device);
  if (current.result() != 0) return api().text(current.result());
  void* parameters[] = {const_cast<KernelArgs*>(&args)};
  return api().text(api().cuLaunchKernel(kernel, static_cast<unsigned>(blocks), 1, 1, shape.threads(), 1, 1, 0, stream,
                                         parameters, nullptr));
}

}  // namespace snnkern::driver
