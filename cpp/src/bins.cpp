#include "softq/bins.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <mutex>
#include <numeric>

#include "each_segment.h"
#include "items.h"
#include "schedule.h"
#include "scratch.h"
#include "slots.h"
#include "softq/binning.h"
#include "softq/kernels.h"
#include "softq/threads.h"

namespace softq {
namespace {

// Any range of finite numbers: what would overflow or underflow is scaled by a power of two, which
// changes no rounding.
template <class T>
Binning<T> binning_of(double low, double high, std::int32_t bins) {
  constexpr T wide = static_cast<T>(sizeof(T) == 4 ? 0x1p112 : 0x1p1008);
  constexpr T narrow = static_cast<T>(sizeof(T) == 4 ? 0x1p-62 : 0x1p-894);
  Binning<T> found;
  found.bins = bins;
  if (!(low < high)) return found;
  const T range = static_cast<T>(high) - static_cast<T>(low);
  if (!(range < wide)) found.factor = static_cast<T>(0x1p-24);
  if (range < narrow) found.factor = Binning<T>::narrow_factor;
  found.low = static_cast<T>(low) * found.factor;
  const T scaled = static_cast<T>(high) * found.factor - found.low;
  found.inverse = static_cast<T>(bins) / scaled;
  found.spacing = static_cast<double>(scaled) / bins;
  return found;
}

// The exponent of the unit in which the weights are added up: the largest is below 2^fraction_bits
// units. The float32 ones above 2^-26 of that, and those of fewer bits above less, are whole.
int grid_of(double low, double high, double factor) {
  const double largest = std::max(std::fabs(low), std::fabs(high)) * factor;
  return largest > 0 ? std::max(std::ilogb(largest) + 1 - fraction_bits, -1023) : 0;
}

// The sum of the weights, in units of the grid, is upper * 2^32 + sum: 64 bits are enough for as
// many weights as are added before the sum is carried.
template <class T>
struct Bin {
  static constexpr std::uint32_t uncarried = 1U << 12;  // weights, each below 2^51

  std::int64_t sum, upper;
  T low, high;
  std::uint32_t count;

  bool rare() const { return count % uncarried == 0; }

  void add(T x, std::int64_t fixed) {
    sum += fixed;
    low = x < low ? x : low;
    high = x > high ? x : high;
    ++count;
  }

  void carry() {
    upper += sum >> 32;
    sum &= 0xFFFFFFFF;
  }

  void add(const Bin& other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
    carry();
    upper += other.upper + (other.sum >> 32);
    sum += other.sum & 0xFFFFFFFF;
    carry();
    count += other.count;
  }

  Wide total() const { return Wide{upper} * (Wide{1} << 32) + sum; }
};

// One bin for each slot; all counts are 0 between two uses, whatever is thrown.
template <class T>
struct Table {
  Scratch<Bin<T>> scratch;
  Bin<T>* bins = nullptr;
  std::vector<std::int32_t> touched;
  std::vector<std::int64_t> fixed;  // the weights of a block, in units of the grid
  int grid = 0;                     // its exponent

  // For so many slots, of which so many are touched at most.
  void reserve(std::size_t slots, std::size_t most, int unit) {
    grid = unit;
    bins = scratch.reserve(slots);
    touched.reserve(std::min(slots, most));
    fixed.resize(block_length);
  }

  // Before a weight is added to a bin that is rare().
  void prepare(Bin<T>& bin, std::int32_t slot, T x) {
    if (bin.count == 0) return touch(bin, slot, x);
    bin.carry();
  }

