#include "softq/pairs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <ranges>
#include <utility>
#include <vector>

#include "softq/checks.h"
#include "softq/density.h"
#include "softq/kernels.h"
#include "softq/threads.h"
#include "softq/well.h"
#include "sort.h"

namespace softq {
namespace {

// Fixed, so that sums of floating-point numbers do not depend on the thread count.
constexpr std::size_t chunk_length = std::size_t{1} << 12;
constexpr std::size_t tile_length = 1024;

template <class T>
Extent<T> checked_extent(const T* theta, std::size_t size) {
  check_size(size);
  const Extent<T> range = extent<T, T>(theta, size);
  check_finite(static_cast<std::uint64_t>(range.nonfinite), size);
  return range;
}

// The smallest value for which `reached`, false up to some value and true from there on, is true.
template <class T, class Reached>
T bisect(const Reached& reached) {
  using Bits = OrderedBits<T>;
  auto low = Bits::encode(-std::numeric_limits<T>::infinity());
  auto high = Bits::encode(std::numeric_limits<T>::infinity());
  while (low < high) {
    const auto middle = low + (high - low) / 2;
    if (reached(Bits::decode(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return Bits::decode(high);
}

// Arrays of a chunk's length that the thread keeps: a pool thread's stack may be small.
template <std::size_t arrays>
std::array<std::uint32_t*, arrays> ranks() {
  thread_local Scratch<std::uint32_t> scratch;
  std::array<std::uint32_t*, arrays> rows;
  std::uint32_t* first = scratch.reserve(arrays * chunk_length);
  for (std::size_t a = 0; a < arrays; ++a) rows[a] = first + a * chunk_length;
  return rows;
}

// Sorted weights, and which of them are closer to one than the width, with differences in double.
template <class Item>
class Neighbours {
  using T = decltype(Item::value);
  static constexpr std::size_t stride = sizeof(Item) / sizeof(T);

 public:
  Neighbours(const Sorted<Item>& sorted, std::size_t size, double width)
      : items_(sorted.items()), size_(size), width_(width) {}

  double x(std::size_t i) const { return static_cast<double>(items_[i].value); }

  // The neighbours of weight i are [low, high), itself and equal ones included; for i from begin
  // to end. Both arrays have chunk_length places.
  void find(std::size_t begin, std::size_t end, std::uint32_t* low, std::uint32_t* high) const {
    const std::size_t size = end - begin;
    const std::size_t padded = (size + rank_block - 1) / rank_block * rank_block;
    const auto& set = kernels().weights<T>();
    thread_local Scratch<T> scratch;
    T* own = scratch.reserve(3 * chunk_length);
    T* first = own + chunk_length;
    T* behind = first + chunk_length;
    for (std::size_t i = 0; i < size; ++i) own[i] = items_[begin + i].value;
    std::fill(own + size, own + padded, own[size - 1]);
    if (set.windows(own, padded, width_, first, behind)) search(own, padded, first, behind);
    set.ranks(&items_->value, stride, first, padded, rank_of(first[0]), low);
    set.ranks(&items_->value, stride, behind, padded, rank_of(behind[0]), high);
  }

 private:
  // Bit by bit, where T is so fine that many values differ from a weight by the same double.
  void search(const T* own, std::size_t size, T* first, T* behind) const {
    for (std::size_t i = 0; i < size; ++i) {
      if (first[i] == first[i] && behind[i] == behind[i]) continue;
      const bool again = i > 0 && own[i] == own[i - 1];
      const auto value = static_cast<double>(own[i]);
      first[i] = again ? first[i - 1] : bisect<T>([&](T v) { return value - v < width_; });
      behind[i] = again ? behind[i - 1] : bisect<T>([&](T v) { return !(v - value < width_); });
    }
  }

  std::size_t rank_of(T key) const {
    return static_cast<std::size_t>(
        std::ranges::lower_bound(items_, items_ + size_, key, {}, &Item::value) - items_);
  }

  const Item* items_;
  std::size_t size_;
  double width_;
};

// A power of two, so that no product is rounded: how deep weights are in the wells of others is
// added up in units in which a well is about as deep as 1.
double depth_unit(double width) {
  return std::ldexp(1.0, std::clamp(-std::ilogb(width), -1022, 1023));
}

// Sorted weights in blocks of 2, 4, 8, …, with the sum of the distances of a block's weights from
// its first one, and from its last one.
template <class Item>
class Depths {
 public:
  Depths(const Item* items, std::size_t size, double width)
      : items_(items), unit_(depth_unit(width)), width_(width * unit_) {
    for (std::size_t count = size / 2; count > 0; count /= 2) levels_.push_back(above(count));
  }

  // |V| / w of weight i, whose neighbours are [low, high). The depths of a block's weights add up
  // to the number of weights times the depth of the farthest one, and their distances from that:
  // nothing cancels.
  double occupancy(std::size_t i, std::size_t low, std::size_t high) const {
    double sum = 0;
    for_blocks(low, i + 1, [&](std::size_t level, std::size_t block, double weights) {
      sum += weights * (width_ - distance(i, block << level)) + from_first(level, block);
    });
    for_blocks(i + 1, high, [&](std::size_t level, std::size_t block, double weights) {
      const std::size_t last = ((block + 1) << level) - 1;
      sum += weights * (width_ - distance(last, i)) + from_last(level, block);
    });
    return std::max(sum / width_, 1.0);
  }

 private:
  struct Level {
    std::vector<double> from_first, from_last;
  };

  // The largest blocks that make up [begin, end).
  template <class Body>
  static void for_blocks(std::size_t begin, std::size_t end, const Body& body) {
    double weights = 1;
    for (std::size_t level = 0; begin < end; ++level, begin /= 2, end /= 2, weights *= 2) {
      if (begin % 2 != 0) body(level, begin++, weights);
      if (end % 2 != 0) body(level, --end, weights);
    }
  }

  // The next level, of so many blocks.
  Level above(std::size_t count) const {
    const std::size_t half = levels_.size();
    const auto weights = static_cast<double>(std::size_t{1} << half);
    Level next{std::vector<double>(count), std::vector<double>(count)};
    parallel_chunks(count, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
      for (std::size_t b = begin; b < end; ++b) {
        const std::size_t first = 2 * b << half;
        const std::size_t middle = first + (std::size_t{1} << half);
        const std::size_t last = middle + (std::size_t{1} << half) - 1;
        next.from_first[b] = from_first(half, 2 * b) + from_first(half, 2 * b + 1) +
                             weights * distance(middle, first);
        next.from_last[b] = from_last(half, 2 * b) + from_last(half, 2 * b + 1) +
                            weights * distance(last, middle - 1);
      }
    });
    return next;
  }

  double distance(std::size_t upper, std::size_t lower) const {
    return unit_ *
           (static_cast<double>(items_[upper].value) - static_cast<double>(items_[lower].value));
  }
  double from_first(std::size_t level, std::size_t block) const {
    return level == 0 ? 0 : levels_[level - 1].from_first[block];
  }
  double from_last(std::size_t level, std::size_t block) const {
    return level == 0 ? 0 : levels_[level - 1].from_last[block];
  }

  const Item* items_;
  double unit_, width_;
  std::vector<Level> levels_;
};

}  // namespace

template <class T>
double pair_energy_sort(const T* theta, std::size_t size, double width) {
  const Extent<T> range = checked_extent(theta, size);
  if (size < 2) return 0;
  const Sorted<Value<T>> sorted(theta, size, range);
  const Neighbours<Value<T>> near(sorted, size, width);
  // From one gap to the next, the pairs that straddle it lose those of the weight between them with
  // lower ones and win those with higher ones.
  const auto change = allocate_lines<std::int32_t>(size);
  struct Part {
    std::int64_t pairs = 0;  // with the lower weight in this chunk
    std::int64_t change = 0;
    double distance = 0;
  };
  std::vector<Part> parts((size + chunk_length - 1) / chunk_length);
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    const auto [low, high] = ranks<2>();
    near.find(begin, end, low, high);
    Part part;
    for (std::size_t i = begin; i < end; ++i) {
      const std::int64_t below = static_cast<std::int64_t>(i) - low[i - begin];
      const std::int64_t above = high[i - begin] - static_cast<std::int64_t>(i) - 1;
      change[i] = static_cast<std::int32_t>(above - below);
      part.pairs += above;
      part.change += above - below;
    }
    parts[chunk] = part;
  });
  std::int64_t pairs = 0;
  std::int64_t straddling = 0;
  for (auto& part : parts) {
    pairs += part.pairs;
    straddling += std::exchange(part.change, straddling);
  }
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    std::int64_t over = parts[chunk].change;  // pairs over the gap below weight i, then above it
    double distances[4] = {};                 // sums that need not wait for each other
    for (std::size_t i = begin; i < end; ++i) {
      over += change[i];
      if (over > 0) distances[i % 4] += (near.x(i + 1) - near.x(i)) * static_cast<double>(over);
    }
    parts[chunk].distance = distances[0] + distances[1] + distances[2] + distances[3];
  });
  double distance = 0;
  for (const auto& part : parts) distance += part.distance;
  return 2 * (distance - width * static_cast<double>(pairs));
}

