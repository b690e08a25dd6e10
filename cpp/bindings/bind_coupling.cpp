#include <pybind11/stl.h>

#include "arrays.h"
#include "softq/coupling.h"

namespace softq::bindings {

namespace {

template <class T>
T* address(std::uint64_t number) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(number));
}

// What stays the same from step to step; addresses and scale come with each step.
class Coupling {
 public:
  Coupling(const std::vector<std::size_t>& sizes, const std::vector<Scalar>& scalars,
           const std::vector<double>& widths, const std::vector<double>& strengths,
           const std::vector<std::uint64_t>& indices, std::int32_t bins, bool fft)
      : bins_(bins), method_(fft ? Method::fft : Method::scan) {
    for (const auto length : {scalars.size(), widths.size(), strengths.size(), indices.size()}) {
      if (length != sizes.size()) throw py::value_error("the lists differ in length");
    }
    for (std::size_t l = 0; l < sizes.size(); ++l) {
      layers_.push_back(
          {nullptr, nullptr, sizes[l], scalars[l], widths[l], strengths[l], indices[l]});
    }
  }

  std::vector<std::pair<std::size_t, std::string>> add(const std::vector<std::uint64_t>& thetas,
                                                       const std::vector<std::uint64_t>& gradients,
                                                       double scale, double fraction,
                                                       std::uint64_t seed,
                                                       std::uint64_t step) const {
    if (thetas.size() != layers_.size() || gradients.size() != layers_.size())
      throw py::value_error("every layer wants an address, 0 for a gradient that is not there");
    const py::gil_scoped_release release;
    std::vector<Layer> active;
    std::vector<std::size_t> places;
    active.reserve(layers_.size());
    places.reserve(layers_.size());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      if (gradients[l] == 0) continue;
      places.push_back(l);
      Layer& layer = active.emplace_back(layers_[l]);
      layer.theta = address<const void>(thetas[l]);
      layer.gradient = address<void>(gradients[l]);
      layer.strength *= scale;
    }
    std::vector<std::pair<std::size_t, std::string>> refused;
    for (const auto& refusal : add_force(active, {bins_, method_, fraction, seed, step}))
      refused.emplace_back(places[refusal.layer], refusal.reason);
    return refused;
  }

 private:
  std::vector<Layer> layers_;
  std::int32_t bins_;
  Method method_;
};

}  // namespace

void bind_coupling(py::module_& m) {
  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::float32)
      .value("float64", Scalar::float64)
      .value("float16", Scalar::float16)
      .value("bfloat16", Scalar::bfloat16);
  py::class_<Coupling>(m, "Coupling")
      .def(py::init<const std::vector<std::size_t>&, const std::vector<Scalar>&,
                    const std::vector<double>&, const std::vector<double>&,
                    const std::vector<std::uint64_t>&, std::int32_t, bool>(),
           py::arg("sizes"), py::arg("scalars"), py::arg("widths"), py::arg("strengths"),
           py::arg("indices"), py::arg("bins"), py::arg("fft"))
      .def("add_force", &Coupling::add, py::arg("thetas"), py::arg("gradients"), py::arg("scale"),
           py::arg("fraction"), py::arg("seed"), py::arg("step"),
           "Addresses of contiguous memory, 0 for a gradient to be skipped. [(layer, reason)] of "
           "the layers that were refused; then no gradient has changed");
}

}  // namespace softq::bindings
