// Sums of fixed-point numbers that never overflow: 2^31 terms below 2^52.
#pragma once

#include <cstdint>

namespace softq {

__extension__ using Wide = __int128;

// Fractions of one are rounded to multiples of 2^-fraction_bits.
inline constexpr int fraction_bits = 50;

// a^2 / 2^fraction_bits for |a| < 2^82, three units too small at most.
inline Wide square(Wide a) {
  const Wide high = (a < 0 ? -a : a) >> 40;
  const Wide low = (a < 0 ? -a : a) - (high << 40);
  return (high * high << 30) + (high * low >> 9) + (low * low >> 50);
}

}  // namespace softq
