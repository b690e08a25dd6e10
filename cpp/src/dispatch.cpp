#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "softq/kernels.h"

namespace softq {

namespace baseline {
extern const Kernels kernels;
}
#if defined(SOFTQ_HAS_X86_LEVELS)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#if defined(SOFTQ_HAS_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    found.push_back(&avx512::kernels);
  }
  if (__builtin_cpu_supports("avx2")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

const Kernels* find(const std::string& name) {
  std::string known;
  for (const Kernels* set : usable()) {
    if (name == set->name) return set;
    known += (known.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("there is no SIMD level '" + name + "' here: use one of " + known);
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* set = chosen.load();
  if (set == nullptr) {
    const char* name = std::getenv("PYSOFTQ_SIMD");
    set = name == nullptr || *name == '\0' ? usable().front() : find(name);
    chosen = set;
  }
  return *set;
}

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Kernels* set : usable()) names.emplace_back(set->name);
  return names;
}

void set_simd_level(const std::string& name) { chosen = find(name); }

}  // namespace softq
