// Where weights are: device memory comes from Python as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../device.h"
#include "softq/coupling.h"

namespace softq::cuda {

namespace py = pybind11;

using Address = std::uint64_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

inline cudaStream_t stream_at(Address address) {
  return reinterpret_cast<cudaStream_t>(static_cast<std::uintptr_t>(address));
}

Scalar scalar_named(const std::string& name);

inline Method method_of(bool fft) { return fft ? Method::fft : Method::scan; }

// Runs body with the device as the current one and without Python's lock.
template <class Body>
auto on(int device, const Body& body) {
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  return body();
}

}  // namespace softq::cuda
