#include "libraries.h"

#include <dlfcn.h>

#include <stdexcept>

namespace softq::cuda {

Library open_library(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle != nullptr) return {handle, name};
  }
  std::string reasons;
  for (const std::string& name : names) {
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return {handle, name};
    reasons += (reasons.empty() ? "" : "; ") + std::string(dlerror());
  }
  throw std::runtime_error(reasons);
}

}  // namespace softq::cuda
