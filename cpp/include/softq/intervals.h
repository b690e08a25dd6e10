// Optimal partitions of ordered points into intervals: in one dimension each cluster of one is an
// interval. With nodes between the points a partition is a path from the first node to the last,
// whose steps are the intervals, and the optimal one the shortest path (Muresan and Effros, IEEE
// Trans. Inf. Theory 54, 2008).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace softq {

// Sums over the points before each node: their number, their values and the squares of these.
struct NodeSums {
  std::span<const double> counts, sums, squares;

  std::size_t nodes() const { return counts.size(); }
};

// What a partition costs: squared error about the means / variance + rd_weight n log2(N / n) for
// each interval of n of the N points.
struct IntervalCost {
  double variance;
  double rd_weight;
};

// The nodes that bound the intervals of the cheapest partition into at most `most`.
std::vector<std::int64_t> best_union(const NodeSums& sums, const IntervalCost& cost,
                                     std::size_t most);

// Clusters of all segments, ascending in each.
struct ClusterTable {
  std::span<const double> values, counts;
  std::span<const std::uint8_t> pinned;  // of the value 0, which it keeps whatever joins it
  std::span<const std::int64_t> sizes;   // clusters of each segment
};

enum class Rate { levels, packed, entropy };

// Runs of neighbouring clusters that become one.
struct Runs {
  std::vector<std::int64_t> lengths;  // in clusters
  std::vector<double> means;
};

// The runs of least squared error + rd_weight times bits in each segment: N log2(runs) for
// `levels`, N ceil(log2(runs)) for `packed`, N times the entropy for `entropy`. Of equally cheap
// ones the fewest, but for `entropy`.
Runs merge(const ClusterTable& clusters, double rd_weight, Rate rate);

}  // namespace softq
