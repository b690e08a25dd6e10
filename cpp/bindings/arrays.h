// The one place where Python arrays are checked and turned into pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "softq/density.h"

namespace softq::bindings {

namespace py = pybind11;

// Calls body(pointer, size) for a one-dimensional, contiguous float32 or float64 array.
template <class Body>
auto with_weights(const py::array& theta, const Body& body) {
  const auto view = [&]<class T>(T) {
    if (theta.ndim() != 1 || !(theta.flags() & py::array::c_style)) {
      throw py::type_error("weights must be a contiguous array of one dimension");
    }
    return body(static_cast<const T*>(theta.data()), static_cast<std::size_t>(theta.size()));
  };
  if (py::isinstance<py::array_t<float>>(theta)) return view(float{});
  if (py::isinstance<py::array_t<double>>(theta)) return view(double{});
  throw py::type_error("weights must be float32 or float64, not " +
                       py::str(theta.dtype()).cast<std::string>());
}

using Counts = py::array_t<Count, py::array::c_style>;

inline std::int64_t bins_of(const Counts& counts) {
  if (counts.ndim() != 1 || counts.size() < 1)
    throw py::value_error("counts must be an array of at least one bin");
  return counts.size();
}

}  // namespace softq::bindings
