#include "cufft.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace softq::cuda {
namespace {

// The major version that belongs to this CUDA toolkit: 12 to CUDA 13, 11 to CUDA 12.
const std::string library = "libcufft.so." + std::to_string(CUDART_VERSION / 1000 - 1);

template <class Function>
void find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr) throw std::runtime_error(library + " has no " + name);
}

Cufft load() {
  // Found where torch has loaded it, in the folders of the registry's nvidia-cufft package (the
  // RPATH of this extension) or the system's.
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw std::runtime_error("method 'fft' needs cuFFT: " + std::string(dlerror()) +
                             "; pip install nvidia-cufft, or use method 'scan'");
  }
  Cufft calls{};
  find(handle, "cufftPlanMany", calls.plan_many);
  find(handle, "cufftSetStream", calls.set_stream);
  find(handle, "cufftExecD2Z", calls.exec_d2z);
  find(handle, "cufftExecZ2D", calls.exec_z2d);
  find(handle, "cufftDestroy", calls.destroy);
  return calls;
}

}  // namespace

const Cufft& cufft() {
  static const Cufft calls = load();
  return calls;
}

}  // namespace softq::cuda
