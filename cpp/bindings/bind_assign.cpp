#include <algorithm>

#include "arrays.h"
#include "release.h"
#include "softq/assign.h"
#include "softq/sums.h"

namespace softq::bindings {

namespace {

template <class T>
py::array_t<T> envelope(const Array<T>& values, const Array<T>& offsets) {
  if (values.ndim() != 2 || offsets.ndim() != 2 || values.shape(0) != offsets.shape(0) ||
      values.shape(1) != offsets.shape(1) || values.shape(1) < 1)
    throw py::value_error("values and offsets must be tables of one shape");
  py::array_t<T> ends({values.shape(0), values.shape(1) - 1});
  T* out = ends.mutable_data();
  const auto rows = static_cast<std::size_t>(values.shape(0));
  const auto width = static_cast<std::size_t>(values.shape(1));
  if (width > 1) {
    released([&] { lower_envelope(values.data(), offsets.data(), rows, width, out); });
  }
  return ends;
}

// The cheapest clusters of each segment and their intervals: ends (S, K - 1), order (S, K).
py::tuple cheapest(const Array<float>& values, const Array<std::int64_t>& counts,
                   const Array<std::int64_t>& sizes, const Array<std::int64_t>& weights,
                   float rd_weight) {
  const SegmentClusters clusters{span_of(values), span_of(counts), span_of(sizes),
                                 span_of(weights)};
  std::int64_t sum = 0, width = 1;
  for (const std::int64_t size : clusters.sizes) {
    if (size < 0) throw py::value_error("a segment has a negative number of clusters");
    sum += size;
    width = std::max(width, size);
  }
  if (static_cast<std::size_t>(sum) != clusters.values.size() ||
      clusters.counts.size() != clusters.values.size() ||
      clusters.weights.size() != clusters.sizes.size())
    throw py::value_error("values, counts and sizes of the segments do not agree");
  const auto rows = static_cast<py::ssize_t>(clusters.sizes.size());
  py::array_t<float> ends({rows, static_cast<py::ssize_t>(width - 1)});
  py::array_t<std::int32_t> order({rows, static_cast<py::ssize_t>(width)});
  float* end = ends.mutable_data();
  std::int32_t* place = order.mutable_data();
  released(
      [&] { cheapest_clusters(clusters, rd_weight, static_cast<std::size_t>(width), end, place); });
  return py::make_tuple(ends, order);
}

// Moves the weights at one address and writes to others, which Python keeps.
py::array_t<std::int64_t> assign_weights(std::uint64_t weights, const Array<std::int64_t>& edges,
                                         const Array<std::int64_t>& first, const Array<float>& ends,
                                         const Array<std::int32_t>& order, const py::array& values,
                                         std::uint64_t kept, std::uint64_t clusters,
                                         std::uint64_t out) {
  const auto pointer = [](std::uint64_t address) {
    return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
  };
  const auto segments = static_cast<py::ssize_t>(span_of(first).size());
  if (order.ndim() != 2 || ends.ndim() != 2 || order.shape(0) != segments ||
      ends.shape(0) != segments || order.shape(1) < 1 || ends.shape(1) != order.shape(1) - 1)
    throw py::value_error("each segment requires a row of clusters and of ends");
  const auto begins = span_of(edges);
  if (static_cast<py::ssize_t>(begins.size()) != segments + 1 || begins.front() != 0 ||
      !std::is_sorted(begins.begin(), begins.end()))
    throw py::value_error("edges must ascend from 0");
  const auto itemsize = static_cast<std::size_t>(values.itemsize());
  if (values.ndim() != 1 || !(values.flags() & py::array::c_style) ||
      (itemsize != 2 && itemsize != 4 && itemsize != 8))
    throw py::value_error("values must be an array of 2, 4 or 8 bytes each");
  for (py::ssize_t s = 0; s < segments; ++s) {
    for (py::ssize_t k = 0; k < order.shape(1); ++k) {
      const std::int64_t cluster = first.at(s) + order.at(s, k);
      if (order.at(s, k) < 0 || first.at(s) < 0 || cluster >= values.size())
        throw py::value_error("there is no such cluster");
    }
  }
  const Intervals intervals{begins, span_of(first), static_cast<std::size_t>(order.shape(1)),
                            ends.data(), order.data()};
  const std::span<const std::byte> table(static_cast<const std::byte*>(values.data()),
                                         static_cast<std::size_t>(values.nbytes()));
  return array_of(released([&] {
    return assign(static_cast<const float*>(pointer(weights)), intervals,
                  static_cast<const std::uint8_t*>(pointer(kept)), table, itemsize,
                  static_cast<std::int32_t*>(pointer(clusters)), pointer(out));
  }));
}

// Sums of the gradients at one address over the clusters at another.
py::array_t<std::int64_t> sum_gradients(std::uint64_t gradients, Scalar scalar,
                                        std::uint64_t clusters, std::size_t size,
                                        std::size_t number, double scale) {
  const auto pointer = [](std::uint64_t address) {
    return reinterpret_cast<const void*>(static_cast<std::uintptr_t>(address));
  };
  return array_of(released([&] {
    return sum_by_cluster(pointer(gradients), scalar,
                          static_cast<const std::int32_t*>(pointer(clusters)), size, number, scale);
  }));
}

}  // namespace

void bind_assign(py::module_& m) {
  m.def("lower_envelope", &envelope<float>, py::arg("values"), py::arg("offsets"),
        "Ends of the intervals in which each parabola of a row is the least, (S, K - 1)");
  m.def("lower_envelope", &envelope<double>, py::arg("values"), py::arg("offsets"));
  m.def("cheapest_clusters", &cheapest, py::arg("values"), py::arg("counts"), py::arg("sizes"),
        py::arg("weights"), py::arg("rd_weight"),
        "Intervals in which each cluster of a segment is the cheapest: ends and order of clusters");
  m.def("assign", &assign_weights, py::arg("weights"), py::arg("edges"), py::arg("first"),
        py::arg("ends"), py::arg("order"), py::arg("values"), py::arg("kept"), py::arg("clusters"),
        py::arg("out"),
        "Writes the cluster of each float32 weight (int32) and its value; counts of the clusters");
  m.def("sum_by_cluster", &sum_gradients, py::arg("gradients"), py::arg("scalar"),
        py::arg("clusters"), py::arg("size"), py::arg("number"), py::arg("scale"),
        "Sums of round(scale * gradient) over the weights of each cluster (int32)");
}

}  // namespace softq::bindings
