// Narrow units, each coupled by a warp or a block: counts and their sums stay in shared memory,
// and no force is computed but at weights.
#include <cmath>

#include "model.h"
#include "packs.h"
#include "softq/binning.h"
#include "step.h"
#include "tables.h"
#include "tally.h"

namespace softq::cuda {
namespace {

using SegmentTeam = Team<segment_threads>;
constexpr unsigned blocks_together = 4;  // on a multiprocessor: so few registers has a thread

// Counts of 16 bits, two in a word.
struct NarrowCounts {
  unsigned* words;

  __device__ unsigned operator[](std::int64_t bin) const {
    const auto k = static_cast<unsigned>(bin);
    return words[k / 2] >> (k % 2 * 16) & 0xFFFFU;
  }
  __device__ void add(std::int32_t bin, unsigned weights) const {
    const auto k = static_cast<unsigned>(bin);
    atomicAdd(&words[k / 2], weights << (k % 2 * 16));
  }
};

__device__ unsigned packs_of(std::int32_t bins) {
  return (static_cast<unsigned>(bins) + bins_in_pack - 1) / bins_in_pack;
}

template <class Team>
__device__ void clear(const NarrowCounts& counts, std::int32_t bins) {
  auto* packs = reinterpret_cast<uint4*>(counts.words);
  for (unsigned at = Team::rank(); at < packs_of(bins); at += Team::threads) packs[at] = uint4{};
  Team::sync();
}

// From 32 bits; those behind the last bin are zero.
template <class Team>
__device__ void fetch(const NarrowCounts& counts, std::int32_t bins, const unsigned* from) {
  const auto size = static_cast<unsigned>(bins);
  const auto take = [&](unsigned k) { return k < size ? from[k] : 0U; };
  const unsigned words = packs_of(bins) * (bins_in_pack / 2);
  for (unsigned at = Team::rank(); at < words; at += Team::threads)
    counts.words[at] = take(2 * at) | take(2 * at + 1) << 16;
  Team::sync();
}

// Counts become their inclusive sums, all below 2^16: one addition serves both halves of a word.
template <class Team>
__device__ void sum_up(const NarrowCounts& counts, std::int32_t bins) {
  __shared__ unsigned shared[Team::warps];
  constexpr unsigned both = 0x10001;
  auto* packs = reinterpret_cast<uint4*>(counts.words);
  const unsigned size = packs_of(bins);
  unsigned carry = 0;
  for (unsigned first = 0; first < size; first += Team::threads) {
    const unsigned at = first + Team::rank();
    uint4 sums = at < size ? packs[at] : uint4{};
    sums.x += sums.x << 16;
    sums.y += sums.y << 16;
    sums.z += sums.z << 16;
    sums.w += sums.w << 16;
    sums.y += (sums.x >> 16) * both;
    sums.z += (sums.y >> 16) * both;
    sums.w += (sums.z >> 16) * both;
    const unsigned own = sums.w >> 16;
    unsigned total;
    const unsigned before = (carry + scan<Team>(own, shared, total) - own) * both;
    if (at < size)
      packs[at] = uint4{sums.x + before, sums.y + before, sums.z + before, sums.w + before};
    carry += total;
    Team::sync();
  }
}

// Sums over the sums of counts, S[0] + … + S[j - 1] of any j: their second difference is the sum of
// the window's weights, each times its distance from the first bins beyond the window.
struct SecondSums {
  NarrowCounts sums;
  const unsigned* before;  // of the first bin of each pack
  std::int64_t bins;

  __device__ unsigned operator()(std::int64_t j) const {
    if (j <= 0) return 0;
    const std::int64_t behind = j > bins ? j - bins : 0;
    const auto end = static_cast<unsigned>(j - behind);
    const unsigned pack = (end - 1) / bins_in_pack;
    const unsigned taken = end - pack * bins_in_pack;
    const uint4 pairs = reinterpret_cast<const uint4*>(sums.words)[pack];
    const unsigned words[] = {pairs.x, pairs.y, pairs.z, pairs.w};
    unsigned sum = before[pack];
#pragma unroll
    for (unsigned i = 0; i < bins_in_pack / 2; ++i) {
      sum += 2 * i < taken ? words[i] & 0xFFFFU : 0U;
      sum += 2 * i + 1 < taken ? words[i] >> 16 : 0U;
    }
    return sum + static_cast<unsigned>(behind) * sums[bins - 1];
  }

