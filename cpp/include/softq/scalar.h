// The types in which weights and gradients are stored, by name.
#pragma once

#include <cstddef>

#include "softq/half.h"

namespace softq {

enum class Scalar { float32, float64, float16, bfloat16 };

// Calls body(storage, computed) with values of the types of the scalar.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // bodies are of the host or of the device, not both
#endif
template <class Body>
SOFTQ_HD auto with_storage(Scalar scalar, const Body& body) {
  switch (scalar) {
    case Scalar::float64:
      return body(double{}, double{});
    case Scalar::float16:
      return body(Half{}, float{});
    case Scalar::bfloat16:
      return body(BFloat16{}, float{});
    case Scalar::float32:
      break;
  }
  return body(float{}, float{});
}

inline std::size_t size_of(Scalar scalar) {
  return with_storage(scalar, []<class Storage, class T>(Storage, T) { return sizeof(Storage); });
}

}  // namespace softq
