// Ranges of all units, histograms of wide ones and, by the last block of each, the force on its
// bins.
#include <algorithm>

#include "layers.h"
#include "once.h"
#include "range.h"
#include "softq/binning.h"
#include "softq/checks.h"
#include "tables.h"
#include "tally.h"

namespace softq::cuda {
namespace {

// Tables up to here are counted in shared memory, 64 KB being the most that every device has;
// larger ones in device memory.
constexpr std::int32_t shared_bins = 1 << 14;
constexpr int most_shared_bytes = shared_bins * static_cast<int>(sizeof(unsigned));

std::size_t shared_bytes(std::int32_t bins) {
  const auto table = static_cast<std::size_t>(std::min(bins, shared_bins));
  return std::max(table * sizeof(unsigned), table_shared_bytes);
}

struct NewControl {
  bool given;
  Control value;
};

// Of a narrow unit, found at once.
template <class Team>
__device__ void measure_unit(const Model& model, const Group& group, std::uint32_t number,
                             bool judge) {
  const Unit& unit = model.units[number];
  const void* address = group.weights_of(unit);
  if (address == nullptr) return;
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T computed) {
    const auto* theta = static_cast<const Storage*>(address) + unit.begin;
    const Range range = range_of<Team>(theta, 0, unit.size, computed);
    if (Team::rank() != 0) return;
    model.ranges[number] = range;
    const DecodedRange decoded(range);
    if (judge && !decoded.usable<T>()) refuse(model, number, decoded);
  });
}

// Of a wide unit, found by all blocks that share it.
__device__ void measure_share(const Model& model, const Group& group, const Share& share) {
  const Unit& unit = model.units[share.unit];
  const void* address = group.weights_of(unit);
  if (address == nullptr) return;
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T computed) {
    const auto* theta = static_cast<const Storage*>(address) + unit.begin;
    const Range range = range_of<BlockTeam>(theta, share.begin, share.end, computed);
    if (threadIdx.x == 0) widen(model.ranges[share.unit], range);
  });
}

// A share of a wide unit to a block, or a long narrow unit, or a narrow unit to a warp.
__global__ void __launch_bounds__(block_threads)
    range_kernel(const Model model, const __grid_constant__ Group group,
                 const __grid_constant__ NewControl control, const bool judge) {
  if (control.given && blockIdx.x == 0 && threadIdx.x == 0) *model.control = control.value;
  if (blockIdx.x < group.shares.count) {
    return measure_share(model, group, model.shares[group.shares.first + blockIdx.x]);
  }
  const std::uint32_t* narrow = model.narrow + group.narrow.first;
  const std::uint32_t block = blockIdx.x - group.shares.count;
  if (block < group.long_ones) return measure_unit<BlockTeam>(model, group, narrow[block], judge);
  const std::uint32_t at =
      group.long_ones + (block - group.long_ones) * warps + threadIdx.x / warp_threads;
  if (at < group.narrow.count) measure_unit<WarpTeam>(model, group, narrow[at], judge);
}

__global__ void set_control_kernel(Control* control, const Control value) { *control = value; }

template <class Storage, class T>
__device__ void count_share(const Share& share, const Storage* theta, const Binning<T>& binning,
                            const Draw& draw, unsigned* counts) {
  if (binning.bins > shared_bins) {
    return tally<BlockTeam, 2, Walk::packs>(theta, share.begin, share.end, binning, draw,
                                            Counts{counts});
  }
  auto* table = dynamic_shared<unsigned>();
  for (std::int32_t k = threadIdx.x; k < binning.bins; k += block_threads) table[k] = 0;
  __syncthreads();
  tally<BlockTeam, 2, Walk::packs>(theta, share.begin, share.end, binning, draw, Counts{table});
  __syncthreads();
  for (std::int32_t k = threadIdx.x; k < binning.bins; k += block_threads) {
    if (table[k] != 0) atomicAdd(&counts[k], table[k]);
  }
}

