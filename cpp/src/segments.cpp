#include "softq/segments.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>

#include "blocks.h"
#include "each_segment.h"
#include "schedule.h"
#include "softq/checks.h"
#include "softq/density.h"
#include "softq/kernels.h"

namespace softq {
namespace {

// Weights times the factor, about the centre, in units of the scale: fractions of one.
template <class T>
struct Unit {
  T factor;
  double centre;
  double scale;
  int exponent;  // scale = 2^-exponent

  Unit(double low, double high) {
    // Powers of two: of a range this narrow, in double only, the squares would underflow.
    factor = high - low < 0x1p-900 && sizeof(T) == 8 ? static_cast<T>(0x1p600) : T{1};
    centre = low * factor / 2 + high * factor / 2;
    exponent = std::ilogb(std::max(high * factor - centre, centre - low * factor)) + 1;
    scale = std::ldexp(1.0, -exponent);
  }
};

template <class T, class Storage>
Moments sum_of(const Storage* theta, std::size_t begin, std::size_t end, const Unit<T>& unit) {
  const auto& set = kernels().weights<T>();
  Moments sum;
  for_blocks<T>(theta, begin, end, unit.factor, [&](const T* block, std::size_t, std::size_t size) {
    std::int64_t first = 0;
    std::int64_t second = 0;
    set.power_sums(block, size, unit.centre, unit.scale, &first, &second);
    sum.first += first;
    sum.second += second;
    // Here, where the block is in the cache, another pass over the weights is saved.
    std::int32_t zeros = 0;
    for (std::size_t i = 0; i < size; ++i) zeros += block[i] == 0 ? 1 : 0;
    sum.zeros += zeros;
  });
  return sum;
}

template <class T, class Storage>
Moments moments_of(const Storage* theta, std::size_t size, double low, double high) {
  if (!(low < high)) return {0, 0, low == 0 ? static_cast<std::int64_t>(size) : 0};
  const Unit<T> unit(low, high);
  if (size <= chunk_length) return sum_of(theta, 0, size, unit);
  Moments sum;
  std::mutex merging;
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    const Moments part = sum_of(theta, begin, end, unit);
    const std::lock_guard lock(merging);
    sum.first += part.first;
    sum.second += part.second;
    sum.zeros += part.zeros;
  });
  return sum;
}

template <class T>
double spread(const Moments& sum, std::int64_t size, double low, double high) {
  if (!(low < high)) return 0;
  const Unit<T> unit(low, high);
  // Integers, so that nothing cancels: size^2 times the variance.
  const Wide squared = Wide{size} * sum.second - square(sum.first);
  const double deviation = std::sqrt(static_cast<double>(squared)) / static_cast<double>(size);
  return std::ldexp(deviation, unit.exponent - fraction_bits / 2) / unit.factor;
}

}  // namespace

Segmented Segmented::part(std::size_t first, std::size_t last) const {
  const std::int64_t begin = edges[first];
  Segmented found{
      static_cast<const std::byte*>(theta) + static_cast<std::size_t>(begin) * size_of(scalar),
      scalar,
      {}};
  found.edges.reserve(last - first + 1);
  for (std::size_t edge = first; edge <= last; ++edge) found.edges.push_back(edges[edge] - begin);
  return found;
}

Ranges ranges(const Segmented& layer) {
  Ranges found{std::vector<double>(layer.segments()), std::vector<double>(layer.segments())};
  for (std::size_t segment = 0; segment < layer.segments(); ++segment) {
    check_size(layer.size(segment));
  }
  std::atomic<std::uint64_t> nonfinite{0};
  for_segments(layer, [&]<class Storage, class T>(std::size_t segment, const Storage* theta, T) {
    const Extent<T> range = extent<Storage, T>(theta, layer.size(segment));
    found.low[segment] = static_cast<double>(range.low);
    found.high[segment] = static_cast<double>(range.high);
    if (range.nonfinite > 0) nonfinite += static_cast<std::uint64_t>(range.nonfinite);
  });
  found.nonfinite = nonfinite;
  return found;
}

std::vector<Moments> moments(const Segmented& layer, const Ranges& ranges) {
  std::vector<Moments> found(layer.segments());
  for_segments(layer, [&]<class Storage, class T>(std::size_t segment, const Storage* theta, T) {
    found[segment] =
        moments_of<T>(theta, layer.size(segment), ranges.low[segment], ranges.high[segment]);
  });
  return found;
}

std::vector<double> spreads(Scalar scalar, const Ranges& ranges,
                            const std::vector<Moments>& moments,
                            const std::vector<std::int64_t>& sizes) {
  std::vector<double> found(moments.size());
  with_storage(scalar, [&]<class Storage, class T>(Storage, T) {
    for (std::size_t s = 0; s < found.size(); ++s) {
      found[s] = spread<T>(moments[s], sizes[s], ranges.low[s], ranges.high[s]);
    }
  });
  return found;
}

}  // namespace softq
