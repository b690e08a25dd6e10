// Range, histogram and, by the last block of each layer, the force on the bins.
#include <algorithm>

#include "force.h"
#include "layers.h"
#include "once.h"
#include "packs.h"
#include "range.h"
#include "softq/binning.h"
#include "softq/checks.h"
#include "softq/sampling.h"

namespace softq::cuda {
namespace {

// Tables up to here are counted in shared memory, 64 KB being the most that every device has;
// larger ones in device memory.
constexpr std::int32_t shared_bins = 1 << 14;
constexpr int most_shared_bytes = shared_bins * static_cast<int>(sizeof(unsigned));
constexpr int crowd = 4;  // lanes with one bin, from which on one of them adds for all

std::size_t shared_bytes(std::int32_t bins) {
  const std::size_t table = bins <= shared_bins ? static_cast<std::size_t>(bins) : 0;
  return std::max<std::size_t>(table, warps) * sizeof(unsigned);
}

struct NewControl {
  bool given;
  Control value;
};

__global__ void __launch_bounds__(block_threads)
    range_kernel(const Model model, const __grid_constant__ Group group,
                 const __grid_constant__ NewControl control) {
  if (control.given && blockIdx.x == 0 && threadIdx.x == 0) *model.control = control.value;
  const Segment segment = model.segments[group.first_segment + blockIdx.x];
  const void* address = group.addresses[segment.layer - group.first_layer].theta;
  if (address == nullptr) return;
  with_storage(model.layers[segment.layer].scalar, [&]<class Storage, class T>(Storage, T) {
    const auto* theta = static_cast<const Storage*>(address);
    WeightRange<T> range;
    for_packs<4>(
        segment.begin, segment.end, theta, no<Storage>,
        [&]<unsigned n>(Size<n>, std::uint64_t i) { return load<n>(theta + i); },
        [&]<unsigned n>(Size<n>, std::uint64_t, const Pack<Storage, n>& x, bool inside) {
          if (!inside) return;
#pragma unroll
          for (unsigned j = 0; j < n; ++j) range.add(static_cast<T>(x.at[j]));
        });
    range.widen(model.ranges[segment.layer]);
  });
}

__global__ void set_control_kernel(Control* control, const Control value) { *control = value; }

// Adds one to table[index] for each lane that keeps its weight. Where many lanes have the bin of
// the first, as in a layer that has gathered in few clusters, one of them adds for all: increments
// of one address would wait for each other.
__device__ void count_warp(unsigned* table, std::int32_t index, bool keep) {
  const unsigned kept = __ballot_sync(all_lanes, keep);
  if (kept == 0) return;
  const int first = __ffs(static_cast<int>(kept)) - 1;
  const std::int32_t crowded = __shfl_sync(all_lanes, index, first);
  const unsigned same = __ballot_sync(all_lanes, keep && index == crowded);
  if (__popc(same) >= crowd) {
    if (static_cast<int>(threadIdx.x % warp_threads) == first)
      atomicAdd(&table[index], static_cast<unsigned>(__popc(same)));
    keep = keep && index != crowded;
  }
  if (keep) atomicAdd(&table[index], 1U);
}

template <class Storage, class T>
__device__ void count_segment(const Segment& segment, const Storage* theta,
                              const Binning<T>& binning, const Sample& sample, unsigned* table) {
  for_packs<2>(
      segment.begin, segment.end, theta, no<Storage>,
      [&]<unsigned n>(Size<n>, std::uint64_t i) { return load<n>(theta + i); },
      [&]<unsigned n>(Size<n>, std::uint64_t i, const Pack<Storage, n>& x, bool inside) {
#pragma unroll
        for (unsigned j = 0; j < n; ++j) {
          const bool keep = inside && (sample.whole() || sample.keeps(i + j));
          count_warp(table, binning.index(static_cast<T>(x.at[j])), keep);
        }
      });
}

// The table of the force on the bins, from the counts of the layer, by one block. Zeroes the
// counts.
template <class T>
__device__ void force_table(const Model& model, std::uint32_t layer, double spacing) {
  unsigned* counts = model.counts + std::size_t{layer} * model.bins_stride;
  unsigned* prefix = model.prefix + std::size_t{layer} * model.bins_stride;
  auto* table = reinterpret_cast<T*>(model.tables + std::size_t{layer} * model.bins_stride);
  auto* shared = dynamic_shared<unsigned>();
  const auto take = [&](std::uint32_t k) {
    return k < model.bins_stride ? __ldcg(reinterpret_cast<const uint4*>(counts + k)) : uint4{};
  };
  unsigned carry = 0;
  uint4 next = take(4 * threadIdx.x);
  for (std::uint32_t first = 0; first < model.bins_stride; first += 4 * block_threads) {
    const std::uint32_t k = first + 4 * threadIdx.x;
    uint4 sums = next;
    next = take(k + 4 * block_threads);
    sums.y += sums.x;
    sums.z += sums.y;
    sums.w += sums.z;
    unsigned total;
    const unsigned before = carry + scan(sums.w, shared, total) - sums.w;
    if (k < model.bins_stride) {
      *reinterpret_cast<uint4*>(counts + k) = uint4{};
      *reinterpret_cast<uint4*>(prefix + k) =
          uint4{before + sums.x, before + sums.y, before + sums.z, before + sums.w};
    }
    carry += total;
    __syncthreads();
  }

  const ConstantLayer& constant = model.layers[layer];
  const Control& control = *model.control;
  const double scale = constant.strength * control.scale / control.fraction;
  const std::int64_t bins = model.bins;
  const std::int64_t m = spacing > 0 ? reach(constant.width, spacing, bins) : 0;
  for (std::int64_t k = threadIdx.x; k < bins; k += block_threads)
    table[k] = static_cast<T>(scale * static_cast<double>(window_force(prefix, bins, m, k)));
}

__global__ void __launch_bounds__(block_threads)
    count_kernel(const Model model, const __grid_constant__ Group group, const bool tables) {
  const Segment segment = model.segments[group.first_segment + blockIdx.x];
  const void* address = group.addresses[segment.layer - group.first_layer].theta;
  if (address == nullptr) return;
  const ConstantLayer layer = model.layers[segment.layer];
  LayerState& state = model.states[segment.layer];
  const DecodedRange range(model.ranges[segment.layer]);

  with_storage(layer.scalar, [&]<class Storage, class T>(Storage, T) {
    const auto* theta = static_cast<const Storage*>(address);
    const bool refused = !range.usable<T>();
    const Binning<T> binning(static_cast<T>(range.low), static_cast<T>(range.high), model.bins);
    if (!refused) {
      const Control& control = *model.control;
      const Sample sample(control.fraction, control.seed, control.step, layer.index);
      unsigned* counts = model.counts + std::size_t{segment.layer} * model.bins_stride;
      if (model.bins <= shared_bins) {
        auto* table = dynamic_shared<unsigned>();
        for (std::int32_t k = threadIdx.x; k < model.bins; k += block_threads) table[k] = 0;
        __syncthreads();
        count_segment(segment, theta, binning, sample, table);
        __syncthreads();
        for (std::int32_t k = threadIdx.x; k < model.bins; k += block_threads) {
          if (table[k] != 0) atomicAdd(&counts[k], table[k]);
        }
      } else {
        count_segment(segment, theta, binning, sample, counts);
      }
    }
    if (!last_block(&state.ticket, layer.segments)) return;
    if (threadIdx.x == 0) {
      model.ranges[segment.layer] = {};
      state.factor = static_cast<double>(binning.factor);
      state.low = static_cast<double>(binning.low);
      state.inverse = static_cast<double>(binning.inverse);
      state.spacing = binning.spacing;
      if (refused) {
        if (state.refused.step == 0)
          state.refused = {model.progress->finished + 1, range.nonfinite, range.low, range.high};
        atomicAdd(&model.progress->refused, 1U);
      }
    }
    if (tables && !refused) force_table<T>(model, segment.layer, binning.spacing);
  });
}

__global__ void widen_kernel(const unsigned* counts, std::int32_t bins, std::int64_t* out) {
  const std::int64_t k = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (k < bins) out[k] = counts[k];
}

}  // namespace

void measure(const Model& model, const Group& group, const Control* control, cudaStream_t stream) {
  const NewControl value{control != nullptr, control != nullptr ? *control : Control{}};
  launch("launch of range_kernel", range_kernel, group.segment_count, block_threads, 0, stream,
         model, group, value);
}

void set_control(const Model& model, const Control& control, cudaStream_t stream) {
  launch("launch of set_control_kernel", set_control_kernel, 1, 1, 0, stream, model.control,
         control);
}

void count(const Model& model, const Group& group, bool tables, cudaStream_t stream) {
  launch("launch of count_kernel", count_kernel, group.segment_count, block_threads,
         shared_bytes(model.bins), stream, model, group, tables);
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
  const Layers layers({{nullptr, nullptr, weights.size, weights.scalar, 0, 0, 0, bins}}, bins,
                      false, place);
  const auto groups = layers.groups({{weights.theta, nullptr}});
  const Control control{1, fraction, seed, 0};
  measure(layers.model(), groups[0], &control, stream);
  const BinnedRange range = layers.binning(stream);
  count(layers.model(), groups[0], false, stream);
  const std::size_t blocks = (static_cast<std::size_t>(bins) + block_threads - 1) / block_threads;
  launch("launch of widen_kernel", widen_kernel, blocks, block_threads, 0, stream,
         layers.model().counts, bins, counts);
  return range;
}

}  // namespace softq::cuda
