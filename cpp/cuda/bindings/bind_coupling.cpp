#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../coupling.h"
#include "place.h"

namespace softq::cuda {
namespace {

// Keeps the device that a coupling lives on with it.
class CouplingOnDevice {
 public:
  CouplingOnDevice(
      const std::vector<std::tuple<std::uint64_t, std::string, double, double, std::uint64_t>>&
          layers,
      std::int32_t bins, bool fft, const Place& place)
      : device_(place.device) {
    std::vector<Layer> all;
    for (const auto& [size, scalar, width, strength, index] : layers)
      all.push_back({nullptr, nullptr, size, scalar_named(scalar), width, strength, index, bins});
    on(place,
       [&] { coupling_ = std::make_unique<Coupling>(all, bins, method_of(fft), place.stream); });
  }
  ~CouplingOnDevice() {
    try {
      const DeviceGuard guard(device_);
      coupling_.reset();
    } catch (const std::runtime_error&) {
      // The device is gone, and the memory with it.
    }
  }
  CouplingOnDevice(const CouplingOnDevice&) = delete;
  CouplingOnDevice& operator=(const CouplingOnDevice&) = delete;

  template <class Body>
  auto with(Address stream, const Body& body) {
    return on(Place{device_, stream_at(stream)},
              [&] { return body(*coupling_, stream_at(stream)); });
  }

 private:
  int device_;
  std::unique_ptr<Coupling> coupling_;
};

std::vector<Addresses> addresses_of(const std::vector<std::array<Address, 2>>& addresses) {
  std::vector<Addresses> out;
  for (const auto& [theta, gradient] : addresses)
    out.push_back({pointer<const void>(theta), pointer<void>(gradient)});
  return out;
}

}  // namespace

void bind_coupling(py::module_& m) {
  py::class_<Control>(m, "Control", py::module_local())
      .def(py::init([](double scale, double fraction, std::uint64_t seed, std::uint64_t step) {
             return Control{scale, fraction, seed, step};
           }),
           py::arg("scale"), py::arg("fraction"), py::arg("seed"), py::arg("step"));
  using Rows = std::vector<std::array<Address, 2>>;
  py::class_<CouplingOnDevice>(m, "Coupling", py::module_local())
      .def(py::init<const std::vector<
                        std::tuple<std::uint64_t, std::string, double, double, std::uint64_t>>&,
                    std::int32_t, bool, const Place&>(),
           py::arg("layers"), py::arg("bins"), py::arg("fft"), py::arg("place"),
           "layers: (size, scalar, width, strength, index)")
      .def(
          "set",
          [](CouplingOnDevice& self, const Control& control, Address stream) {
            self.with(stream,
                      [&](Coupling& coupling, cudaStream_t s) { coupling.set(control, s); });
          },
          py::arg("control"), py::arg("stream"))
      .def(
          "add_force",
          [](CouplingOnDevice& self, const Rows& rows, const std::optional<Control>& control,
             Address stream) {
            const auto addresses = addresses_of(rows);
            self.with(stream, [&](Coupling& coupling, cudaStream_t s) {
              coupling.add_force(addresses, control, s);
            });
          },
          py::arg("addresses"), py::arg("control"), py::arg("stream"))
      .def(
          "check",
          [](CouplingOnDevice& self, Address stream) {
            const auto refusals = self.with(
                stream, [](Coupling& coupling, cudaStream_t s) { return coupling.check(s); });
            std::vector<std::pair<std::size_t, std::string>> out;
            for (const auto& refusal : refusals) out.emplace_back(refusal.layer, refusal.reason);
            return out;
          },
          py::arg("stream"), "[(layer, reason)] of the first step refused since the last call");
}

}  // namespace softq::cuda
