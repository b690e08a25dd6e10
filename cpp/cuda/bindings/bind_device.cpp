#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "../fft.h"
#include "../model.h"
#include "place.h"

namespace softq::cuda {

void bind_device(py::module_& m) {
  m.attr("architectures") = PYSOFTQ_CUDA_ARCHITECTURES;
  m.def("device_count", &device_count);
  m.def(
      "partition",
      [](const std::vector<std::uint64_t>& sizes, std::uint64_t blocks) {
        std::vector<std::tuple<std::uint32_t, std::uint64_t, std::uint64_t>> out;
        for (const Share& share : partition(sizes, blocks))
          out.emplace_back(share.unit, share.begin, share.end);
        return out;
      },
      py::arg("sizes"), py::arg("blocks"), "[(unit, begin, end)] of the blocks' work");
  m.def("rows_at_once", &rows_at_once, py::arg("rows"), py::arg("bins"),
        "how many rows method 'fft' transforms at once");
}

}  // namespace softq::cuda
