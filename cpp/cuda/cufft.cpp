#include "cufft.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "libraries.h"

namespace softq::cuda {
namespace {

// Torch has loaded one, of CUDA 13 or of CUDA 12: the calls are the same in both. Else they are
// looked for in the folders of the registry's nvidia-cufft packages (the RPATH of this extension)
// and the system's.
Library find_library() {
  try {
    return open_library({"libcufft.so.12", "libcufft.so.11"});
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("method 'fft' requires cuFFT: " + std::string(error.what()) +
                             "; pip install nvidia-cufft, or use method 'scan'");
  }
}

template <class Function>
void find(const Library& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library.handle, name));
  if (function == nullptr) throw std::runtime_error(library.name + " has no " + name);
}

Cufft load() {
  const Library library = find_library();
  Cufft calls{};
  find(library, "cufftCreate", calls.create);
  find(library, "cufftSetAutoAllocation", calls.set_auto_allocation);
  find(library, "cufftMakePlanMany", calls.make_plan_many);
  find(library, "cufftSetWorkArea", calls.set_work_area);
  find(library, "cufftSetStream", calls.set_stream);
  find(library, "cufftExecD2Z", calls.exec_d2z);
  find(library, "cufftExecZ2D", calls.exec_z2d);
  find(library, "cufftDestroy", calls.destroy);
  return calls;
}

}  // namespace

const Cufft& cufft() {
  static const Cufft calls = load();
  return calls;
}

}  // namespace softq::cuda
