// Equal bins over [low, high] and the rule that puts a weight into one of them.
#pragma once

#include <cstdint>
#include <limits>

#include "softq/well.h"

namespace softq {

// T is the type the index is computed in: float (also for half-precision weights) or double.
// Every device evaluates index() in T without fused multiply-add, so the integers are the same
// everywhere.
template <class T>
struct Binning {
  T low = 0;
  T inverse = 0;  // bins per unit of weight; 0 when the range is a single point
  double spacing = 0;
  std::int32_t bins = 1;

  Binning() = default;

  // A range too narrow for `inverse` to be finite (below bins / max(T)) counts as a point: one bin,
  // spacing 0.
  SOFTQ_HD Binning(T low_, T high_, std::int32_t bins_) : low(low_), bins(bins_) {
    const T scale = static_cast<T>(bins_) / (high_ - low_);
    if (high_ > low_ && scale <= std::numeric_limits<T>::max()) {
      inverse = scale;
      spacing = (static_cast<double>(high_) - static_cast<double>(low_)) / bins_;
    }
  }

  SOFTQ_HD std::int32_t index(T x) const {
    const auto k = static_cast<std::int32_t>((x - low) * inverse);
    return k < bins ? k : bins - 1;
  }
};

}  // namespace softq
