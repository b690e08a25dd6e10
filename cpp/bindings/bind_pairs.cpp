#include "arrays.h"
#include "release.h"
#include "softq/pairs.h"

namespace softq::bindings {

void bind_pairs(py::module_& m) {
  m.def(
      "pair_energy",
      [](const py::array& theta, double width, bool direct) {
        return with_weights(theta, [&](const auto* weights, std::size_t size) {
          return released([&] {
            return direct ? pair_energy_direct(weights, size, width)
                          : pair_energy_sort(weights, size, width);
          });
        });
      },
      py::arg("theta"), py::arg("width"), py::arg("direct"));
  m.def(
      "pair_force",
      [](const py::array& theta, double width, bool direct) {
        return with_weights(theta, [&](const auto* weights, std::size_t size) {
          py::array_t<std::int64_t> force(static_cast<py::ssize_t>(size));
          std::int64_t* out = force.mutable_data();
          released([&] {
            direct ? pair_force_direct(weights, size, width, out)
                   : pair_force_sort(weights, size, width, out);
          });
          return force;
        });
      },
      py::arg("theta"), py::arg("width"), py::arg("direct"));
  m.def(
      "pair_occupancy",
      [](const py::array& theta, double width, bool direct) {
        return with_weights(theta, [&](const auto* weights, std::size_t size) {
          py::array_t<double> occupancy(static_cast<py::ssize_t>(size));
          double* out = occupancy.mutable_data();
          released([&] {
            direct ? pair_occupancy_direct(weights, size, width, out)
                   : pair_occupancy_sort(weights, size, width, out);
          });
          return occupancy;
        });
      },
      py::arg("theta"), py::arg("width"), py::arg("direct"), "|V| / w of each weight");
}

}  // namespace softq::bindings
