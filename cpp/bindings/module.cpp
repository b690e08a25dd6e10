// The index of the extension: one line for each noun.
#include <pybind11/pybind11.h>

namespace softq::bindings {
void bind_config(pybind11::module_& m);
void bind_threads(pybind11::module_& m);
void bind_simd(pybind11::module_& m);
void bind_pairs(pybind11::module_& m);
void bind_density(pybind11::module_& m);
void bind_potential(pybind11::module_& m);
void bind_force(pybind11::module_& m);
void bind_coupling(pybind11::module_& m);
void bind_pieces(pybind11::module_& m);
void bind_segments(pybind11::module_& m);
void bind_coding(pybind11::module_& m);
void bind_intervals(pybind11::module_& m);
void bind_assign(pybind11::module_& m);
}  // namespace softq::bindings

PYBIND11_MODULE(_core, m) {
  using namespace softq::bindings;
  m.doc() = "The C++ core of pysoftq: use it through the functions of the package.";
  bind_config(m);
  bind_threads(m);
  bind_simd(m);
  bind_pairs(m);
  bind_density(m);
  bind_potential(m);
  bind_force(m);
  bind_coupling(m);
  bind_pieces(m);
  bind_segments(m);
  bind_coding(m);
  bind_intervals(m);
  bind_assign(m);
}
