// The layers of a model as the kernels see them.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "device.h"
#include "softq/coupling.h"
#include "softq/well.h"

namespace softq::cuda {

// As atomics and shuffles name it.
using Word = unsigned long long;

// A piece of a layer: the work of one block.
struct Segment {
  std::uint32_t layer;
  std::uint64_t begin, end;
};

// Shares out the layers to segments, a layer in proportion to its size, every segment but a layer's
// last a multiple of 16. There are as many as the device runs at once (`blocks`), or some times as
// many, unless they would be shorter than 4096 weights.
std::vector<Segment> partition(const std::vector<std::uint64_t>& sizes, std::uint64_t blocks);

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

struct LayerState {
  double factor, low, inverse, spacing;  // the binning of this step
  unsigned ticket;
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
  unsigned refused;  // layers of this step
  unsigned ticket;
};

struct ConstantLayer {
  std::uint64_t size;
  double width, strength;
  std::uint64_t index;
  Scalar scalar;
  std::uint32_t segments;
};

// Device memory, one row for each layer. bins_stride: bins, rounded up so that rows are aligned.
struct Model {
  const ConstantLayer* layers;
  const Segment* segments;
  Range* ranges;
  LayerState* states;
  Control* control;
  Progress* progress;
  unsigned* counts;  // zero between steps
  unsigned* prefix;  // inclusive sums of the counts
  double* tables;    // the force on each bin, for float layers as floats
  std::int32_t bins;
  std::uint32_t bins_stride;
  std::uint32_t segment_count;
};

struct Addresses {
  const void* theta;  // null: the layer takes no part in this step
  void* gradient;
};

// So many layers in a launch: their addresses are passed by value, within the 4 KB of arguments.
inline constexpr std::uint32_t group_layers = 128;

struct Group {
  Addresses addresses[group_layers];
  std::uint32_t first_layer;
  std::uint32_t first_segment;
  std::uint32_t segment_count;
};

// What a step launches, in this order.

// Widens the layers' ranges by their weights; sets the control first where one is given.
void measure(const Model& model, const Group& group, const Control* control, cudaStream_t stream);

void set_control(const Model& model, const Control& control, cudaStream_t stream);

// Adds the sampled weights to the counts, fixes each layer's binning and empties its range; refuses
// the step where a range is not finite. With tables, the force on the bins follows at once and the
// counts are zero again.
void count(const Model& model, const Group& group, bool tables, cudaStream_t stream);
// Blocks of count() that the device runs at once.
std::uint64_t blocks_at_once(std::int32_t bins);

// The force on the bins from their potential instead, for `layers` layers; the counts are zero
// again.
void force_from_potential(const Model& model, std::uint32_t first_layer, std::uint32_t layers,
                          const double* potential, std::int64_t length, cudaStream_t stream);

// gradient += force on the weight's bin; the last block of the step's last group ends the step.
void add_force(const Model& model, const Group& group, cudaStream_t stream);

}  // namespace softq::cuda