  void touch(Bin<T>& bin, std::int32_t slot, T x) {
    bin = {0, 0, x, x, 0};
    touched.push_back(slot);
  }
};

std::size_t slots_of(const Bins& bins) {
  return static_cast<std::size_t>(bins.number) * (bins.signs ? 3 : 1);
}

template <class T>
void split_by_sign(const T* block, std::size_t size, std::int32_t* slot) {
  for (std::size_t i = 0; i < size; ++i) {
    slot[i] = 3 * slot[i] + 1 + (block[i] > 0 ? 1 : 0) - (block[i] < 0 ? 1 : 0);
  }
}

template <class T, class Storage>
void fill(const Storage* theta, std::size_t begin, std::size_t end, const Binning<T>& binning,
          const Bins& bins, Table<T>& table) {
  const auto& set = kernels().weights<T>();
  const double scale = std::ldexp(1.0, -table.grid);
  std::int64_t* fixed = table.fixed.data();
  const auto add = [&](const T* block, std::int32_t* slot, std::size_t size, std::size_t) {
    set.fixed(block, size, scale, fixed);
    if (bins.signs) split_by_sign(block, size, slot);
    for (std::size_t i = 0; i < size; ++i) {
      Bin<T>& bin = table.bins[slot[i]];
      if (bin.rare()) table.prepare(bin, slot[i], block[i]);
      bin.add(block[i], fixed[i]);
    }
  };
  for_slots<T>(theta, begin, end, binning, add);
}

// Empties `part` into `whole`.
template <class T>
void merge(Table<T>& part, Table<T>& whole) {
  for (const std::int32_t slot : part.touched) {
    Bin<T>& from = part.bins[slot];
    Bin<T>& to = whole.bins[slot];
    if (to.count == 0) whole.touch(to, slot, from.low);
    to.add(from);
    from.count = 0;
  }
  part.touched.clear();
}

struct BinSum {
  std::int32_t slot;
  std::int64_t count;
  Wide sum;
  double low, high;
};

// The occupied bins of one segment; the table is empty again.
template <class T>
std::vector<BinSum> take(Table<T>& table) {
  std::vector<BinSum> found;
  found.reserve(table.touched.size());
  std::sort(table.touched.begin(), table.touched.end());
  for (const std::int32_t slot : table.touched) {
    Bin<T>& bin = table.bins[slot];
    found.push_back({slot, bin.count, bin.total(), static_cast<double>(bin.low),
                     static_cast<double>(bin.high)});
    bin.count = 0;
  }
  table.touched.clear();
  return found;
}

template <class T, class Storage>
std::vector<BinSum> bin_segment(const Storage* theta, std::size_t size, const Binning<T>& binning,
                                const Bins& bins, int grid) {
  thread_local Table<T> table;
  if (size <= chunk_length) {
    table.reserve(slots_of(bins), size, grid);
    fill(theta, 0, size, binning, bins, table);
    return take(table);
  }
  // Long enough for the counting to outweigh the merging.
  const std::size_t length = std::max(chunk_length, 16 * slots_of(bins));
  Table<T> whole;
  whole.reserve(slots_of(bins), size, grid);
  std::mutex merging;
  parallel_chunks(size, length, [&](std::size_t, std::size_t begin, std::size_t end) {
    table.reserve(slots_of(bins), end - begin, grid);
    fill(theta, begin, end, binning, bins, table);
    const std::lock_guard lock(merging);
    merge(table, whole);
  });
  return take(whole);
}

template <class Item, class T, class Storage>
void look_up(const Storage* theta, std::size_t size, const Binning<T>& binning, const Bins& bins,
             std::size_t occupied, const std::int32_t* slots, const Item* table, std::byte* out) {
  thread_local Scratch<Item> scratch;
  Item* entries = scratch.reserve(slots_of(bins));
  for (std::size_t k = 0; k < occupied; ++k) entries[slots[k]] = table[k];
  const Item* shared = entries;  // with the threads that share in a large segment
  const auto write = [&](const T* block, std::int32_t* slot, std::size_t count, std::size_t first) {
    if (bins.signs) split_by_sign(block, count, slot);
    // Bytes: the weights that are read may lie in the same place.
    std::byte* to = out + first * sizeof(Item);
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(to + i * sizeof(Item), &shared[slot[i]], sizeof(Item));
    }
  };
  if (size <= chunk_length) return for_slots<T>(theta, 0, size, binning, write);
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    for_slots<T>(theta, begin, end, binning, write);
  });
}

}  // namespace

BinSums bin_sums(const Segmented& layer, const Ranges& ranges, const Bins& bins, std::size_t first,
                 std::size_t last) {
  const Segmented part = layer.part(first, last);
  std::vector<std::vector<BinSum>> found(part.segments());
  for_segments(part, [&]<class Storage, class T>(std::size_t s, const Storage* theta, T) {
    const double low = ranges.low[first + s];
    const double high = ranges.high[first + s];
    const auto binning = binning_of<T>(low, high, bins.number);
    const int grid = grid_of(low, high, static_cast<double>(binning.factor));
    found[s] = bin_segment(theta, part.size(s), binning, bins, grid);
  });
  BinSums all;
  for (const std::vector<BinSum>& own : found) {
    all.sizes.push_back(std::ssize(own));
    for (const BinSum& bin : own) {
      all.slot.push_back(bin.slot);
      all.count.push_back(bin.count);
      all.sum.push_back(bin.sum);
      all.low.push_back(bin.low);
      all.high.push_back(bin.high);
    }
  }
  return all;
}

std::vector<double> bin_means(Scalar scalar, const Ranges& ranges, const Bins& bins,
                              const BinSums& sums, std::size_t first) {
  std::vector<double> means;
  means.reserve(sums.slot.size());
  with_storage(scalar, [&]<class Storage, class T>(Storage, T) {
    for (std::size_t s = 0; s < sums.sizes.size(); ++s) {
      const double low = ranges.low[first + s];
      const double high = ranges.high[first + s];
      const double factor = static_cast<double>(binning_of<T>(low, high, bins.number).factor);
      const int grid = grid_of(low, high, factor);
      const std::size_t end = means.size() + static_cast<std::size_t>(sums.sizes[s]);
      for (std::size_t k = means.size(); k < end; ++k) {
        const auto count = static_cast<double>(sums.count[k]);
        const double mean = std::ldexp(static_cast<double>(sums.sum[k]) / count, grid);
        // -0 becomes 0
        means.push_back(std::clamp(mean, sums.low[k], sums.high[k]) / factor + 0.0);
      }
    }
  });
  return means;
}

void look_up_bins(const Segmented& layer, const Ranges& ranges, const Bins& bins,
                  const Places& places, const void* table, std::size_t itemsize, void* out) {
  const Uninterruptible writing;
  std::vector<std::size_t> first;  // of the places of each segment
  std::exclusive_scan(places.sizes.begin(), places.sizes.end(), std::back_inserter(first),
                      std::size_t{0});
  with_item(itemsize, [&]<class Item>(Item) {
    for_segments(layer, [&]<class Storage, class T>(std::size_t s, const Storage* theta, T) {
      const auto binning = binning_of<T>(ranges.low[s], ranges.high[s], bins.number);
      look_up(
          theta, layer.size(s), binning, bins, static_cast<std::size_t>(places.sizes[s]),
          places.slot.data() + first[s], static_cast<const Item*>(table) + first[s],
          static_cast<std::byte*>(out) + static_cast<std::size_t>(layer.edges[s]) * sizeof(Item));
    });
  });
}

}  // namespace softq
