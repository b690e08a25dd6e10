#include <algorithm>
#include <numeric>

#include "model.h"

namespace softq::cuda {

std::vector<Segment> partition(const std::vector<std::uint64_t>& sizes, std::uint64_t blocks) {
  constexpr std::uint64_t least = 4096;
  constexpr std::uint64_t step = 16;  // keeps segments as aligned as their layer
  const auto total = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  const std::uint64_t length = std::max(least, (total + blocks - 1) / blocks);
  std::vector<Segment> segments;
  for (std::size_t layer = 0; layer < sizes.size(); ++layer) {
    const std::uint64_t size = sizes[layer];
    const std::uint64_t count = (size + length - 1) / length;
    if (count == 0) continue;
    const std::uint64_t share = ((size + count - 1) / count + step - 1) / step * step;
    for (std::uint64_t begin = 0; begin < size; begin += share) {
      segments.push_back({static_cast<std::uint32_t>(layer), begin, std::min(begin + share, size)});
    }
  }
  return segments;
}

}  // namespace softq::cuda
