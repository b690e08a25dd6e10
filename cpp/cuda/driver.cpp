// What the runtime cannot be asked without beginning to use a device: the driver, where it is
// loaded.
#include <dlfcn.h>

#include "device.h"

namespace softq::cuda {

bool has_context(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  static const auto get_state = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    void* found = driver == nullptr ? nullptr : dlsym(driver, "cuDevicePrimaryCtxGetState");
    return reinterpret_cast<GetState>(found);
  }();
  unsigned flags = 0;
  int active = 0;
  return get_state != nullptr && get_state(device, &flags, &active) == 0 && active != 0;
}

}  // namespace softq::cuda
