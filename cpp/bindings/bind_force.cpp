#include "arrays.h"
#include "release.h"
#include "softq/force.h"

namespace softq::bindings {

void bind_force(py::module_& m) {
  m.def(
      "force",
      [](const py::array& theta, double width, std::int32_t bins, bool fft, bool log) {
        return with_weights(theta, [&]<class T>(const T* weights, std::size_t size) -> py::array {
          py::array_t<T> values(static_cast<py::ssize_t>(size));
          T* out = values.mutable_data();
          const Method method = fft ? Method::fft : Method::scan;
          released([&] { force(weights, size, width, bins, method, potential_of(log), out); });
          return values;
        });
      },
      py::arg("theta"), py::arg("width"), py::arg("bins"), py::arg("fft"), py::arg("log") = false);
  m.def(
      "force_table",
      [](const Counts& counts, double spacing, double width, bool fft) {
        const std::vector<Count> in = narrow(counts);
        const auto bins = static_cast<std::int64_t>(in.size());
        py::array_t<double> table(bins);
        double* out = table.mutable_data();
        const auto force = fft ? force_fft<double> : force_scan<double>;
        released([&] { force(in.data(), bins, spacing, width, Pull{}, out); });
        return table;
      },
      py::arg("counts"), py::arg("spacing"), py::arg("width"), py::arg("fft"));
}

}  // namespace softq::bindings
