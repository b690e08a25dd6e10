// What is coupled, as the kernels see it.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "device.h"
#include "softq/coupling.h"
#include "softq/pull.h"
#include "softq/sampling.h"
#include "softq/well.h"

namespace softq::cuda {

// As atomics and shuffles name it.
using Word = unsigned long long;

// What interacts with itself only: a layer, a segment of one, or the piece of either that this
// process holds. The weights are among those of the layer in this process.
struct Unit {
  std::uint64_t begin, size;
  std::uint64_t total;  // weights in all processes
  Block block;          // of which the weights are a part, from number `place` on
  std::uint64_t place;
  double width, strength;
  std::uint64_t index;  // of the layer in the model: the key of its random numbers
  std::uint64_t table;  // where its counts, their sums and its forces begin; no meaning if narrow
  std::uint64_t slot;   // where its counts begin among those that processes exchange, if shared
  std::uint32_t layer;
  std::uint32_t number;  // among the shared ones
  std::uint32_t shares;  // blocks that count its weights
  std::int32_t bins;
  Scalar scalar;
  bool first;    // of its layer
  bool shared;   // whether other processes hold more of it
  bool counted;  // of a shared one: whether this process counts it, of several that hold copies
};

// A part of a unit: the work of one block.
struct Share {
  std::uint32_t unit;
  std::uint64_t begin, end;
};

// Shares out units, each in proportion to its size, every share but a unit's last a multiple of 16.
// There are as many as the device runs at once (`blocks`), or some times as many, unless they would
// be shorter than 4096 weights.
std::vector<Share> partition(const std::vector<std::uint64_t>& sizes, std::uint64_t blocks);

// A unit of these can be coupled in shared memory: its counts have 16 bits.
inline constexpr std::uint64_t narrow_total = (std::uint64_t{1} << 16) - 1;
inline constexpr std::int32_t narrow_bins = 1 << 14;

// Narrow units are coupled by blocks of so many threads, one each, or, if they have few bins, by
// warps. Counts are cleared and summed up in packs of 16 bytes.
inline constexpr unsigned segment_threads = 256;
inline constexpr std::int32_t warp_bins = 1 << 11;
inline constexpr std::int32_t bins_in_pack = 8;
inline constexpr unsigned segment_warps = segment_threads / 32;
// Up to so many weights, their range is found by a warp, else by a block.
inline constexpr std::uint64_t warp_weights = 1 << 12;

// Integers that order as the finite weights do, all above 0.
SOFTQ_HD Word encode(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  return bits >> 63 != 0 ? ~bits : bits | std::uint64_t{1} << 63;
}
SOFTQ_HD double decode(Word key) {
  const std::uint64_t bits = key >> 63 != 0 ? key ^ std::uint64_t{1} << 63 : ~key;
  return std::bit_cast<double>(bits);
}

// Zero is the empty range, and larger codes are a wider one: atomic maxima widen it.
struct Range {
  Word high;         // code of the largest weight
  Word negated_low;  // code of minus the smallest
  Word nonfinite;
};

struct DecodedRange {
  double low = 0, high = 0;
  Word nonfinite;

  SOFTQ_HD explicit DecodedRange(const Range& range) : nonfinite(range.nonfinite) {
    if (range.high == 0) return;
    low = -decode(range.negated_low);
    high = decode(range.high);
  }

  // As make_binning() of the CPU core decides.
  template <class T>
  SOFTQ_HD bool usable() const {
    const T length = static_cast<T>(high) - static_cast<T>(low);
    return nonfinite == 0 && length <= std::numeric_limits<T>::max();
  }
};

// The first range that was refused since check() last looked.
struct RefusedRange {
  Word step;  // counted from 1; 0: none
  Word nonfinite;
  double low, high;
};

struct UnitState {
  double factor, low, inverse, spacing;  // the binning of this step
  unsigned ticket;
  bool active;  // of a shared unit: whether it is counted in this step
  RefusedRange refused;
};

// What differs from step to step, in device memory: a graph that is replayed goes on counting.
struct Control {
  double scale;
  double fraction;
  std::uint64_t seed, step;
};

struct Progress {
  Word finished;     // steps
  unsigned refused;  // units of this step
  unsigned ticket;
};

// Device memory, in the order of the units but where they say otherwise.
struct Model {
  const Unit* units;
  const Share* shares;
  const std::uint32_t* narrow;  // units that are coupled in shared memory, layer by layer
  const std::uint32_t* wide;    // the others
  Range* ranges;
  UnitState* states;
  Control* control;
  Progress* progress;
  unsigned* counts;         // zero between steps
  unsigned* shared_counts;  // those that processes exchange
  unsigned* prefix;         // inclusive sums of the counts
  double* tables;           // the force on each bin, of float weights as floats
  std::int64_t* moments;    // inclusive sums of bins times counts, for the log potential
  Potential potential;
  unsigned blocks;  // that have to end for a step to end; 0: it is ended otherwise

