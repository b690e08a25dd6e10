#include "softq/pairs.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "softq/density.h"
#include "softq/kernels.h"
#include "softq/threads.h"
#include "softq/well.h"
#include "sort.h"

namespace softq {
namespace {

// Fixed, so that sums of floating-point numbers do not depend on the thread count.
constexpr std::size_t chunk_length = std::size_t{1} << 14;
constexpr std::size_t tile_length = 1024;

template <class T>
void check(const T* theta, std::size_t size) {
  if (size > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("a layer has at most 4294967295 weights, not " +
                                std::to_string(size));
  }
  const std::int64_t nonfinite = extent<T, T>(theta, size).nonfinite;
  if (nonfinite > 0) {
    throw std::invalid_argument(std::to_string(nonfinite) + " of " + std::to_string(size) +
                                " weights are not finite (NaN or inf)");
  }
}

// For each sorted weight i in [begin, end): the interacting weights are [low, high), those equal to
// it [tie, tie_end). At(i) gives the i-th weight as double. Differences are monotone, so all four
// only advance.
template <class At, class Body>
void for_neighbours(const At& at, std::size_t size, std::size_t begin, std::size_t end,
                    double width, const Body& body) {
  if (begin >= end) return;
  const auto first_where = [&](std::size_t from, std::size_t to, const auto& holds) {
    while (from < to) {
      const std::size_t middle = from + (to - from) / 2;
      if (holds(middle)) {
        to = middle;
      } else {
        from = middle + 1;
      }
    }
    return from;
  };
  const double start = at(begin);
  std::size_t low = first_where(0, begin, [&](std::size_t j) { return start - at(j) < width; });
  std::size_t tie = first_where(0, begin, [&](std::size_t j) { return at(j) == start; });
  std::size_t tie_end = begin + 1;
  std::size_t high =
      first_where(begin + 1, size, [&](std::size_t j) { return !(at(j) - start < width); });
  for (std::size_t i = begin; i < end; ++i) {
    const double x = at(i);
    while (!(x - at(low) < width)) ++low;
    if (at(tie) != x) tie = i;
    tie_end = std::max(tie_end, i + 1);
    while (tie_end < size && at(tie_end) == x) ++tie_end;
    high = std::max(high, tie_end);
    while (high < size && at(high) - x < width) ++high;
    body(i, low, tie, tie_end, high);
  }
}

template <class Storage>
std::unique_ptr<Storage[]> allocate(std::size_t size) {
  return std::make_unique_for_overwrite<Storage[]>(size);
}

}  // namespace

template <class T>
double pair_energy_sort(const T* theta, std::size_t size, double width) {
  check(theta, size);
  if (size < 2) return 0;
  using Bits = OrderedBits<T>;
  using Key = typename Bits::Key;
  auto items = allocate<Key>(size);
  auto buffer = allocate<Key>(size);
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) items[i] = Bits::encode(theta[i]);
  });
  const Key* sorted =
      radix_sort(items.get(), buffer.get(), size, [](const Key& key) { return key; });
  const auto at = [&](std::size_t i) { return static_cast<double>(Bits::decode(sorted[i])); };

  struct Part {
    std::int64_t pairs = 0;       // with the upper weight in this chunk
    std::int64_t straddling = 0;  // over the gap before this chunk
    double distance = 0;
  };
  std::vector<Part> parts((size + chunk_length - 1) / chunk_length + 1);
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    std::int64_t below = 0;
    std::int64_t above = 0;
    for_neighbours(at, size, begin, end, width,
                   [&](std::size_t i, std::size_t low, std::size_t, std::size_t, std::size_t high) {
                     below += static_cast<std::int64_t>(i - low);
                     above += static_cast<std::int64_t>(high - i - 1);
                   });
    parts[chunk].pairs = below;
    parts[chunk + 1].straddling = above - below;
  });
  std::int64_t pairs = 0;
  std::int64_t straddling = 0;
  for (auto& part : parts) {
    pairs += part.pairs;
    straddling += part.straddling;
    part.straddling = straddling;
  }
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    std::int64_t over = parts[chunk].straddling;  // pairs over the gap between i - 1 and i
    double distance = 0;
    double last = begin > 0 ? at(begin - 1) : 0;
    for_neighbours(at, size, begin, end, width,
                   [&](std::size_t i, std::size_t low, std::size_t, std::size_t, std::size_t high) {
                     const double x = at(i);
                     if (over > 0) distance += (x - last) * static_cast<double>(over);
                     over += static_cast<std::int64_t>(high - i - 1) -
                             static_cast<std::int64_t>(i - low);
                     last = x;
                   });
    parts[chunk].distance = distance;
  });
  double distance = 0;
  for (const auto& part : parts) distance += part.distance;
  return 2 * (distance - width * static_cast<double>(pairs));
}

