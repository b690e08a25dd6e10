// How this extension was built; CMake defines the strings.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace softq::bindings {

void bind_config(py::module_& m) {
  m.def(
      "build_config",
      [] {
        py::dict config;
        config["compiler"] = SOFTQ_COMPILER;
        config["flags"] = SOFTQ_FLAGS;
        config["build type"] = SOFTQ_BUILD_TYPE;
        config["pybind11"] = SOFTQ_PYBIND11;
        config["ducc0"] = SOFTQ_DUCC0;
        config["sanitizers"] = SOFTQ_SANITIZERS;
        config["CUDA"] = SOFTQ_CUDA;
        return config;
      },
      "How the extension was built");
}

}  // namespace softq::bindings