  SOFTQ_HD unsigned* counts_of(const Unit& unit) const {
    return unit.shared ? shared_counts + unit.slot : counts + unit.table;
  }
};

struct Addresses {
  const void* theta;
  void* gradient;
  bool active;  // whether the layer takes part in this step
};

// So many layers in a launch: their addresses are passed by value, within the 4 KB of arguments.
inline constexpr std::uint32_t group_layers = 128;

// Consecutive entries of an array.
struct Interval {
  std::uint32_t first, count;
};

struct Group {
  Addresses addresses[group_layers];
  std::uint32_t first_layer;
  Interval units, shares, wide;
  Interval narrow;             // the largest first
  std::uint32_t long_ones;     // of the narrow units: so many have a range found by a block each,
  std::uint32_t broad_ones;    // and so many are coupled by a block each, the others by warps
  std::uint32_t narrow_words;  // of shared memory, for the counts of a block of them
  std::uint32_t warp_words;    // for those of a warp

  // That couple the narrow units.
  std::uint32_t narrow_blocks() const {
    return broad_ones + (narrow.count - broad_ones + segment_warps - 1) / segment_warps;
  }

  // Whether there are weights.
  bool measures() const { return shares.count + narrow.count > 0; }

  // Where a unit's weights are; null: it takes no part. Of a unit that others hold more of, the
  // weights count in any case.
  SOFTQ_HD const void* weights_of(const Unit& unit) const {
    const Addresses& layer = addresses[unit.layer - first_layer];
    return layer.active || unit.shared ? layer.theta : nullptr;
  }
};

// What a step launches, in this order. Without a whole number of blocks to launch, these do
// nothing.

// Finds the units' ranges; sets the control first where one is given. With `judge`, refuses the
// step where the range of a narrow unit is not finite; for the others, count() does.
void measure(const Model& model, const Group& group, const Control* control, bool judge,
             cudaStream_t stream);

void set_control(const Model& model, const Control& control, cudaStream_t stream);

// Of the wide units that are shared, or of those that are not.
struct Counting {
  bool shared;
  bool everything;  // no sample
  bool tables;      // the force on the bins follows at once
};
// Adds the sampled weights to the counts of wide units. Of those that are not shared, fixes the
// binning, empties the range, and refuses the step where it is not finite. With tables, the counts
// are zero again.
void count(const Model& model, const Group& group, const Counting& what, std::int32_t bins,
           cudaStream_t stream);
// Blocks of count() that the device runs at once, for so many bins at most.
std::uint64_t blocks_at_once(std::int32_t bins);

// The force on the bins of the shared wide units, from the counts of all processes.
void make_tables(const Model& model, const Group& group, cudaStream_t stream);

// The force on the bins from their potential instead, for some of the units; the counts are zero
// again.
void force_from_potential(const Model& model, const Interval& units, std::int32_t bins,
                          const double* potential, std::int64_t length, cudaStream_t stream);

// gradient += force on the weight's bin, for wide units that are shared or for the others; the last
// block of a step ends it.
void add_force(const Model& model, const Group& group, bool shared, cudaStream_t stream);

// The same for narrow units, with all that comes before: counts and their sums, in shared memory.
// Of shared units the counts are those of all processes.
void couple_narrow(const Model& model, const Group& group, bool shared, cudaStream_t stream);
// The counts of shared narrow units.
void count_narrow(const Model& model, const Group& group, cudaStream_t stream);

// energies[unit] = strength times energy, where the ranges are known; of wide units the weights
// have been counted, and the counts that are not shared are zero again.
void wide_energies(const Model& model, const Group& group, double* energies, cudaStream_t stream);
void narrow_energies(const Model& model, const Group& group, double* energies, cudaStream_t stream);

// What processes exchange the maxima of (pieces.py: Extremes), from the ranges. layers is zero.
void extremes(const Model& model, const Group& group, double* layers, double* rows,
              cudaStream_t stream);
// The binning of shared units from the extremes of all processes; refuses the step where one of
// them has found weights that are unfit.
void adopt(const Model& model, const Group& group, const double* layers, const double* rows,
           cudaStream_t stream);
// The next step begins.
void begin_shared(const Model& model, const Control& control, cudaStream_t stream);

}  // namespace softq::cuda
