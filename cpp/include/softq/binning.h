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
  // Of weights whose range is so narrow that bins / range overflows (below bins / max(T)). A power
  // of two, so that no product is rounded: it makes the inverse of any such range finite, and the
  // weights, at most 2^53 times as large as their range, stay finite too.
  static constexpr T narrow_factor =
      sizeof(T) == 4 ? static_cast<T>(0x1p96) : static_cast<T>(0x1p600);

  T factor = 1;   // of the weights before they are binned; narrow_factor or 1
  T low = 0;      // times the factor
  T inverse = 0;  // bins per unit of weight times factor; 0 when the range is a single point
  double spacing = 0;
  std::int32_t bins = 1;

  Binning() = default;

  // A point if low = high, or where float64 cannot hold the spacing.
  SOFTQ_HD Binning(T low_, T high_, std::int32_t bins_) : low(low_), bins(bins_) {
    const double step = (static_cast<double>(high_) - static_cast<double>(low_)) / bins_;
    if (!(step > 0)) return;
    spacing = step;
    if (!(static_cast<T>(bins_) / (high_ - low_) <= std::numeric_limits<T>::max())) {
      factor = narrow_factor;
    }
    low = low_ * factor;
    inverse = static_cast<T>(bins_) / (high_ * factor - low);
  }

  SOFTQ_HD std::int32_t index(T x) const { return index_of_product(x * factor); }

  // Of a weight times the factor. In range for any weight, NaN included: one may have changed since
  // the range was measured, by another thread or stream. Integers are compared, in a tenth less of
  // a step's time than floats: processors convert what does not fit to 0, the lowest or the
  // highest.
  SOFTQ_HD std::int32_t index_of_product(T product) const {
    const auto place = static_cast<std::int32_t>((product - low) * inverse);
    const std::int32_t k = place < bins ? place : bins - 1;
    return k > 0 ? k : 0;
  }
};

}  // namespace softq
