#include <algorithm>
#include <vector>

#include "arrays.h"
#include "release.h"
#include "softq/density.h"

namespace softq::bindings {

void bind_density(py::module_& m) {
  m.def(
      "density",
      [](const py::array& theta, std::int32_t bins, double fraction, std::uint64_t seed) {
        return with_weights(theta, [&]<class T>(const T* weights, std::size_t size) {
          Counts counts(bins);
          std::int64_t* out = counts.mutable_data();
          Extent<T> range{};
          Binning<T> binning;
          released([&] {
            range = extent<T, T>(weights, size);
            binning = make_binning(range, size, bins);
            std::vector<Count> found(static_cast<std::size_t>(bins));
            histogram(weights, size, binning, Sample(fraction, seed, 0, 0), found.data());
            std::copy(found.begin(), found.end(), out);
          });
          return py::make_tuple(counts, static_cast<double>(range.low),
                                static_cast<double>(range.high), binning.spacing);
        });
      },
      py::arg("theta"), py::arg("bins"), py::arg("fraction"), py::arg("seed"),
      "(counts, low, high, spacing)");
}

}  // namespace softq::bindings
