// The one place where Python arrays are checked and turned into pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "softq/density.h"
#include "softq/pull.h"

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
  throw py::type_error("weights must be float32 or float64, got " +
                       py::str(theta.dtype()).cast<std::string>());
}

inline Potential potential_of(bool log) { return log ? Potential::log : Potential::linear; }

using Counts = py::array_t<std::int64_t, py::array::c_style>;

// Counts as the core takes them, checked.
inline std::vector<Count> narrow(const Counts& counts) {
  if (counts.ndim() != 1 || counts.size() < 1)
    throw py::value_error("counts must be an array of at least one bin");
  const std::int64_t* in = counts.data();
  std::vector<Count> out(static_cast<std::size_t>(counts.size()));
  std::uint64_t bits = 0;
  std::uint64_t sum = 0;
  for (std::size_t k = 0; k < out.size(); ++k) {
    bits |= static_cast<std::uint64_t>(in[k]);
    sum += static_cast<std::uint64_t>(in[k]);
    out[k] = static_cast<Count>(in[k]);
  }
  // A negative count has its highest bit set.
  if ((bits | sum) >> 31 != 0)
    throw py::value_error("counts must not be negative and must sum to less than 2**31");
  return out;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::span<const T> span_of(const Array<T>& array) {
  if (array.ndim() != 1) throw py::value_error("the array must have one dimension");
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
std::vector<T> vector_of(const Array<T>& array) {
  const std::span<const T> values = span_of(array);
  return std::vector<T>(values.begin(), values.end());
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace softq::bindings
