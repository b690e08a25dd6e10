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
using Doubles = Array<double>;
using Digits64 = Array<std::int64_t>;  // (n, 4): sums, see wide.h

constexpr std::int32_t most_bins = 1 << 20;

Digits64 table_of(const std::vector<Wide>& sums) {
  Digits64 table({sums.size(), std::size_t{4}});
  std::int64_t* out = table.mutable_data();
  for (const Wide sum : sums)
    for (const std::int64_t digit : digits_of(sum)) *out++ = digit;
  return table;
}

std::vector<Wide> wide_of(const Digits64& table) {
  if (table.ndim() != 2 || table.shape(1) != 4) throw py::value_error("a sum has four digits");
  std::vector<Wide> sums;
  for (py::ssize_t k = 0; k < table.shape(0); ++k) {
    const std::int64_t* row = table.data(k, 0);
    sums.push_back(from_digits({row[0], row[1], row[2], row[3]}));
  }
  return sums;
}

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

py::object find_codes(std::uint64_t address, Scalar scalar, const Int64s& edges, std::size_t most,
                      std::size_t total, std::size_t itemsize, std::uint64_t out) {
  const Segmented layer = layer_at(address, scalar, edges);
  if (itemsize != 1 && itemsize != 2 && itemsize != 4)
    throw py::value_error("itemsize must be 1, 2 or 4");
  if (most > std::size_t{1} << std::min<std::size_t>(8 * itemsize, 24))
    throw py::value_error("itemsize is too small for most");
  const auto found =
      released([&] { return code_values(layer, most, total, itemsize, pointer<void>(out)); });
  if (!found) return py::none();
  return py::make_tuple(array_of(found->values.sizes), array_of(found->values.bits),
                        array_of(found->counts));
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

  // Those of other processes' weights included.
  void set_ranges(const Doubles& low, const Doubles& high) {
    if (low.size() != std::ssize(ranges_.low) || high.size() != low.size())
      throw py::value_error("each segment requires a range");
    ranges_ = {vector_of(low), vector_of(high), 0};
  }

  py::tuple moments() const {
    check();
    const std::vector<Moments> found = released([&] { return softq::moments(layer_, ranges_); });
    std::vector<Wide> sums;
    std::int64_t zeros = 0;
    for (const Moments& own : found) {
      sums.insert(sums.end(), {own.first, own.second});
      zeros += own.zeros;
    }
    return py::make_tuple(table_of(sums), zeros);
  }

  // From the moments of all processes' weights.
  py::array_t<double> spreads(const Digits64& digits, const Int64s& sizes) const {
    const std::vector<Wide> sums = wide_of(digits);
    const std::vector<std::int64_t> all = vector_of(sizes);
    if (sums.size() != 2 * layer_.segments() || all.size() != layer_.segments())
      throw py::value_error("each segment requires moments and a size");
    std::vector<Moments> found;
    for (std::size_t s = 0; s < all.size(); ++s) found.push_back({sums[2 * s], sums[2 * s + 1], 0});
    return array_of(softq::spreads(layer_.scalar, ranges_, found, all));
  }

  py::tuple occupied_bins(std::int32_t number, bool signs, std::size_t first,
                          std::size_t last) const {
    check(number, first, last);
    const Bins bins{number, signs};
    BinSums found;
    const std::vector<double> means = released([&] {
      found = softq::bin_sums(layer_, ranges_, bins, first, last);
      return softq::bin_means(layer_.scalar, ranges_, bins, found, first);
    });
    const std::vector<std::int32_t> counts(found.count.begin(), found.count.end());
    return py::make_tuple(array_of(found.sizes), array_of(found.slot), array_of(counts),
                          array_of(means));
  }

  py::tuple bin_sums(std::int32_t number, bool signs, std::size_t first, std::size_t last) const {
    check(number, first, last);
    const BinSums found =
        released([&] { return softq::bin_sums(layer_, ranges_, {number, signs}, first, last); });
    return py::make_tuple(array_of(found.sizes), array_of(found.slot), array_of(found.count),
                          table_of(found.sum), array_of(found.low), array_of(found.high));
  }

  py::array_t<double> bin_means(std::int32_t number, const Int64s& sizes, const Int64s& counts,
                                const Digits64& digits, const Doubles& low, const Doubles& high,
                                std::size_t first) const {
    const std::size_t last = first + static_cast<std::size_t>(sizes.size());
    check(number, first, last);
    BinSums sums;
    sums.sizes = vector_of(sizes);
    sums.count = vector_of(counts);
    sums.sum = wide_of(digits);
    sums.low = vector_of(low);
    sums.high = vector_of(high);
    sums.slot.resize(sums.count.size());
    const auto total = static_cast<std::size_t>(check_sizes(layer_.part(first, last), sums.sizes));
    for (const std::size_t size :
         {sums.count.size(), sums.sum.size(), sums.low.size(), sums.high.size()})
      if (size != total) throw py::value_error("the bins do not fit the segments");
    return array_of(softq::bin_means(layer_.scalar, ranges_, {number, false}, sums, first));
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

  void check(std::int32_t bins, std::size_t first, std::size_t last) const {
    check(bins);
    if (first > last || last > layer_.segments())
      throw py::value_error("there are no such segments");
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
  m.def(
      "code_values", &find_codes, py::arg("address"), py::arg("scalar"), py::arg("edges"),
      py::arg("most"), py::arg("total"), py::arg("itemsize"), py::arg("out"),
      "distinct_values() and their counts; writes the index of each weight's value to an address");
  py::class_<Weights>(m, "Weights")
      .def(py::init<std::uint64_t, Scalar, const Int64s&>(), py::arg("address"), py::arg("scalar"),
           py::arg("edges"), "Contiguous weights at an address, which must outlive this object")
      .def_property_readonly("nonfinite", &Weights::nonfinite)
      .def("ranges", &Weights::ranges, "(lowest, highest) of each segment")
      .def("occupied_bins", &Weights::occupied_bins, py::arg("number"), py::arg("signs"),
           py::arg("first"), py::arg("last"),
           "Of segments first … last - 1: (how many are occupied in each, slots, counts, means)")
      .def("set_ranges", &Weights::set_ranges, py::arg("low"), py::arg("high"),
           "Replaces the ranges by those of all processes' weights")
      .def("moments", &Weights::moments,
           "(sums of the weights and of their squares, digits (2G, 4); how many weights are 0)")
      .def("spreads", &Weights::spreads, py::arg("moments"), py::arg("sizes"),
           "Population standard deviation of each segment of so many weights, from the moments")
      .def("bin_sums", &Weights::bin_sums, py::arg("number"), py::arg("signs"), py::arg("first"),
           py::arg("last"),
           "(occupied bins of each segment, their slots, counts, digits of sums (n, 4), lowest, "
           "highest)")
      .def("bin_means", &Weights::bin_means, py::arg("number"), py::arg("sizes"), py::arg("counts"),
           py::arg("sums"), py::arg("low"), py::arg("high"), py::arg("first"),
           "Mean weight of each of these bins, of segments from `first` on")
      .def("look_up_bins", &Weights::look_up_bins, py::arg("number"), py::arg("signs"),
           py::arg("sizes"), py::arg("slots"), py::arg("table"), py::arg("out"),
           "Writes the entry of each weight's bin to an address, which may be that of the weights");
}

}  // namespace softq::bindings
