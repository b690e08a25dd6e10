// The index of the extension pysoftq._cuda: one line for each noun.
#include <pybind11/pybind11.h>

namespace softq::cuda {
void bind_device(pybind11::module_& m);
void bind_place(pybind11::module_& m);
void bind_density(pybind11::module_& m);
void bind_pairs(pybind11::module_& m);
void bind_potential(pybind11::module_& m);
void bind_coupling(pybind11::module_& m);
void bind_emulation(pybind11::module_& m);
}  // namespace softq::cuda

PYBIND11_MODULE(PYSOFTQ_CUDA_MODULE, m) {
  using namespace softq::cuda;
  m.doc() = "The CUDA core of pysoftq: use it through the functions of the package.";
  bind_device(m);
  bind_place(m);
  bind_density(m);
  bind_pairs(m);
  bind_potential(m);
  bind_coupling(m);
#ifdef PYSOFTQ_CUDA_EMULATED
  bind_emulation(m);
#endif
}