  // The sum of the distances from bin k of the weights within m bins, `all` of them.
  __device__ Window window(std::int64_t m, std::int64_t k, unsigned all) const {
    const SecondSums& at = *this;
    const unsigned depths = at(k + m + 1) - 2 * at(k) + at(k - m - 1);
    return {all, static_cast<unsigned>(m + 1) * all - depths};
  }
};

// Behind the counts is a word for each pack. Below 2^16 weights and up to 2^14 bins, 32 bits are
// enough.
template <class Team>
__device__ SecondSums sum_up_sums(const NarrowCounts& sums, std::int32_t bins) {
  __shared__ unsigned shared[Team::warps];
  const auto* packs = reinterpret_cast<const uint4*>(sums.words);
  const unsigned size = packs_of(bins);
  unsigned* before = sums.words + size * (bins_in_pack / 2);
  unsigned carry = 0;
  for (unsigned first = 0; first < size; first += Team::threads) {
    const unsigned at = first + Team::rank();
    const uint4 pairs = at < size ? packs[at] : uint4{};
    const unsigned words[] = {pairs.x, pairs.y, pairs.z, pairs.w};
    unsigned own = 0;
#pragma unroll
    for (unsigned i = 0; i < bins_in_pack / 2; ++i) own += (words[i] & 0xFFFFU) + (words[i] >> 16);
    unsigned total;
    const unsigned sum = carry + scan<Team>(own, shared, total);
    if (at < size) before[at] = sum - own;
    carry += total;
    Team::sync();
  }
  return {sums, before, bins};
}

enum class Use { force, counts, energies };

struct Task {
  Use use;
  bool shared;       // of force: of which units
  double* energies;  // of energies
};

__device__ bool skips(const Model& model, const Unit& unit, const Addresses& layer,
                      const Task& task) {
  if (task.use == Use::counts) return !unit.shared;
  if (task.use == Use::energies) return !unit.shared && unit.size == 0;
  return unit.shared != task.shared || !layer.active || unit.size == 0 ||
         model.progress->refused != 0;
}

// Calls body(weights, gradient, binning) with their types.
template <class Body>
__device__ void with_binning(const Unit& unit, const Addresses& layer, const DecodedRange& range,
                             const Body& body) {
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    body(static_cast<const Storage*>(layer.theta) + unit.begin,
         static_cast<Storage*>(layer.gradient) + unit.begin,
         Binning<T>(static_cast<T>(range.low), static_cast<T>(range.high), unit.bins));
  });
}

template <class Team>
__device__ void store(const NarrowCounts& counts, std::int32_t bins, unsigned* to) {
  const auto size = static_cast<unsigned>(bins);
  for (unsigned k = Team::rank(); k < size; k += Team::threads) to[k] = counts[k];
}

// As small_energy() of the CPU core, from the sums: integers, of all weights.
template <class Team>
__device__ double energy(const NarrowCounts& sums, const Unit& unit, double spacing) {
  __shared__ std::int64_t shared[2][Team::warps];
  const std::int64_t bins = unit.bins;
  const std::int64_t m = reach(unit.width, spacing, bins);
  std::int64_t distance = 0;
  std::int64_t pairs = 0;
  for (std::int64_t k = Team::rank(); k < bins; k += Team::threads) {
    const std::int64_t count = sums[k] - (k > 0 ? sums[k - 1] : 0);
    if (count == 0) continue;
    const Sides sides = sides_of(sums, bins, m, k);
    distance += count * k * sides.force();
    pairs += count * (std::int64_t{sides.all} - 1);
  }
  distance = reduce<Team>(distance, shared[0], Sum<std::int64_t>{});
  pairs = reduce<Team>(pairs, shared[1], Sum<std::int64_t>{});
  return unit.strength *
         (spacing * static_cast<double>(2 * distance) - unit.width * static_cast<double>(pairs));
}

// The length of the code in nats, from the sums, times strength.
template <class Team>
__device__ double log_energy(const NarrowCounts& sums, const Unit& unit, double spacing) {
  __shared__ double shared[Team::warps];
  const SecondSums second = sum_up_sums<Team>(sums, unit.bins);
  const std::int64_t bins = unit.bins;
  const std::int64_t m = reach(unit.width, spacing, bins);
  const LogPull pull({Potential::log}, unit.width, spacing, m);
  const auto size = static_cast<double>(sums[bins - 1]);
  double nats = 0;
  for (std::int64_t k = Team::rank(); k < bins; k += Team::threads) {
    const unsigned count = sums[k] - (k > 0 ? sums[k - 1] : 0);
    if (count == 0) continue;
    const Window near = second.window(m, k, sides_of(sums, bins, m, k).all);
    nats += static_cast<double>(count) * std::log(size / near.occupancy(pull));
  }
  return unit.strength * reduce<Team>(nats, shared, Sum<double>{});
}

