#include "../once.h"
#include "place.h"

namespace softq::cuda {

void bind_density(py::module_& m) {
  m.def(
      "density",
      [](Address theta, std::uint64_t size, const std::string& scalar, std::int32_t bins,
         double fraction, std::uint64_t seed, Address counts, const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        const auto range = on(place.device, [&] {
          return density(weights, bins, fraction, seed, pointer<std::int64_t>(counts), place);
        });
        return py::make_tuple(range.low, range.high, range.spacing);
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("bins"), py::arg("fraction"),
      py::arg("seed"), py::arg("counts"), py::arg("place"), "(low, high, spacing)");
}

}  // namespace softq::cuda
