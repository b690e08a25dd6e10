#include <pybind11/stl.h>

#include <algorithm>
#include <span>
#include <vector>

#include "arrays.h"
#include "release.h"
#include "softq/bins.h"
#include "softq/distinct.h"
#include "softq/segments.h"

namespace softq::bindings {

namespace {

using Int64s = Array<std::int64_t>;
using Bits = Array<std::uint64_t>;
using Int32s = Array<std::int32_t>;

constexpr std::int32_t most_bins = 1 << 20;

template <class T>
T* pointer(std::uint64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

// Weights in memory that Python keeps.
Segmented layer_at(std::uint64_t address, Scalar scalar, const Int64s& edges) {
  Segmented layer{pointer<const void>(address), scalar, vector_of(edges)};
  const auto& all = layer.edges;
  if (all.empty() || all.front() != 0 || !std::is_sorted(all.begin(), all.end()))
    throw py::value_error("edges must ascend from 0");
  return layer;
}

// Checks how many entries each segment has, and returns how many there are in all.
std::int64_t check_sizes(const Segmented& layer, std::span<const std::int64_t> sizes) {
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) {
    if (size < 0) throw py::value_error("a size is negative");
    total += size;
  }
  if (sizes.size() != layer.segments()) throw py::value_error("each segment requires a size");
  return total;
}

py::object find_values(std::uint64_t address, Scalar scalar, const Int64s& edges, std::size_t most,
                       std::size_t total) {
  const Segmented layer = layer_at(address, scalar, edges);
  if (most > std::size_t{1} << 24) throw py::value_error("most must be 2**24 or less");
  const auto found = released([&] { return distinct_values(layer, most, total); });
  if (!found) return py::none();
  return py::make_tuple(array_of(found->sizes), array_of(found->bits));
}

py::array_t<std::int64_t> find_indices(std::uint64_t address, Scalar scalar, const Int64s& edges,
                                       const Int64s& sizes, const Bits& bits, std::size_t itemsize,
                                       std::uint64_t out) {
  const Segmented layer = layer_at(address, scalar, edges);
  const Values values{vector_of(sizes), vector_of(bits)};
  if (check_sizes(layer, values.sizes) != std::ssize(values.bits))
    throw py::value_error("the values do not fit the segments");
  if (itemsize != 1 && itemsize != 2 && itemsize != 4)
    throw py::value_error("itemsize must be 1, 2 or 4");
  for (const std::int64_t size : values.sizes) {
    if (size > std::int64_t{1} << std::min<std::size_t>(8 * itemsize, 24))
      throw py::value_error("a segment has too many values");
  }
  return array_of(
      released([&] { return index_values(layer, values, itemsize, pointer<void>(out)); }));
}

// The weights of a layer and the range of each segment.
class Weights {
 public:
  Weights(std::uint64_t address, Scalar scalar, const Int64s& edges)
      : layer_(layer_at(address, scalar, edges)) {
    ranges_ = released([&] { return softq::ranges(layer_); });
  }

  std::uint64_t nonfinite() const { return ranges_.nonfinite; }

  py::tuple ranges() const { return py::make_tuple(array_of(ranges_.low), array_of(ranges_.high)); }

  py::array_t<double> spreads() const {
    check();
    return array_of(released([&] { return softq::spreads(layer_, ranges_); }));
  }

  py::tuple occupied_bins(std::int32_t number, bool signs, std::size_t first,
                          std::size_t last) const {
    check(number);
    if (first > last || last > layer_.segments())
      throw py::value_error("there are no such segments");
    const Occupied found = released(
        [&] { return softq::occupied_bins(layer_, ranges_, {number, signs}, first, last); });
    return py::make_tuple(array_of(found.sizes), array_of(found.slot), array_of(found.count),
                          array_of(found.mean));
  }

  void look_up_bins(std::int32_t number, bool signs, const Int64s& sizes, const Int32s& slots,
                    const py::array& table, std::uint64_t out) const {
    check(number);
    const Places places{span_of(sizes), span_of(slots)};
    const std::int64_t total = check_sizes(layer_, places.sizes);
    const std::int32_t end = signs ? 3 * number : number;
    const bool fits = std::all_of(places.slot.begin(), places.slot.end(),
                                  [&](std::int32_t slot) { return slot >= 0 && slot < end; });
    if (total != std::ssize(places.slot) || !fits)
      throw py::value_error("the slots do not fit the segments");
    const auto itemsize = static_cast<std::size_t>(table.itemsize());
    if (table.ndim() != 1 || table.size() != total || !(table.flags() & py::array::c_style) ||
        (itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8)) {
      throw py::value_error("the table must have an entry of 1, 2, 4 or 8 bytes for each slot");
    }
    const void* entries = table.data();
    released([&] {
      softq::look_up_bins(layer_, ranges_, {number, signs}, places, entries, itemsize,
                          pointer<void>(out));
    });
  }

 private:
  void check(std::int32_t bins = 1) const {
    if (nonfinite() > 0) throw py::value_error("weights are not finite");
    if (bins < 1 || bins > most_bins) throw py::value_error("bins must be from 1 to 2**20");
  }

  Segmented layer_;
  Ranges ranges_;
};

}  // namespace

void bind_segments(py::module_& m) {
  m.def(
      "distinct_values", &find_values, py::arg("address"), py::arg("scalar"), py::arg("edges"),
      py::arg("most"), py::arg("total"),
      "(distinct values of each segment, their bits), None beyond `most` in one or `total` in all");
  m.def("index_values", &find_indices, py::arg("address"), py::arg("scalar"), py::arg("edges"),
        py::arg("sizes"), py::arg("bits"), py::arg("itemsize"), py::arg("out"),
        "Writes the index of each weight's value to an address; counts of the values");
  py::class_<Weights>(m, "Weights")
      .def(py::init<std::uint64_t, Scalar, const Int64s&>(), py::arg("address"), py::arg("scalar"),
           py::arg("edges"), "Contiguous weights at an address, which must outlive this object")
      .def_property_readonly("nonfinite", &Weights::nonfinite)
      .def("ranges", &Weights::ranges, "(lowest, highest) of each segment")
      .def("spreads", &Weights::spreads, "Population standard deviation of each segment")
      .def("occupied_bins", &Weights::occupied_bins, py::arg("number"), py::arg("signs"),
           py::arg("first"), py::arg("last"),
           "Of segments first … last - 1: (how many are occupied in each, slots, counts, means)")
      .def("look_up_bins", &Weights::look_up_bins, py::arg("number"), py::arg("signs"),
           py::arg("sizes"), py::arg("slots"), py::arg("table"), py::arg("out"),
           "Writes the entry of each weight's bin to an address, which may be that of the weights");
}

}  // namespace softq::bindings
