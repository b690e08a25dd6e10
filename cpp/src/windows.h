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
  Windows(Scratch<C>& scratch, std::int64_t bins, std::int64_t reach)
      : bins_(bins),
        reach_(reach),
        length_(begin() + bins + std::max<std::int64_t>(reach, spare_slots)) {
    data_ = scratch.reserve(static_cast<std::size_t>(length_));
  }
  // The next user finds zeros.
  ~Windows() { std::fill_n(data_, length_, C{0}); }
  Windows(const Windows&) = delete;
  Windows& operator=(const Windows&) = delete;

  // All zero at first; followed by at least spare_slots places.
  C* counts() { return data_ + begin(); }

  // force[k] = scale * (weights within the well in lower bins - those in higher bins). Sums the
  // counts up in place.
  template <class T>
  void force(double scale, T* force) {
    const auto& set = kernels().counts<C>();
    C* sums = counts();
    set.sum(sums, static_cast<std::size_t>(bins_));
    std::fill_n(sums + bins_, reach_, sums[bins_ - 1]);
    set.template force<T>()(sums - 1, bins_, reach_, scale, force);
  }

 private:
  // Counts begin at a cache line.
  std::int64_t begin() const { return (reach_ + 1 + 31) / 32 * 32; }

  std::int64_t bins_, reach_, length_;
  C* data_ = nullptr;
};

}  // namespace softq
