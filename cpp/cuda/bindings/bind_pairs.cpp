#include "../once.h"
#include "place.h"

namespace softq::cuda {

void bind_pairs(py::module_& m) {
  m.def(
      "pair_energy",
      [](Address theta, std::uint64_t size, const std::string& scalar, double width, bool direct,
         const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        return on(place.device, [&] { return pair_energy(weights, width, direct, place); });
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("width"), py::arg("direct"),
      py::arg("place"));
  m.def(
      "pair_force",
      [](Address theta, std::uint64_t size, const std::string& scalar, double width, bool direct,
         Address force, const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        on(place.device,
           [&] { pair_force(weights, width, direct, pointer<std::int64_t>(force), place); });
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("width"), py::arg("direct"),
      py::arg("force"), py::arg("place"));
}

}  // namespace softq::cuda
