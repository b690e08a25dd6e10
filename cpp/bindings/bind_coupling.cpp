#include <pybind11/stl.h>

#include "arrays.h"
#include "softq/coupling.h"

namespace softq::bindings {

namespace {

template <class T>
std::uint64_t number(T* address) {
  return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(address));
}

template <class T>
T* address(std::uint64_t number) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(number));
}

}  // namespace

void bind_coupling(py::module_& m) {
  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::float32)
      .value("float64", Scalar::float64)
      .value("float16", Scalar::float16)
      .value("bfloat16", Scalar::bfloat16);
  // Written anew before each step: addresses as integers, of contiguous memory.
  py::class_<Layer>(m, "Layer")
      .def(py::init([](std::size_t size, double width, std::uint64_t index) {
             return Layer{nullptr, nullptr, size, Scalar::float32, width, 0, index};
           }),
           py::arg("size"), py::arg("width"), py::arg("index"))
      .def_property(
          "theta", [](const Layer& layer) { return number(layer.theta); },
          [](Layer& layer, std::uint64_t theta) { layer.theta = address<const void>(theta); })
      .def_property(
          "gradient", [](const Layer& layer) { return number(layer.gradient); },
          [](Layer& layer, std::uint64_t gradient) { layer.gradient = address<void>(gradient); })
      .def_readwrite("scalar", &Layer::scalar)
      .def_readwrite("strength", &Layer::strength)
      .def(py::pickle(
          [](const Layer& layer) { return py::make_tuple(layer.size, layer.width, layer.index); },
          [](const py::tuple& state) {
            return Layer{nullptr,
                         nullptr,
                         state[0].cast<std::size_t>(),
                         Scalar::float32,
                         state[1].cast<double>(),
                         0,
                         state[2].cast<std::uint64_t>()};
          }));
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
