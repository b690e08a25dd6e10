#include <algorithm>
#include <string>

#include "arrays.h"
#include "release.h"
#include "softq/intervals.h"

namespace softq::bindings {

namespace {

using Doubles = Array<double>;

// Their table of errors has as many rows and columns.
constexpr std::int64_t most_clusters = std::int64_t{1} << 12;
constexpr std::int64_t most_free_nodes = std::int64_t{1} << 31;  // where only errors count

py::array_t<std::int64_t> find_union(const Doubles& counts, const Doubles& sums,
                                     const Doubles& squares, double variance, double rd_weight,
                                     std::size_t most) {
  const NodeSums all{span_of(counts), span_of(sums), span_of(squares)};
  const std::int64_t most_nodes = rd_weight > 0 ? most_clusters : most_free_nodes;
  if (all.nodes() < 1 || std::ssize(all.counts) > most_nodes || all.sums.size() != all.nodes() ||
      all.squares.size() != all.nodes() || most < 1)
    throw py::value_error("sums must be those before 1 to " + std::to_string(most_nodes) +
                          " nodes, `most` at least 1");
  return array_of(released([&] { return best_union(all, {variance, rd_weight}, most); }));
}

py::tuple merge_clusters(const Doubles& values, const Doubles& counts,
                         const Array<std::uint8_t>& pinned, const Array<std::int64_t>& sizes,
                         double rd_weight, Rate rate) {
  const ClusterTable table{span_of(values), span_of(counts), span_of(pinned), span_of(sizes)};
  std::size_t total = 0;
  for (const std::int64_t size : table.sizes) {
    if (size < 0 || size > most_clusters) throw py::value_error("a segment has too many clusters");
    total += static_cast<std::size_t>(size);
  }
  for (const std::size_t size : {table.values.size(), table.counts.size(), table.pinned.size()})
    if (size != total) throw py::value_error("the clusters do not fit the segments");
  const Runs runs = released([&] { return merge(table, rd_weight, rate); });
  return py::make_tuple(array_of(runs.lengths), array_of(runs.means));
}

}  // namespace

void bind_intervals(py::module_& m) {
  py::enum_<Rate>(m, "Rate")
      .value("levels", Rate::levels)
      .value("packed", Rate::packed)
      .value("entropy", Rate::entropy);
  m.def("best_union", &find_union, py::arg("counts"), py::arg("sums"), py::arg("squares"),
        py::arg("variance"), py::arg("rd_weight"), py::arg("most"),
        "Nodes of the cheapest partition into at most `most` intervals");
  m.def("merge", &merge_clusters, py::arg("values"), py::arg("counts"), py::arg("pinned"),
        py::arg("sizes"), py::arg("rd_weight"), py::arg("rate"),
        "(clusters of each run, mean of each) of the best runs of each segment's clusters");
}

}  // namespace softq::bindings
