// The range of the weights that a team's threads have seen.
#pragma once

#include <limits>

#include "block.h"
#include "model.h"
#include "packs.h"

namespace softq::cuda {

template <class T>
struct WeightRange {
  T low = std::numeric_limits<T>::infinity();
  T high = -std::numeric_limits<T>::infinity();
  Word nonfinite = 0;

  __device__ void add(T x) {
    if (x - x == 0) {
      low = x < low ? x : low;
      high = x > high ? x : high;
    } else {
      ++nonfinite;
    }
  }

  // Of all threads; the result is that of rank 0.
  template <class Team>
  __device__ Range joined() const {
    __shared__ Word shared[3][Team::warps];
    const bool any = low <= high;
    return {reduce<Team>(any ? encode(high) : 0, shared[0], Max<Word>{}),
            reduce<Team>(any ? encode(-low) : 0, shared[1], Max<Word>{}),
            reduce<Team>(nonfinite, shared[2], Sum<Word>{})};
  }
};

__device__ inline void widen(Range& range, const Range& by) {
  if (by.high != 0) atomicMax(&range.high, by.high);
  if (by.negated_low != 0) atomicMax(&range.negated_low, by.negated_low);
  if (by.nonfinite != 0) atomicAdd(&range.nonfinite, by.nonfinite);
}

// Called by all threads of the team; the result is that of rank 0.
template <class Team, class Storage, class T>
__device__ Range range_of(const Storage* theta, std::uint64_t begin, std::uint64_t end, T) {
  WeightRange<T> range;
  for_packs<Team, 4>(
      begin, end, theta, no<Storage>,
      [&]<unsigned n>(Size<n>, std::uint64_t i) { return load<n>(theta + i); },
      [&]<unsigned n>(Size<n>, std::uint64_t, const Pack<Storage, n>& x, bool inside) {
        if (!inside) return;
#pragma unroll
        for (unsigned j = 0; j < n; ++j) range.add(static_cast<T>(x.at[j]));
      });
  return range.template joined<Team>();
}

// Records that a unit's range makes the step unfit.
__device__ inline void refuse(const Model& model, std::uint32_t unit, const DecodedRange& range) {
  UnitState& state = model.states[unit];
  if (state.refused.step == 0) {
    state.refused = {model.progress->finished + 1, range.nonfinite, range.low, range.high};
  }
  atomicAdd(&model.progress->refused, 1U);
}

}  // namespace softq::cuda
