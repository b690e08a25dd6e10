#include <algorithm>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "model.h"

namespace softq::cuda {
namespace {

constexpr std::uint64_t least = 4096;
constexpr std::uint64_t cost = 1 << 14;  // of a share, in weights: its table is zeroed and added
constexpr std::uint64_t step = 16;       // keeps shares as aligned as their unit

std::uint64_t quotient_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

std::uint64_t count_of(const std::vector<std::uint64_t>& sizes, std::uint64_t length) {
  std::uint64_t count = 0;
  for (const std::uint64_t size : sizes) count += quotient_up(size, length);
  return count;
}

// The smallest length with which the shares are at most so many; with any length there is one
// for each unit.
std::uint64_t length_for(const std::vector<std::uint64_t>& sizes, std::uint64_t shares) {
  std::uint64_t low = least;
  std::uint64_t high = least;
  for (const std::uint64_t size : sizes) high = std::max(high, size);
  while (low < high) {
    const std::uint64_t middle = low + (high - low) / 2;
    if (count_of(sizes, middle) <= shares) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

std::vector<Share> split(const std::vector<std::uint64_t>& sizes, std::uint64_t length) {
  std::vector<Share> shares;
  for (std::size_t unit = 0; unit < sizes.size(); ++unit) {
    const std::uint64_t size = sizes[unit];
    const std::uint64_t count = quotient_up(size, length);
    if (count == 0) continue;
    const std::uint64_t own = quotient_up(quotient_up(size, count), step) * step;
    for (std::uint64_t begin = 0; begin < size; begin += own) {
      shares.push_back({static_cast<std::uint32_t>(unit), begin, std::min(begin + own, size)});
    }
  }
  return shares;
}

// When the last share ends, in weights, if so many run at once and the next one begins where one
// has ended.
std::uint64_t end_of(const std::vector<Share>& shares, std::uint64_t blocks) {
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> ends;
  std::uint64_t last = 0;
  for (const Share& share : shares) {
    std::uint64_t begin = 0;
    if (ends.size() == blocks) {
      begin = ends.top();
      ends.pop();
    }
    const std::uint64_t end = begin + cost + share.end - share.begin;
    ends.push(end);
    last = std::max(last, end);
  }
  return last;
}

}  // namespace

std::vector<Share> partition(const std::vector<std::uint64_t>& sizes, std::uint64_t blocks) {
  // Whole waves: else the last one leaves most of the device idle. With more of them, blocks end
  // together more closely, but have more tables to add up.
  constexpr std::uint64_t most_waves = 4;
  std::vector<Share> best = split(sizes, length_for(sizes, blocks));
  for (std::uint64_t waves = 2; waves <= most_waves; ++waves) {
    std::vector<Share> shares = split(sizes, length_for(sizes, waves * blocks));
    if (end_of(shares, blocks) < end_of(best, blocks)) best = std::move(shares);
  }
  return best;
}

}  // namespace softq::cuda
