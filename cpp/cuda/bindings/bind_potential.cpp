#include "../once.h"
#include "place.h"

namespace softq::cuda {

void bind_potential(py::module_& m) {
  m.def(
      "potential",
      [](Address counts, std::int64_t bins, double spacing, double width, bool fft, Address out,
         const Place& place) {
        on(place.device, [&] {
          potential(pointer<const std::int64_t>(counts), bins, spacing, width, method_of(fft),
                    pointer<double>(out), place);
        });
      },
      py::arg("counts"), py::arg("bins"), py::arg("spacing"), py::arg("width"), py::arg("fft"),
      py::arg("out"), py::arg("place"));
  m.def(
      "mean_field_energy",
      [](Address counts, std::int64_t bins, double spacing, double width, const Place& place) {
        return on(place.device, [&] {
          return mean_field_energy(pointer<const std::int64_t>(counts), bins, spacing, width,
                                   place);
        });
      },
      py::arg("counts"), py::arg("bins"), py::arg("spacing"), py::arg("width"), py::arg("place"),
      "without the self term");
}

}  // namespace softq::cuda