template <class T>
void pair_force_sort(const T* theta, std::size_t size, double width, std::int64_t* force) {
  const Extent<T> range = checked_extent(theta, size);
  if (size == 0) return;
  const Sorted<Indexed<T>> sorted(theta, size, range);
  const Neighbours<Indexed<T>> near(sorted, size, width);
  const Indexed<T>* items = sorted.items();
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    const auto [low, high, tie_end] = ranks<3>();
    near.find(begin, end, low, high);
    // Equal weights are neighbours that exert no force.
    const auto equal = [&](std::size_t i) {
      return std::ranges::equal_range(items, items + size, items[i].value, {}, &Indexed<T>::value);
    };
    auto edge = static_cast<std::size_t>(equal(end - 1).end() - items);
    for (std::size_t i = end; i-- > begin;) {
      edge = items[i].value == items[i + 1].value ? edge : i + 1;
      tie_end[i - begin] = static_cast<std::uint32_t>(edge);
    }
    edge = static_cast<std::size_t>(equal(begin).begin() - items);
    for (std::size_t i = begin; i < end; ++i) {
      edge = i > begin && items[i].value != items[i - 1].value ? i : edge;
      const std::size_t k = i - begin;
      force[items[i].index] = static_cast<std::int64_t>(edge - low[k]) -
                              static_cast<std::int64_t>(high[k] - tie_end[k]);
    }
  });
}

