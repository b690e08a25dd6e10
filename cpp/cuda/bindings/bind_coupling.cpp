#include <pybind11/stl.h>

#include <array>
#include <memory>
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
    on(device_, [&] { coupling_ = std::make_unique<Coupling>(all, bins, method_of(fft), place); });
  }

  template <class Body>
  auto with(const Body& body) {
    return on(device_, [&] { return body(*coupling_); });
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
            self.with([&](Coupling& coupling) { coupling.set(control, stream_at(stream)); });
          },
          py::arg("control"), py::arg("stream"))
      .def(
          "add_force",
          [](CouplingOnDevice& self, const Rows& rows, const Control& control, Address stream) {
            const auto addresses = addresses_of(rows);
            self.with([&](Coupling& coupling) {
              coupling.add_force(addresses, control, stream_at(stream));
            });
          },
          py::arg("addresses"), py::arg("control"), py::arg("stream"))
      .def(
          "capturing",
          [](CouplingOnDevice& self, Address stream) {
            return self.with([&](Coupling&) { return capturing(stream_at(stream)); });
          },
          py::arg("stream"), "whether work on the stream is recorded into a CUDA graph")
      .def(
          "check",
          [](CouplingOnDevice& self, Address stream) {
            const auto refusals =
                self.with([&](Coupling& coupling) { return coupling.check(stream_at(stream)); });
            std::vector<std::pair<std::size_t, std::string>> out;
            for (const auto& refusal : refusals) out.emplace_back(refusal.layer, refusal.reason);
            return out;
          },
          py::arg("stream"), "[(layer, reason)] of the first step refused since the last call");
}

}  // namespace softq::cuda
