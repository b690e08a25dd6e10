// Shared libraries that are loaded when they are first needed.
#pragma once

#include <string>
#include <vector>

namespace softq::cuda {

struct Library {
  void* handle;
  std::string name;
};

// One of the names: the first that is loaded already, else the first that can be. Throws
// std::runtime_error that says of each why not.
Library open_library(const std::vector<std::string>& names);

}  // namespace softq::cuda