template <class T>
double pair_energy_direct(const T* theta, std::size_t size, double width) {
  checked_extent(theta, size);
  const std::vector<double> x(theta, theta + size);
  std::vector<double> parts((size + tile_length - 1) / tile_length);
  const auto& set = kernels();
  parallel_chunks(size, tile_length, [&](std::size_t tile, std::size_t begin, std::size_t end) {
    const std::size_t height = end - begin;
    // The tile on the diagonal holds each pair twice and each weight with itself once: U(0) = -w.
    double energy = set.pair_energy(&x[begin], height, &x[begin], height, width) +
                    static_cast<double>(height) * width;
    for (std::size_t j = end; j < size; j += tile_length) {
      check_interruption();
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
  checked_extent(theta, size);
  const std::vector<double> x(theta, theta + size);
  const auto& set = kernels();
  parallel_chunks(size, tile_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    std::fill(force + begin, force + end, 0);
    for (std::size_t j = 0; j < size; j += tile_length) {
      check_interruption();
      set.pair_force(&x[begin], end - begin, &x[j], std::min(tile_length, size - j), width,
                     force + begin);
    }
  });
}

template <class T>
void pair_occupancy_sort(const T* theta, std::size_t size, double width, double* occupancy) {
  const Extent<T> range = checked_extent(theta, size);
  if (size == 0) return;
  const Sorted<Indexed<T>> sorted(theta, size, range);
  const Neighbours<Indexed<T>> near(sorted, size, width);
  const Indexed<T>* items = sorted.items();
  const Depths<Indexed<T>> depths(items, size, width);
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    const auto [low, high] = ranks<2>();
    near.find(begin, end, low, high);
    for (std::size_t i = begin; i < end; ++i)
      occupancy[items[i].index] = depths.occupancy(i, low[i - begin], high[i - begin]);
  });
}

template <class T>
void pair_occupancy_direct(const T* theta, std::size_t size, double width, double* occupancy) {
  checked_extent(theta, size);
  const std::vector<double> x(theta, theta + size);
  const auto& set = kernels();
  const double unit = depth_unit(width);
  parallel_chunks(size, tile_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    std::fill(occupancy + begin, occupancy + end, 0);
    for (std::size_t j = 0; j < size; j += tile_length) {
      check_interruption();
      set.pair_depth(&x[begin], end - begin, &x[j], std::min(tile_length, size - j), width, unit,
                     occupancy + begin);
    }
    for (std::size_t i = begin; i < end; ++i) occupancy[i] /= width * unit;
  });
}

#define SOFTQ_INSTANTIATE(T)                                                        \
  template double pair_energy_sort<T>(const T*, std::size_t, double);               \
  template void pair_force_sort<T>(const T*, std::size_t, double, std::int64_t*);   \
  template double pair_energy_direct<T>(const T*, std::size_t, double);             \
  template void pair_force_direct<T>(const T*, std::size_t, double, std::int64_t*); \
  template void pair_occupancy_sort<T>(const T*, std::size_t, double, double*);     \
  template void pair_occupancy_direct<T>(const T*, std::size_t, double, double*);
SOFTQ_INSTANTIATE(float)
SOFTQ_INSTANTIATE(double)

}  // namespace softq
