#include "arrays.h"
#include "release.h"
#include "softq/potential.h"

namespace softq::bindings {

void bind_potential(py::module_& m) {
  m.def(
      "potential",
      [](const Counts& counts, double spacing, double width, bool fft) {
        const std::vector<Count> in = narrow(counts);
        const auto bins = static_cast<std::int64_t>(in.size());
        py::array_t<double> potential(bins);
        double* out = potential.mutable_data();
        released([&] {
          fft ? potential_fft(in.data(), bins, spacing, width, out)
              : potential_scan(in.data(), bins, spacing, width, out);
        });
        return potential;
      },
      py::arg("counts"), py::arg("spacing"), py::arg("width"), py::arg("fft"));
  m.def(
      "mean_field_energy",
      [](const Counts& counts, double spacing, double width, bool log) {
        const std::vector<Count> in = narrow(counts);
        return released([&] {
          return mean_field_energy(in.data(), static_cast<std::int64_t>(in.size()), spacing, width,
                                   potential_of(log));
        });
      },
      py::arg("counts"), py::arg("spacing"), py::arg("width"), py::arg("log") = false,
      "without the self term, or the length of the code in nats");
}

}  // namespace softq::bindings
