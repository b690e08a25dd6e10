// Measures of the segments of a layer, for all dtypes: range and standard deviation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "softq/scalar.h"
#include "softq/wide.h"

namespace softq {

// A contiguous layer: segment s has the weights edges[s] … edges[s + 1] - 1. At least one edge.
struct Segmented {
  const void* theta;
  Scalar scalar;
  std::vector<std::int64_t> edges;

  std::size_t segments() const { return edges.size() - 1; }
  std::size_t size() const { return static_cast<std::size_t>(edges.back()); }
  std::size_t size(std::size_t segment) const {
    return static_cast<std::size_t>(edges[segment + 1] - edges[segment]);
  }

  // Segments first … last - 1.
  Segmented part(std::size_t first, std::size_t last) const;
};

// Smallest and largest weight of each segment, 0 of an empty one; they mean nothing unless
// `nonfinite`, the number of weights that are NaN or inf, is 0.
struct Ranges {
  std::vector<double> low, high;
  std::uint64_t nonfinite = 0;
};

// Throws std::invalid_argument for a segment with too many weights (checks.h).
Ranges ranges(const Segmented& layer);

// Sums of the weights of a segment and of their squares, about the middle of its range, and how
// many weights are 0.
struct Moments {
  Wide first = 0;
  Wide second = 0;
  std::int64_t zeros = 0;
};

// Of each segment of finite weights. The sums are those of integers: with R half the range, a
// weight and its square are rounded to multiples of 2^-49 R and 2^-48 R^2 at most. So they depend
// neither on the order of the weights, nor on threads and instructions, and where the ranges are
// those of several pieces of a layer, the sums of the pieces add up to those of the layer.
std::vector<Moments> moments(const Segmented& layer, const Ranges& ranges);

// Population standard deviation of each segment, of so many weights; exactly 0 where all are equal.
std::vector<double> spreads(Scalar scalar, const Ranges& ranges,
                            const std::vector<Moments>& moments,
                            const std::vector<std::int64_t>& sizes);

}  // namespace softq