template <class T>
void pair_force_sort(const T* theta, std::size_t size, double width, std::int64_t* force) {
  check(theta, size);
  if (size == 0) return;
  using Bits = OrderedBits<T>;
  struct Item {
    typename Bits::Key key;
    std::uint32_t index;
  };
  auto items = allocate<Item>(size);
  auto buffer = allocate<Item>(size);
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      items[i] = {Bits::encode(theta[i]), static_cast<std::uint32_t>(i)};
  });
  const Item* sorted =
      radix_sort(items.get(), buffer.get(), size, [](const Item& item) { return item.key; });
  const auto at = [&](std::size_t i) { return static_cast<double>(Bits::decode(sorted[i].key)); };
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    for_neighbours(at, size, begin, end, width,
                   [&](std::size_t i, std::size_t low, std::size_t tie, std::size_t tie_end,
                       std::size_t high) {
                     force[sorted[i].index] = static_cast<std::int64_t>(tie - low) -
                                              static_cast<std::int64_t>(high - tie_end);
                   });
  });
}

template <class T>
double pair_energy_direct(const T* theta, std::size_t size, double width) {
  check(theta, size);
  const std::vector<double> x(theta, theta + size);
  std::vector<double> parts((size + tile_length - 1) / tile_length);
  const auto& set = kernels();
  parallel_chunks(size, tile_length, [&](std::size_t tile, std::size_t begin, std::size_t end) {
    const std::size_t height = end - begin;
    // The tile on the diagonal holds each pair twice and each weight with itself once: U(0) = -w.
    double energy = set.pair_energy(&x[begin], height, &x[begin], height, width) +
                    static_cast<double>(height) * width;
    for (std::size_t j = end; j < size; j += tile_length) {
      energy +=
          2 * set.pair_energy(&x[begin], height, &x[j], std::min(tile_length, size - j), width);
    }
    parts[tile] = energy;
  });
  double energy = 0;
  for (const double part : parts) energy += part;
  return energy;
}

template <class T>
void pair_force_direct(const T* theta, std::size_t size, double width, std::int64_t* force) {
  check(theta, size);
  const std::vector<double> x(theta, theta + size);
  const auto& set = kernels();
  parallel_chunks(size, tile_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    std::fill(force + begin, force + end, 0);
    for (std::size_t j = 0; j < size; j += tile_length) {
      set.pair_force(&x[begin], end - begin, &x[j], std::min(tile_length, size - j), width,
                     force + begin);
    }
  });
}

#define SOFTQ_INSTANTIATE(T)                                                      \
  template double pair_energy_sort<T>(const T*, std::size_t, double);             \
  template void pair_force_sort<T>(const T*, std::size_t, double, std::int64_t*); \
  template double pair_energy_direct<T>(const T*, std::size_t, double);           \
  template void pair_force_direct<T>(const T*, std::size_t, double, std::int64_t*);
SOFTQ_INSTANTIATE(float)
SOFTQ_INSTANTIATE(double)

}  // namespace softq
