#include <pybind11/stl.h>

#include "arrays.h"
#include "softq/coupling.h"

namespace softq::bindings {

namespace {

using Addresses = py::array_t<std::uint64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

template <class T>
T* address(std::uint64_t value) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(value));
}

}  // namespace

void bind_coupling(py::module_& m) {
  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::float32)
      .value("float64", Scalar::float64)
      .value("float16", Scalar::float16)
      .value("bfloat16", Scalar::bfloat16);
  py::class_<Layer>(m, "Layer")
      .def(py::init([](std::uint64_t theta, std::uint64_t gradient, std::size_t size, Scalar scalar,
                       double width, double strength, std::uint64_t id) {
             return Layer{address<const void>(theta),
                          address<void>(gradient),
                          size,
                          scalar,
                          width,
                          strength,
                          id};
           }),
           py::arg("theta"), py::arg("gradient"), py::arg("size"), py::arg("scalar"),
           py::arg("width"), py::arg("strength"), py::arg("id"),
           "theta and gradient: addresses of contiguous memory");
  m.def(
      "add_force",
      [](const std::vector<Layer>& layers, std::int32_t bins, bool fft, double fraction,
         std::uint64_t seed, std::uint64_t step) {
        std::vector<Refusal> refusals;
        {
          const py::gil_scoped_release release;
          refusals =
              add_force(layers, {bins, fft ? Method::fft : Method::scan, fraction, seed, step});
        }
        std::vector<std::pair<std::size_t, std::string>> out;
        for (const auto& refusal : refusals) out.emplace_back(refusal.layer, refusal.reason);
        return out;
      },
      py::arg("layers"), py::arg("bins"), py::arg("fft"), py::arg("fraction"), py::arg("seed"),
      py::arg("step"),
      "[(layer, reason)] of the layers that were refused; then no gradient has changed");
}

}  // namespace softq::bindings
