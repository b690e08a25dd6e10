// Narrow units, each coupled by a warp or a block: counts and their sums stay in shared memory,
// and no force is computed but at weights.
#include "model.h"
#include "packs.h"
#include "softq/binning.h"
#include "step.h"
#include "tables.h"
#include "tally.h"

namespace softq::cuda {
namespace {

using SegmentTeam = Team<segment_threads>;

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

// A unit as a team couples it.
template <class Storage, class T>
struct Narrow {
  const Unit& unit;
  const Storage* theta;
  Storage* gradient;
  Binning<T> binning;
  NarrowCounts counts;
};

// Counts the weights of this process.
template <class Team, class Storage, class T>
__device__ void count_own(const Model& model, const Narrow<Storage, T>& own, bool everything) {
  clear<Team>(own.counts, own.unit.bins);
  const Draw draw = draw_of(model, own.unit, everything);
  tally<Team>(own.theta, 0, own.unit.size, own.binning, draw, own.counts);
  Team::sync();
}

// The sums of the counts of all processes.
template <class Team, class Storage, class T>
__device__ void make_sums(const Model& model, const Narrow<Storage, T>& own, bool everything) {
  if (own.unit.shared) {
    fetch<Team>(own.counts, own.unit.bins, model.counts_of(own.unit));
  } else {
    count_own<Team>(model, own, everything);
  }
  sum_up<Team>(own.counts, own.unit.bins);
}

struct AddForce {
  static constexpr bool ends_step = true;
  bool shared;

  // Whether a unit is left alone.
  __device__ bool skips(const Model& model, const Unit& unit, const Addresses& layer) const {
    return unit.shared != shared || !layer.active || unit.size == 0 ||
           model.progress->refused != 0;
  }

  template <class Team, class Storage, class T>
  __device__ void run(const Model& model, std::uint32_t, const Narrow<Storage, T>& own) const {
    make_sums<Team>(model, own, false);
    const double scale = scale_of(model, own.unit);
    const std::int64_t bins = own.unit.bins;
    const std::int64_t m = reach_of(own.unit, own.binning.spacing);
    add_to_gradient<Team>(own.theta, own.gradient, 0, own.unit.size, [&](T x) {
      const std::int32_t force = sides_of(own.counts, bins, m, own.binning.index(x)).force();
      return static_cast<T>(scale * static_cast<double>(force));
    });
  }
};

struct Count {
  static constexpr bool ends_step = false;

  __device__ bool skips(const Model&, const Unit& unit, const Addresses&) const {
    return !unit.shared;
  }

  template <class Team, class Storage, class T>
  __device__ void run(const Model& model, std::uint32_t number,
                      const Narrow<Storage, T>& own) const {
    if (own.unit.counted && model.states[number].active) {
      count_own<Team>(model, own, false);
    } else {
      clear<Team>(own.counts, own.unit.bins);
    }
    unsigned* out = model.counts_of(own.unit);
    for (std::int32_t k = static_cast<std::int32_t>(Team::rank()); k < own.unit.bins;
         k += Team::threads)
      out[k] = own.counts[k];
  }
};

// As small_energy() of the CPU core: the sums are those of integers.
struct Energy {
  static constexpr bool ends_step = false;
  double* energies;

  __device__ bool skips(const Model&, const Unit& unit, const Addresses&) const {
    return !unit.shared && unit.size == 0;
  }

  template <class Team, class Storage, class T>
  __device__ void run(const Model& model, std::uint32_t number,
                      const Narrow<Storage, T>& own) const {
    make_sums<Team>(model, own, true);
    __shared__ std::int64_t shared[2][Team::warps];
    const std::int64_t bins = own.unit.bins;
    const std::int64_t m = reach(own.unit.width, own.binning.spacing, bins);
    std::int64_t distance = 0;
    std::int64_t pairs = 0;
    for (std::int64_t k = Team::rank(); k < bins; k += Team::threads) {
      const std::int64_t count = own.counts[k] - (k > 0 ? own.counts[k - 1] : 0);
      if (count == 0) continue;
      const Sides sides = sides_of(own.counts, bins, m, k);
      distance += count * k * sides.force();
      pairs += count * (std::int64_t{sides.all} - 1);
    }
    distance = reduce<Team>(distance, shared[0], Sum<std::int64_t>{});
    pairs = reduce<Team>(pairs, shared[1], Sum<std::int64_t>{});
    if (Team::rank() != 0) return;
    energies[number] =
        own.unit.strength * (own.binning.spacing * static_cast<double>(2 * distance) -
                             own.unit.width * static_cast<double>(pairs));
  }
};

template <class Team, class Use>
__device__ void with_unit(const Model& model, const Group& group, std::uint32_t number,
                          unsigned* words, const Use& use) {
  const Unit& unit = model.units[number];
  const Addresses& layer = group.addresses[unit.layer - group.first_layer];
  if (use.skips(model, unit, layer)) return;
  const DecodedRange range(model.ranges[number]);
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    use.template run<Team>(
        model, number,
        Narrow<Storage, T>{unit, static_cast<const Storage*>(layer.theta) + unit.begin,
                           static_cast<Storage*>(layer.gradient) + unit.begin,
                           Binning<T>(static_cast<T>(range.low), static_cast<T>(range.high),
                                      unit.bins),
                           NarrowCounts{words}});
  });
}

// A broad unit to a block, or a unit to a warp.
template <class Use>
__global__ void __launch_bounds__(segment_threads)
    segment_kernel(const Model model, const __grid_constant__ Group group, const Use use) {
  const std::uint32_t* narrow = model.narrow + group.narrow.first;
  auto* words = dynamic_shared<unsigned>();
  if (blockIdx.x < group.broad_ones) {
    with_unit<SegmentTeam>(model, group, narrow[blockIdx.x], words, use);
  } else {
    const unsigned warp = threadIdx.x / warp_threads;
    const std::uint32_t at =
        group.broad_ones + (blockIdx.x - group.broad_ones) * SegmentTeam::warps + warp;
    if (at < group.narrow.count)
      with_unit<WarpTeam>(model, group, narrow[at], words + warp * group.warp_words, use);
  }
  if constexpr (Use::ends_step) end_step(model);
}

template <class Use>
void launch_for(const char* name, const Model& model, const Group& group, const Use& use,
                cudaStream_t stream) {
  launch(name, segment_kernel<Use>, group.narrow_blocks(), segment_threads,
         group.narrow_words * sizeof(unsigned), stream, model, group, use);
}

}  // namespace

void couple_narrow(const Model& model, const Group& group, bool shared, cudaStream_t stream) {
  launch_for("launch of segment_kernel", model, group, AddForce{shared}, stream);
}

void count_narrow(const Model& model, const Group& group, cudaStream_t stream) {
  launch_for("launch of segment_kernel", model, group, Count{}, stream);
}

void narrow_energies(const Model& model, const Group& group, double* energies,
                     cudaStream_t stream) {
  launch_for("launch of segment_kernel", model, group, Energy{energies}, stream);
}

}  // namespace softq::cuda
