// The innermost loops, compiled once for each instruction set and chosen when first used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "softq/binning.h"
#include "softq/sampling.h"

namespace softq {

template <class T>
struct Extent {
  T low, high;
  std::int64_t nonfinite;  // low and high mean nothing unless this is 0
};

template <class T>
struct WeightKernels {
  Extent<T> (*extent)(const T* theta, std::size_t size);
  void (*index)(const T* theta, std::size_t size, const Binning<T>& binning, std::int32_t* index);
  // gradient[i] += table[bin of theta[i]]
  void (*gather_add)(const T* theta, std::size_t size, const Binning<T>& binning, const T* table,
                     T* gradient);
  // force[k] = scale * ((C[k] - C[k - reach]) - (C[k + reach + 1] - C[k + 1])), where C = prefix is
  // readable from -reach to bins + reach
  void (*window_force)(const std::uint32_t* prefix, std::int64_t bins, std::int64_t reach,
                       double scale, T* force);
};

struct Kernels {
  const char* name;
  WeightKernels<float> weights32;
  WeightKernels<double> weights64;
  // keep[i] = 1 where weight first + i belongs to the sample.
  void (*keep)(const Sample& sample, std::uint64_t first, std::size_t size, std::uint32_t* keep);
  // sum over rows i and columns j of U_w(rows[i] - columns[j])
  double (*pair_energy)(const double* rows, std::size_t height, const double* columns,
                        std::size_t width_of_tile, double width);
  // force[i] += sum over columns j of U'_w(rows[i] - columns[j])
  void (*pair_force)(const double* rows, std::size_t height, const double* columns,
                     std::size_t width_of_tile, double width, std::int64_t* force);
  // sums[k] = counts[0] + … + counts[k]
  void (*prefix_sum)(const std::uint32_t* counts, std::size_t size, std::uint32_t* sums);

  template <class T>
  const WeightKernels<T>& weights() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return weights32;
    } else {
      return weights64;
    }
  }
};

// The widest set this processor runs, or the one named by PYSOFTQ_SIMD.
const Kernels& kernels();

// The sets built in and usable here, widest first; kernels() uses the first unless told otherwise.
std::vector<std::string> simd_levels();

// Throws std::invalid_argument for a name that simd_levels() does not list.
void set_simd_level(const std::string& name);

}  // namespace softq
