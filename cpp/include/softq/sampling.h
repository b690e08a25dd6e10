// The random subsample of the histogram, without state: whether weight i is drawn depends only on
// (seed, step, layer, i), hence not on the device, the thread count or what was drawn before. Nor
// does it on how a layer is cut into segments: i counts from its own first weight.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "softq/well.h"

namespace softq {

inline constexpr std::uint64_t golden_ratio = 0x9E3779B97F4A7C15U;  // times 2^64

// SplitMix64 (Steele, Lea, Flood 2014): its n-th output is a function of (key, n).
SOFTQ_HD std::uint64_t splitmix64(std::uint64_t key, std::uint64_t n) {
  std::uint64_t z = key + (n + 1) * golden_ratio;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

struct Sample {
  std::uint64_t key = 0;
  std::uint64_t threshold = std::uint64_t{1} << 32;  // fraction * 2^32

  Sample() = default;

  // Of the weights from number `first` of the layer on: keeps(0) is about that one.
  SOFTQ_HD Sample(double fraction, std::uint64_t seed, std::uint64_t step, std::uint64_t layer,
                  std::uint64_t first = 0)
      : key(splitmix64(splitmix64(seed, step), layer) + first * golden_ratio),
        threshold(static_cast<std::uint64_t>(fraction * 4294967296.0)) {}

  SOFTQ_HD bool whole() const { return threshold >= (std::uint64_t{1} << 32); }
  SOFTQ_HD bool keeps(std::uint64_t i) const { return (splitmix64(key, i) >> 32) < threshold; }

  // keeps(i) of the result is keeps(i + distance) of this one, modulo 2^64.
  Sample moved(std::uint64_t distance) const {
    Sample other = *this;
    other.key += distance * golden_ratio;
    return other;
  }
};

// Positions in a layer, counted in row-major order, of a block of it: rows of which some columns
// are present.
struct Block {
  static constexpr std::uint64_t endless = std::numeric_limits<std::uint64_t>::max();

  std::uint64_t first = 0;          // position of the block's first weight
  std::uint64_t columns = endless;  // of the block
  std::uint64_t outer = 0;          // positions from one row to the next

  // Of a weight, given its number in the block.
  SOFTQ_HD std::uint64_t position(std::uint64_t place) const {
    if (columns == endless) return first + place;
    return first + place / columns * outer + place % columns;
  }
};

// The draw for weights that are consecutive in a block; weight 0 is number `begin` of the block.
struct Draw {
  Sample sample;
  Block block;
  std::uint64_t begin = 0;

  Draw(const Sample& whole) : sample(whole) {}
  SOFTQ_HD Draw(const Sample& layer, const Block& own, std::uint64_t from)
      : sample(layer), block(own), begin(from) {}

  // Calls body(begin, end, sample) for runs of weights whose positions are consecutive, too;
  // sample.keeps(i) is about weight i.
  template <class Body>
  void for_runs(std::size_t from, std::size_t end, const Body& body) const {
    if (sample.whole()) return body(from, end, sample);
    while (from < end) {
      const std::uint64_t place = begin + from;
      const std::uint64_t rest = block.columns - place % block.columns;
      const std::size_t length = std::min<std::uint64_t>(end - from, rest);
      body(from, from + length, sample.moved(block.position(place) - from));
      from += length;
    }
  }
};

}  // namespace softq
