#include <pybind11/pybind11.h>

#include "cuda_runtime.h"

namespace softq::cuda {

// What only the emulation has.
void bind_emulation(pybind11::module_& m) {
  m.def("set_seed", &emulation::set_seed, pybind11::arg("seed"));
  m.def("fail", &emulation::fail, pybind11::arg("call"));
  m.def("live_allocations", &emulation::live_allocations);
  m.def("launches", &emulation::launches);
}

}  // namespace softq::cuda
