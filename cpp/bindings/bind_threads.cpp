#include <pybind11/pybind11.h>

#include "softq/threads.h"

namespace py = pybind11;

namespace softq::bindings {

void bind_threads(py::module_& m) {
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace softq::bindings
