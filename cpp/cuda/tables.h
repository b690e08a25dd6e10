// The force on the bins of a wide unit, and the binning and the draw of a unit's weights.
#pragma once

#include "block.h"
#include "model.h"
#include "softq/binning.h"
#include "windows.h"

namespace softq::cuda {

template <class T>
__device__ void fix_binning(UnitState& state, const Binning<T>& binning) {
  state.factor = static_cast<double>(binning.factor);
  state.low = static_cast<double>(binning.low);
  state.inverse = static_cast<double>(binning.inverse);
  state.spacing = binning.spacing;
}

__device__ inline Draw draw_of(const Model& model, const Unit& unit, bool everything) {
  const Control& control = *model.control;
  const double fraction = everything ? 1 : control.fraction;
  return {Sample(fraction, control.seed, control.step, unit.index), unit.block, unit.place};
}

__device__ inline Pull pull_of(const Model& model, const Unit& unit) {
  return {model.potential, unit.strength * model.control->scale, model.control->fraction};
}

// How far the well reaches, in bins; 0 where all weights are at one point.
SOFTQ_HD std::int64_t reach_of(const Unit& unit, double spacing) {
  return spacing > 0 ? reach(unit.width, spacing, unit.bins) : 0;
}

// Sums up the counts of a wide unit, by one block. Counts that are not shared are zero again.
__device__ inline void sum_up(const Model& model, const Unit& unit, unsigned* shared) {
  unsigned* counts = model.counts_of(unit);
  unsigned* prefix = model.prefix + unit.table;
  const auto stride = static_cast<std::uint32_t>(unit.bins + 3) / 4 * 4;
  const auto take = [&](std::uint32_t k) {
    return k < stride ? __ldcg(reinterpret_cast<const uint4*>(counts + k)) : uint4{};
  };
  unsigned carry = 0;
  uint4 next = take(4 * threadIdx.x);
  for (std::uint32_t first = 0; first < stride; first += 4 * block_threads) {
    const std::uint32_t k = first + 4 * threadIdx.x;
    uint4 sums = next;
    next = take(k + 4 * block_threads);
    sums.y += sums.x;
    sums.z += sums.y;
    sums.w += sums.z;
    unsigned total;
    const unsigned before = carry + scan(sums.w, shared, total) - sums.w;
    if (k < stride) {
      if (!unit.shared) *reinterpret_cast<uint4*>(counts + k) = uint4{};
      *reinterpret_cast<uint4*>(prefix + k) =
          uint4{before + sums.x, before + sums.y, before + sums.z, before + sums.w};
    }
    carry += total;
    __syncthreads();
  }
}

// Inclusive sums of bins times counts, in the order of the bins, by one block; shared has a value
// for each warp.
__device__ inline void sum_moments(const unsigned* prefix, std::int64_t bins, std::int64_t* moments,
                                   std::int64_t* shared) {
  std::int64_t carry = 0;
  for (std::int64_t first = 0; first < bins; first += block_threads) {
    const std::int64_t k = first + threadIdx.x;
    const unsigned count = k < bins ? prefix[k] - (k > 0 ? prefix[k - 1] : 0) : 0;
    std::int64_t total;
    const std::int64_t sum = carry + scan(k * static_cast<std::int64_t>(count), shared, total);
    if (k < bins) moments[k] = sum;
    carry += total;
    __syncthreads();
  }
}

// The table of the log potential, from the sums of the counts, by one block.
template <class T>
__device__ void log_force_table(const Model& model, const Unit& unit, double spacing, T* table) {
  const unsigned* prefix = model.prefix + unit.table;
  std::int64_t* moments = model.moments + unit.table;
  const std::int64_t bins = unit.bins;
  sum_moments(prefix, bins, moments, dynamic_shared<std::int64_t>());
  const std::int64_t m = reach_of(unit, spacing);
  const LogPull pull(pull_of(model, unit), unit.width, spacing, m);
  for (std::int64_t k = threadIdx.x; k < bins; k += block_threads) {
    const std::int32_t slope = sides_of(prefix, bins, m, k).force();
    const double occupancy = window(prefix, moments, bins, m, k).occupancy(pull);
    table[k] = static_cast<T>(pull.force(static_cast<double>(slope), occupancy));
  }
}

// What force_table() requires of the block's dynamic shared memory.
inline constexpr std::size_t table_shared_bytes = warps * sizeof(std::int64_t);

// By one block.
template <class T>
__device__ void force_table(const Model& model, const Unit& unit, double spacing) {
  sum_up(model, unit, dynamic_shared<unsigned>());
  const unsigned* prefix = model.prefix + unit.table;
  auto* table = reinterpret_cast<T*>(model.tables + unit.table);
  if (model.potential == Potential::log) return log_force_table(model, unit, spacing, table);
  const double scale = pull_of(model, unit).scale();
  const std::int64_t bins = unit.bins;
  const std::int64_t m = reach_of(unit, spacing);
  for (std::int64_t k = threadIdx.x; k < bins; k += block_threads)
    table[k] = static_cast<T>(scale * static_cast<double>(sides_of(prefix, bins, m, k).force()));
}

}  // namespace softq::cuda
