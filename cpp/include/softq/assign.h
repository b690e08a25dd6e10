// Moves weights between the clusters of their segments, whose shares of the line are intervals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace softq {

// For each segment, a row of `width` clusters in the order of their intervals, counted from the
// first one of the segment, and width - 1 ends, ascending: a weight x is in the first interval k
// with x <= ends[k], or in the last one.
struct Intervals {
  std::span<const std::int64_t> edges;  // of the segments
  std::span<const std::int64_t> first;  // cluster of each segment
  std::size_t width;
  const float* ends;
  const std::int32_t* order;
};

// Where the least of the parabolas (x - values)^2 + offsets changes: for each of `rows` rows of
// `width` values, ascending and then infinite, width - 1 ends, ascending. The least parabola at x
// is the first k with x <= ends[k], or the last one; one that is nowhere the least has the end of
// the one before it. Every pair is compared, as elsewhere than on a CPU, and with the same
// rounding.
template <class T>
void lower_envelope(const T* values, const T* offsets, std::size_t rows, std::size_t width,
                    T* ends);

// The clusters of all segments, in any order: each segment has so many of them, in a row, and so
// many weights.
struct SegmentClusters {
  std::span<const float> values;
  std::span<const std::int64_t> counts;  // of weights so far
  std::span<const std::int64_t> sizes;
  std::span<const std::int64_t> weights;
};

// The intervals in which each cluster of a segment is the cheapest for a weight x: least is
// (x - value)^2 + rd_weight * log2(weights / count), where an empty cluster counts as one of a
// single weight. Rows of `width` clusters and width - 1 ends, as above; shorter ones repeat their
// last cluster.
void cheapest_clusters(const SegmentClusters& clusters, float rd_weight, std::size_t width,
                       float* ends, std::int32_t* order);

// Writes the cluster of each weight, among those of all segments, and its value, which has 2, 4 or
// 8 bytes. Weights that are `kept`, if given, stay in the cluster that they are in. Returns how
// many weights each cluster has. The call cannot be interrupted.
std::vector<std::int64_t> assign(const float* weights, const Intervals& intervals,
                                 const std::uint8_t* kept, std::span<const std::byte> values,
                                 std::size_t itemsize, std::int32_t* clusters, void* out);

}  // namespace softq
