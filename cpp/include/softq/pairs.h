// The exact interaction of all pairs of weights (Eq. 2), without h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softq {

// E = sum over ordered pairs i != j of U_w(theta_i - theta_j); differences are taken in double.
// O(N log N): with x sorted, E = 2 (sum_k gap_k C_k - w P), where C_k counts the interacting pairs
// that straddle the k-th gap and P counts all of them. All terms are positive: nothing cancels
// inside the sum. T is float or double. Throws std::invalid_argument when weights are not finite or
// N > 2^31 - 1 (checks.h).
template <class T>
double pair_energy_sort(const T* theta, std::size_t size, double width);

// F_i = #{j: 0 < theta_i - theta_j < w} - #{j: 0 < theta_j - theta_i < w}
template <class T>
void pair_force_sort(const T* theta, std::size_t size, double width, std::int64_t* force);

// The same by the O(N^2) sum over tiles.
template <class T>
double pair_energy_direct(const T* theta, std::size_t size, double width);
template <class T>
void pair_force_direct(const T* theta, std::size_t size, double width, std::int64_t* force);

// occupancy[i] = |V(theta_i)| / w = sum_j (1 - |theta_i - theta_j| / w) over the weights closer
// than w, itself included: 1 or more. O(N log N): sums over blocks of sorted weights, all terms of
// which are positive.
template <class T>
void pair_occupancy_sort(const T* theta, std::size_t size, double width, double* occupancy);
// The same by the O(N^2) sum over tiles.
template <class T>
void pair_occupancy_direct(const T* theta, std::size_t size, double width, double* occupancy);

}  // namespace softq
