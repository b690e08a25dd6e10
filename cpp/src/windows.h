// Counts with room for windows that reach beyond both ends of the bins.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scratch.h"
#include "softq/kernels.h"

namespace softq {

// C: 16 bits where a layer has fewer than 2^16 weights, so that all of it fits the first-level
// cache, else 32.
template <class C>
class Windows {
 public:
  Windows(Scratch<C>& scratch, std::int64_t bins, std::int64_t reach) : bins_(bins), reach_(reach) {
    const std::int64_t before = (reach + 1 + 31) / 32 * 32;  // counts begin at a cache line
    const std::int64_t behind = std::max<std::int64_t>(reach, spare_slots);
    sums_ = scratch.reserve(static_cast<std::size_t>(before + bins + behind)) + before;
    std::fill_n(sums_ - reach - 1, reach + 1, C{0});
  }

  // Counts may be put together here: as many zeros as there are bins and spare slots.
  C* zeros() {
    std::fill_n(sums_, bins_ + spare_slots, C{0});
    return sums_;
  }

  // prefix[k] = counts[0] + … + counts[k - 1], readable from -reach to bins + reach.
  const C* prefix(const C* counts) {
    kernels().counts<C>().sum(counts, static_cast<std::size_t>(bins_), sums_);
    std::fill_n(sums_ + bins_, reach_, sums_[bins_ - 1]);
    return sums_ - 1;
  }

 private:
  std::int64_t bins_, reach_;
  C* sums_;
};

}  // namespace softq
