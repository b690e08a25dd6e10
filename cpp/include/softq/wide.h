// Sums of fixed-point numbers that never overflow: 2^31 terms below 2^52.
#pragma once

#include <array>
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

// Digits of 32 bits, the lowest first and the highest with the sign: sums of such digits over fewer
// than 2^31 numbers do not overflow, and from_digits() carries.
using Digits = std::array<std::int64_t, 4>;

inline Digits digits_of(Wide number) {
  Digits digits{};
  for (std::size_t i = 0; i < 3; ++i) {
    digits[i] = static_cast<std::int64_t>(number & 0xFFFFFFFF);
    number >>= 32;
  }
  digits[3] = static_cast<std::int64_t>(number);
  return digits;
}

inline Wide from_digits(const Digits& digits) {
  Wide number = digits[3];
  for (std::size_t i = 3; i-- > 0;) number = number * (Wide{1} << 32) + digits[i];
  return number;
}

}  // namespace softq
