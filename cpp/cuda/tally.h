// Counts the sampled weights in bins.
#pragma once

#include <cstdint>

#include "packs.h"
#include "softq/binning.h"
#include "softq/sampling.h"

namespace softq::cuda {

struct Counts {
  unsigned* at;

  __device__ void add(std::int32_t bin, unsigned weights) const { atomicAdd(&at[bin], weights); }
};

// Adds one to the bin of each lane that keeps its weight. Where many lanes have the bin of the
// first, as in a layer that has gathered in few clusters, one of them adds for all: increments of
// one address would wait for each other.
template <class Table>
__device__ void count_warp(const Table& table, std::int32_t bin, bool keep) {
  constexpr int crowd = 4;  // lanes
  const unsigned kept = __ballot_sync(all_lanes, keep);
  if (kept == 0) return;
  const int first = __ffs(static_cast<int>(kept)) - 1;
  const std::int32_t crowded = __shfl_sync(all_lanes, bin, first);
  const unsigned same = __ballot_sync(all_lanes, keep && bin == crowded);
  if (__popc(same) >= crowd) {
    if (static_cast<int>(threadIdx.x % warp_threads) == first)
      table.add(bin, static_cast<unsigned>(__popc(same)));
    keep = keep && bin != crowded;
  }
  if (keep) table.add(bin, 1);
}

// Positions in a layer of weights that follow each other in a block of it.
struct Positions {
  std::uint64_t position, column = 0;

  // From a number in the block on.
  __device__ Positions(const Block& block, std::uint64_t place) : position(block.position(place)) {
    if (block.columns != Block::endless) column = place % block.columns;
  }
  __device__ void advance(const Block& block) {
    ++position;
    if (++column != block.columns) return;
    column = 0;
    position += block.outer - block.columns;
  }
};

// Called by all threads of the team.
template <class Team, unsigned batch, Walk walk, class Storage, class T, class Table>
__device__ void tally(const Storage* theta, std::uint64_t begin, std::uint64_t end,
                      const Binning<T>& binning, const Draw& draw, const Table& table) {
  for_packs<Team, batch, walk>(
      begin, end, theta, no<Storage>,
      [&]<unsigned n>(Size<n>, std::uint64_t i) { return load<n>(theta + i); },
      [&]<unsigned n>(Size<n>, std::uint64_t i, const Pack<Storage, n>& x, bool inside) {
        const bool whole = draw.sample.whole();
        Positions at(draw.block, draw.begin + i);
#pragma unroll
        for (unsigned j = 0; j < n; ++j) {
          const bool keep = inside && (whole || draw.sample.keeps(at.position));
          count_warp(table, binning.index(static_cast<T>(x.at[j])), keep);
          if (!whole) at.advance(draw.block);
        }
      });
}

}  // namespace softq::cuda
