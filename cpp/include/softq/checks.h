// What the weights of a layer must fulfil, and the words of refusal, for every function and device.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace softq {

// Differences of counts are int32.
inline constexpr std::uint64_t max_weights = std::numeric_limits<std::int32_t>::max();

inline void check_size(std::uint64_t size) {
  if (size <= max_weights) return;
  throw std::invalid_argument("a layer has at most " + std::to_string(max_weights) +
                              " weights, got " + std::to_string(size));
}

inline void check_finite(std::uint64_t nonfinite, std::uint64_t size) {
  if (nonfinite == 0) return;
  throw std::invalid_argument(std::to_string(nonfinite) + " of " + std::to_string(size) +
                              " weights are not finite (NaN or inf)");
}

}  // namespace softq