// Adds the force to the gradients of a unit, from the sums.
template <Potential potential, class Team, class Storage, class T>
__device__ __forceinline__ void add_force(const Model& model, const Unit& unit,
                                          const NarrowCounts& sums, const Storage* theta,
                                          Storage* gradient, const Binning<T>& binning) {
  const std::int64_t bins = unit.bins;
  const double spacing = binning.spacing;
  const std::int64_t m = reach_of(unit, spacing);
  const Pull how = pull_of(model, unit);
  if constexpr (potential == Potential::linear) {
    const double scale = how.scale();
    add_to_gradient<Team, 2, Walk::singles>(theta, gradient, 0, unit.size, [&](T x) {
      const std::int32_t force = sides_of(sums, bins, m, binning.index(x)).force();
      return static_cast<T>(scale * static_cast<double>(force));
    });
  } else {
    const SecondSums second = sum_up_sums<Team>(sums, unit.bins);
    const LogPull pull(how, unit.width, spacing, m);
    add_to_gradient<Team, 2, Walk::singles>(theta, gradient, 0, unit.size, [&](T x) {
      const std::int32_t k = binning.index(x);
      const Sides sides = sides_of(sums, bins, m, k);
      const double occupancy = second.window(m, k, sides.all).occupancy(pull);
      return static_cast<T>(pull.force(static_cast<double>(sides.force()), occupancy));
    });
  }
}

// One unit by a team. Branches are those of the whole team.
template <Potential potential, class Team>
__device__ __forceinline__ void do_unit(const Model& model, const Group& group,
                                        std::uint32_t number, const NarrowCounts& counts,
                                        const Task& task) {
  const Unit& unit = model.units[number];
  const Addresses& layer = group.addresses[unit.layer - group.first_layer];
  if (skips(model, unit, layer, task)) return;
  const DecodedRange range(model.ranges[number]);
  double spacing = 0;
  with_binning(unit, layer, range,
               [&](auto*, auto*, const auto& binning) { spacing = binning.spacing; });

  if (task.use != Use::counts && unit.shared) {
    fetch<Team>(counts, unit.bins, model.counts_of(unit));
  } else {
    clear<Team>(counts, unit.bins);
    if (!unit.shared || (unit.counted && model.states[number].active)) {
      const Draw draw = draw_of(model, unit, task.use == Use::energies);
      with_binning(unit, layer, range, [&](const auto* theta, auto*, const auto& binning) {
        tally<Team, 2, Walk::singles>(theta, 0, unit.size, binning, draw, counts);
      });
    }
    Team::sync();
  }
  if (task.use == Use::counts) return store<Team>(counts, unit.bins, model.counts_of(unit));

  sum_up<Team>(counts, unit.bins);
  if (task.use == Use::energies) {
    const double found = potential == Potential::log ? log_energy<Team>(counts, unit, spacing)
                                                     : energy<Team>(counts, unit, spacing);
    if (Team::rank() == 0) task.energies[number] = found;
    return;
  }
  with_binning(unit, layer, range, [&](const auto* theta, auto* gradient, const auto& binning) {
    add_force<potential, Team>(model, unit, counts, theta, gradient, binning);
  });
}

// A broad unit to a block, or a unit to a warp.
template <Potential potential>
__global__ void __launch_bounds__(segment_threads, blocks_together)
    segment_kernel(const Model model, const __grid_constant__ Group group, const Task task) {
  const std::uint32_t* narrow = model.narrow + group.narrow.first;
  auto* words = dynamic_shared<unsigned>();
  if (blockIdx.x < group.broad_ones) {
    do_unit<potential, SegmentTeam>(model, group, narrow[blockIdx.x], NarrowCounts{words}, task);
  } else {
    const unsigned warp = threadIdx.x / warp_threads;
    const std::uint32_t at =
        group.broad_ones + (blockIdx.x - group.broad_ones) * SegmentTeam::warps + warp;
    const NarrowCounts counts{words + warp * group.warp_words};
    if (at < group.narrow.count)
      do_unit<potential, WarpTeam>(model, group, narrow[at], counts, task);
  }
  if (task.use == Use::force) end_step(model);
}

void launch_task(const Model& model, const Group& group, const Task& task, cudaStream_t stream) {
  const auto kernel = model.potential == Potential::log ? segment_kernel<Potential::log>
                                                        : segment_kernel<Potential::linear>;
  launch("launch of segment_kernel", kernel, group.narrow_blocks(), segment_threads,
         group.narrow_words * sizeof(unsigned), stream, model, group, task);
}

}  // namespace

void couple_narrow(const Model& model, const Group& group, bool shared, cudaStream_t stream) {
  launch_task(model, group, {Use::force, shared, nullptr}, stream);
}

void count_narrow(const Model& model, const Group& group, cudaStream_t stream) {
  launch_task(model, group, {Use::counts, true, nullptr}, stream);
}

void narrow_energies(const Model& model, const Group& group, double* energies,
                     cudaStream_t stream) {
  launch_task(model, group, {Use::energies, false, energies}, stream);
}

}  // namespace softq::cuda
