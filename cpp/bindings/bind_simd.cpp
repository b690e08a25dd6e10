#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "softq/kernels.h"

namespace py = pybind11;

namespace softq::bindings {

void bind_simd(py::module_& m) {
  m.def("simd_level", [] { return std::string(kernels().name); });
  m.def("simd_levels", &simd_levels);
  m.def("set_simd_level", &set_simd_level, py::arg("name"));
}

}  // namespace softq::bindings
