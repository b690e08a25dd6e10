#include <pybind11/stl.h>

#include "../bindings/place.h"
#include "../libraries.h"
#include "control.h"
#include "softq/binning.h"

namespace softq::cuda {

// What only the emulation has.
void bind_emulation(py::module_& m) {
  m.def("set_seed", &emulation::set_seed, py::arg("seed"));
  m.def("fail", &emulation::fail, py::arg("call"));
  m.def("live_allocations", &emulation::live_allocations);
  m.def("launches", &emulation::launches);
  m.def(
      "write_before",
      [](int launch, Address address, float value) {
        emulation::write_before(launch, pointer<float>(address), value);
      },
      py::arg("launch"), py::arg("address"), py::arg("value"));
  m.def("set_devices", &emulation::set_devices, py::arg("count"));
  m.def("current_device", &emulation::current_device);
  m.def("contexts", &emulation::contexts);
  py::class_<emulation::Allocation>(m, "Allocation", py::module_local())
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def("data_ptr", &emulation::Allocation::address);
  py::class_<emulation::Graph>(m, "Graph", py::module_local())
      .def("replay", &emulation::Graph::replay);
  m.def(
      "begin_capture", [](Address stream) { emulation::begin_capture(stream_at(stream)); },
      py::arg("stream"));
  m.def("end_capture", &emulation::end_capture);
  m.def(
      "open_library",
      [](const std::vector<std::string>& names) { return open_library(names).name; },
      py::arg("names"));
  m.def(
      "bin_of",
      [](double low, double high, std::int32_t bins, double weight, bool wide) {
        if (wide) return Binning<double>(low, high, bins).index(weight);
        const Binning<float> binning(static_cast<float>(low), static_cast<float>(high), bins);
        return binning.index(static_cast<float>(weight));
      },
      py::arg("low"), py::arg("high"), py::arg("bins"), py::arg("weight"), py::arg("wide"));
}

}  // namespace softq::cuda
