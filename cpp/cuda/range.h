// The range of the weights that a thread has seen, joined to that of the layer.
#pragma once

#include <limits>

#include "block.h"
#include "model.h"

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

  // Called by all threads of the block.
  __device__ void widen(Range& range) const {
    __shared__ Word shared[3][warps];
    const bool any = low <= high;
    const Word top = reduce(any ? encode(high) : 0, shared[0], Max<Word>{});
    const Word bottom = reduce(any ? encode(-low) : 0, shared[1], Max<Word>{});
    const Word bad = reduce(nonfinite, shared[2], Sum<Word>{});
    if (threadIdx.x != 0) return;
    if (top != 0) atomicMax(&range.high, top);
    if (bottom != 0) atomicMax(&range.negated_low, bottom);
    if (bad != 0) atomicAdd(&range.nonfinite, bad);
  }
};

}  // namespace softq::cuda
