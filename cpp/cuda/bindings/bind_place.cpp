#include <pybind11/functional.h>

#include <functional>
#include <stdexcept>

#include "place.h"

namespace softq::cuda {

Scalar scalar_named(const std::string& name) {
  if (name == "float32") return Scalar::float32;
  if (name == "float64") return Scalar::float64;
  if (name == "float16") return Scalar::float16;
  if (name == "bfloat16") return Scalar::bfloat16;
  throw std::invalid_argument("weights must be float16, bfloat16, float32 or float64, not " + name);
}

void bind_place(py::module_& m) {
  py::class_<Place>(m, "Place", py::module_local())
      .def(py::init([](int device, Address stream,
                       const std::function<Address(std::size_t)>& allocate) {
             return Place{device, stream_at(stream),
                          [allocate](std::size_t bytes) { return pointer<void>(allocate(bytes)); }};
           }),
           py::arg("device"), py::arg("stream"), py::arg("allocate"),
           "allocate(bytes) returns the address of memory that lives as long as what the place is "
           "given to");
}

}  // namespace softq::cuda
