// The effective potential V on the bins' midpoints (Eq. 5) and the mean-field energy (Eq. 6).
#pragma once

#include <cstdint>

#include "softq/density.h"
#include "softq/pull.h"
#include "softq/well.h"

namespace softq {

// The largest number of bins m whose midpoints are still inside the well: m * spacing < width, m <
// bins.
SOFTQ_HD std::int64_t reach(double width, double spacing, std::int64_t bins) {
  const std::int64_t most = bins - 1;
  if (static_cast<double>(most) * spacing < width) return most;
  const auto m = static_cast<std::int64_t>(width / spacing);
  // The products decide. Rounding keeps the order of numbers: the quotient may have been rounded up
  // to m, but m + 1, which it is below, is never inside.
  return m > 0 && static_cast<double>(m) * spacing >= width ? m - 1 : m;
}

// V[k] = sum_j counts[j] U_w(midpoint k - midpoint j), including the self term. Exact window sums
// of integers, O(bins): V = spacing * (first moment of the window) - width * (its population).
void potential_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                    double* potential);

// The same by a zero-padded convolution (the paper's way), O(bins log bins).
void potential_fft(const Count* counts, std::int64_t bins, double spacing, double width,
                   double* potential);

// Of the linear potential, sum_i V(theta_i) without the self term -w of each weight; with it, the
// sum is lower by size * width. Of the log potential, the length of the code in nats,
// -sum_i log(|V(theta_i)| / (N w)), in which V has its self term.
double mean_field_energy(const Count* counts, std::int64_t bins, double spacing, double width,
                         Potential potential = Potential::linear);

}  // namespace softq