// By the last block of the unit: what the rest of the step needs of its range, which is empty
// again.
template <class T>
__device__ void end_count(const Model& model, std::uint32_t number, const Binning<T>& binning,
                          const DecodedRange& range) {
  model.ranges[number] = {};
  fix_binning(model.states[number], binning);
  if (!range.usable<T>()) refuse(model, number, range);
}

__global__ void __launch_bounds__(block_threads)
    count_kernel(const Model model, const __grid_constant__ Group group, const Counting what) {
  const Share share = model.shares[group.shares.first + blockIdx.x];
  const Unit& unit = model.units[share.unit];
  const void* address = group.weights_of(unit);
  if (address == nullptr || unit.shared != what.shared) return;
  UnitState& state = model.states[share.unit];
  if (unit.shared && !(unit.counted && state.active)) return;
  const DecodedRange range(model.ranges[share.unit]);

  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    const auto* theta = static_cast<const Storage*>(address) + unit.begin;
    const bool fine = range.usable<T>();
    const Binning<T> binning(static_cast<T>(range.low), static_cast<T>(range.high), unit.bins);
    if (fine) {
      const Draw draw = draw_of(model, unit, what.everything);
      count_share(share, theta, binning, draw, model.counts_of(unit));
    }
    if (unit.shared || !last_block(&state.ticket, unit.shares)) return;
    if (threadIdx.x == 0) end_count(model, share.unit, binning, range);
    if (what.tables && fine) force_table<T>(model, unit, binning.spacing);
  });
}

__global__ void widen_kernel(const unsigned* counts, std::int32_t bins, std::int64_t* out) {
  const std::int64_t k = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (k < bins) out[k] = counts[k];
}

}  // namespace

void measure(const Model& model, const Group& group, const Control* control, bool judge,
             cudaStream_t stream) {
  const NewControl value{control != nullptr, control != nullptr ? *control : Control{}};
  const std::size_t by_warps = group.narrow.count - group.long_ones;
  const std::size_t blocks = group.shares.count + group.long_ones + (by_warps + warps - 1) / warps;
  launch("launch of range_kernel", range_kernel, blocks, block_threads, 0, stream, model, group,
         value, judge);
}

void set_control(const Model& model, const Control& control, cudaStream_t stream) {
  launch("launch of set_control_kernel", set_control_kernel, 1, 1, 0, stream, model.control,
         control);
}

void count(const Model& model, const Group& group, const Counting& what, std::int32_t bins,
           cudaStream_t stream) {
  launch("launch of count_kernel", count_kernel, group.shares.count, block_threads,
         shared_bytes(bins), stream, model, group, what);
}

std::uint64_t blocks_at_once(std::int32_t bins) {
  const std::size_t bytes = shared_bytes(bins);
  // The kernel's, not the call's: a smaller one would forbid the launches of all other couplings.
  check(cudaFuncSetAttribute(count_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most_shared_bytes),
        "cudaFuncSetAttribute");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, count_kernel, block_threads, bytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return processors() * static_cast<std::uint64_t>(std::max(blocks, 1));
}

BinnedRange density(const Weights& weights, std::int32_t bins, double fraction, std::uint64_t seed,
                    std::int64_t* counts, const Place& place) {
  refuse_capture(place.stream, "the density");
  const cudaStream_t stream = place.stream;
  check_size(weights.size);
  const Layers layers(Layout::single(weights.size, weights.scalar, bins), Layers::Use::counts,
                      place);
  const auto groups = layers.groups({{weights.theta, nullptr, true}});
  const Control control{1, fraction, seed, 0};
  measure(layers.model(), groups[0], &control, false, stream);
  const BinnedRange range = layers.binning(stream);
  count(layers.model(), groups[0], {false, false, false}, bins, stream);
  const std::size_t blocks = (static_cast<std::size_t>(bins) + block_threads - 1) / block_threads;
  launch("launch of widen_kernel", widen_kernel, blocks, block_threads, 0, stream,
         layers.model().counts, bins, counts);
  return range;
}

}  // namespace softq::cuda
