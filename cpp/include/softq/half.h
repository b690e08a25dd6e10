// float16 and bfloat16 as storage: computed with in float, rounded to nearest even on the way back.
#pragma once

#include <bit>
#include <cstdint>

#include "softq/well.h"

namespace softq {

struct Half {
  std::uint16_t bits;

  SOFTQ_HD explicit operator float() const {
    const std::uint32_t sign = (bits & 0x8000U) << 16;
    const std::uint32_t magnitude = bits & 0x7FFFU;
    if (magnitude >= 0x7C00U)
      return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
    // 2^112 moves the exponent from bias 15 to bias 127 and normalises subnormals exactly.
    return std::bit_cast<float>(
        sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F));
  }

  SOFTQ_HD static Half from(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (word >> 16) & 0x8000U;
    const std::uint32_t magnitude = word & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return {static_cast<std::uint16_t>(sign | 0x7E00U)};
    if (magnitude >= 0x477FF000U) return {static_cast<std::uint16_t>(sign | 0x7C00U)};
    if (magnitude < 0x38800000U) {
      // Adding 0.5 puts the last subnormal bit at the last bit of the sum: the addition rounds.
      const float sum = std::bit_cast<float>(magnitude) + 0.5F;
      return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3F000000U))};
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U) - 0x38000000U;
    return {static_cast<std::uint16_t>(sign | rounded >> 13)};
  }
};

struct BFloat16 {
  std::uint16_t bits;

  SOFTQ_HD explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }

  SOFTQ_HD static BFloat16 from(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    if ((word & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<std::uint16_t>(word >> 16 | 0x40U)};
    return {static_cast<std::uint16_t>((word + 0x7FFFU + ((word >> 16) & 1U)) >> 16)};
  }
};

}  // namespace softq
