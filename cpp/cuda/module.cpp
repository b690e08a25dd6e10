// The extension pysoftq._cuda: one function a noun, on addresses of device memory given as
// integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "coupling.h"
#include "device.h"
#include "once.h"

namespace py = pybind11;

namespace softq::cuda {
namespace {

using Address = std::uint64_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

cudaStream_t stream_at(Address address) {
  return reinterpret_cast<cudaStream_t>(static_cast<std::uintptr_t>(address));
}

Scalar scalar_named(const std::string& name) {
  if (name == "float32") return Scalar::float32;
  if (name == "float64") return Scalar::float64;
  if (name == "float16") return Scalar::float16;
  if (name == "bfloat16") return Scalar::bfloat16;
  throw std::invalid_argument("weights must be float16, bfloat16, float32 or float64, not " + name);
}

// Where the weights are: all that a call needs besides its own arguments.
struct Place {
  int device;
  cudaStream_t stream;
};

Method method_of(bool fft) { return fft ? Method::fft : Method::scan; }

// Runs body with the place's device as the current one and without Python's lock.
template <class Body>
auto on(const Place& place, const Body& body) {
  const py::gil_scoped_release release;
  const DeviceGuard guard(place.device);
  return body();
}

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

void bind_density(py::module_& m) {
  m.def(
      "density",
      [](Address theta, std::uint64_t size, const std::string& scalar, std::int32_t bins,
         double fraction, std::uint64_t seed, Address counts, const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        const auto range = on(place, [&] {
          return density(weights, bins, fraction, seed, pointer<std::int64_t>(counts),
                         place.stream);
        });
        return py::make_tuple(range.low, range.high, range.spacing);
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("bins"), py::arg("fraction"),
      py::arg("seed"), py::arg("counts"), py::arg("place"), "(low, high, spacing)");
}

void bind_pairs(py::module_& m) {
  m.def(
      "pair_energy",
      [](Address theta, std::uint64_t size, const std::string& scalar, double width, bool direct,
         const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        return on(place, [&] { return pair_energy(weights, width, direct, place.stream); });
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("width"), py::arg("direct"),
      py::arg("place"));
  m.def(
      "pair_force",
      [](Address theta, std::uint64_t size, const std::string& scalar, double width, bool direct,
         Address force, const Place& place) {
        const Weights weights{pointer<const void>(theta), size, scalar_named(scalar)};
        on(place,
           [&] { pair_force(weights, width, direct, pointer<std::int64_t>(force), place.stream); });
      },
      py::arg("theta"), py::arg("size"), py::arg("scalar"), py::arg("width"), py::arg("direct"),
      py::arg("force"), py::arg("place"));
}

void bind_potential(py::module_& m) {
  m.def(
      "potential",
      [](Address counts, std::int64_t bins, double spacing, double width, bool fft, Address out,
         const Place& place) {
        on(place, [&] {
          potential(pointer<const std::int64_t>(counts), bins, spacing, width, method_of(fft),
                    pointer<double>(out), place.stream);
        });
      },
      py::arg("counts"), py::arg("bins"), py::arg("spacing"), py::arg("width"), py::arg("fft"),
      py::arg("out"), py::arg("place"));
  m.def(
      "mean_field_energy",
      [](Address counts, std::int64_t bins, double spacing, double width, const Place& place) {
        return on(place, [&] {
          return mean_field_energy(pointer<const std::int64_t>(counts), bins, spacing, width,
                                   place.stream);
        });
      },
      py::arg("counts"), py::arg("bins"), py::arg("spacing"), py::arg("width"), py::arg("place"),
      "without the self term");
}

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

}  // namespace
}  // namespace softq::cuda

PYBIND11_MODULE(PYSOFTQ_CUDA_MODULE, m) {
  using namespace softq::cuda;
  m.doc() = "The CUDA core of pysoftq: use it through the functions of the package.";
  m.def("device_count", &device_count);
  m.def(
      "partition",
      [](const std::vector<std::uint64_t>& sizes, std::uint64_t blocks) {
        std::vector<std::tuple<std::uint32_t, std::uint64_t, std::uint64_t>> out;
        for (const Segment& segment : partition(sizes, blocks))
          out.emplace_back(segment.layer, segment.begin, segment.end);
        return out;
      },
      py::arg("sizes"), py::arg("blocks"), "[(layer, begin, end)] of the blocks' work");
  py::class_<Place>(m, "Place", py::module_local())
      .def(py::init([](int device, Address stream) { return Place{device, stream_at(stream)}; }),
           py::arg("device"), py::arg("stream"));
  bind_density(m);
  bind_pairs(m);
  bind_potential(m);
  bind_coupling(m);
#ifndef CUDART_VERSION
  m.def("set_seed", &softq::emulation::set_seed, py::arg("seed"));
  m.def("fail", &softq::emulation::fail, py::arg("call"));
  m.def("live_allocations", &softq::emulation::live_allocations);
  m.def("launches", &softq::emulation::launches);
#endif
}
