// The innermost loops, compiled once for each instruction set and chosen when first used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "softq/binning.h"
#include "softq/pull.h"
#include "softq/sampling.h"

namespace softq {

template <class T>
struct Extent {
  T low, high;
  std::int64_t nonfinite;  // low and high mean nothing unless this is 0
};

// Weights that are binned come multiplied with the binning's factor.
template <class T>
struct WeightKernels {
  Extent<T> (*extent)(const T* theta, std::size_t size);
  // Sums of (theta[i] - centre) * scale, which are in [-1, 1], and of their squares, in units of
  // 2^-50 to which each term is rounded; of 2^12 weights at most.
  void (*power_sums)(const T* theta, std::size_t size, double centre, double scale,
                     std::int64_t* first, std::int64_t* second);
  // slot[i] = the bin of theta[i], to be counted one by one. What need not be, goes to the slots
  // beyond the last bin: weights outside the sample (theta[0] is weight `first` of the layer), and
  // those in the bin `crowded`, of which the number is returned.
  std::uint32_t (*slots)(const T* theta, std::size_t size, const Binning<T>& binning,
                         const Sample& sample, std::uint64_t first, std::int32_t crowded,
                         std::int32_t* slot);
  // out[i] = theta[i] * scale, rounded to an integer; below 2^51.
  void (*fixed)(const T* theta, std::size_t size, double scale, std::int64_t* out);
  // The window of each weight: a weight v is inside, own[i] - v < width and v - own[i] < width in
  // double, if first[i] <= v < behind[i]. NaN where a guess and its neighbours do not tell;
  // returns whether there are such.
  bool (*windows)(const T* own, std::size_t size, double width, T* first, T* behind);
  // rank[i] = how many of the ascending x, which end with an infinite one, are below key[i]; keys
  // ascend, `from` is not above the first rank and the size is a multiple of rank_block.
  void (*ranks)(const T* x, std::size_t stride, const T* key, std::size_t size, std::size_t from,
                std::uint32_t* rank);
  // gradient[i] += table[bin of theta[i]]
  void (*gather_add)(const T* theta, std::size_t size, const Binning<T>& binning, const T* table,
                     T* gradient);
};

// The force of the log potential on bin k of few weights, where the reach times their number is
// below 2^31. second: sums of the prefix counts, readable from -reach - 1 to bins + reach. Their
// second difference is the sum of how far the window's weights are from the first bins beyond it.
template <class C>
[[gnu::always_inline]] inline double narrow_log_force(const C* prefix, const std::uint32_t* second,
                                                      std::int64_t k, std::int64_t reach,
                                                      const LogPull& pull) {
  const std::int64_t beyond = reach + 1;
  const auto below = static_cast<C>(prefix[k] - prefix[k - reach]);
  const auto above = static_cast<C>(prefix[k + beyond] - prefix[k + 1]);
  const auto all = static_cast<C>(prefix[k + beyond] - prefix[k - reach]);
  const auto slope = static_cast<std::int32_t>(std::uint32_t{below} - std::uint32_t{above});
  const std::uint32_t depths = second[k + beyond] - 2 * second[k] + second[k - beyond];
  const std::uint32_t distance = static_cast<std::uint32_t>(beyond) * all - depths;
  const double occupancy = pull.occupancy(static_cast<double>(static_cast<std::int32_t>(all)),
                                          static_cast<double>(static_cast<std::int32_t>(distance)));
  return pull.force(static_cast<double>(slope), occupancy);
}

// The function for float or that for double, of two with different types.
template <class T, class Single, class Double>
constexpr auto for_width([[maybe_unused]] Single single, [[maybe_unused]] Double twice) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return single;
  } else {
    return twice;
  }
}

// C is the type of the counts, std::uint16_t or std::uint32_t.
template <class C>
struct CountKernels {
  // counts[k] += table[k]
  void (*add)(const C* table, std::size_t bins, std::uint32_t* counts);
  // sums[k] = counts[0] + … + counts[k]; in place where both are the same
  void (*sum)(const C* counts, std::size_t bins, C* sums);
  // force[k] = scale * ((C[k] - C[k - reach]) - (C[k + reach + 1] - C[k + 1])), where C = prefix is
  // readable from -reach to bins + reach
  void (*force32)(const C* prefix, std::int64_t bins, std::int64_t reach, double scale,
                  float* force);
  void (*force64)(const C* prefix, std::int64_t bins, std::int64_t reach, double scale,
                  double* force);
  // second[k] = prefix[0] + … + prefix[k], modulo 2^32
  void (*second_sum)(const C* prefix, std::size_t size, std::uint32_t* second);
  // force[k] = narrow_log_force() of bin k
  void (*log_force32)(const C* prefix, const std::uint32_t* second, std::int64_t bins,
                      std::int64_t reach, const LogPull& pull, float* force);
  void (*log_force64)(const C* prefix, const std::uint32_t* second, std::int64_t bins,
                      std::int64_t reach, const LogPull& pull, double* force);

  template <class T>
  auto log_force() const {
    return for_width<T>(log_force32, log_force64);
  }

  template <class T>
  auto force() const {
    return for_width<T>(force32, force64);
  }
};

// M is the type of the moments, std::uint32_t or std::uint64_t; prefix as above.
template <class M>
struct MomentKernels {
  // moment[k] = sum over |j - k| <= reach of |j - k| times the count of bin j
  void (*moments)(const std::uint32_t* prefix, std::int64_t bins, std::int64_t reach, M* moment);
  // potential[k] = spacing * moment[k] - width * (C[k + reach + 1] - C[k - reach])
  void (*potential)(const std::uint32_t* prefix, const M* moment, std::int64_t bins,
                    std::int64_t reach, double spacing, double width, double* potential);
  // force[k] = pull.scale * F / occupancy of bin k, F as in CountKernels
  void (*log_force32)(const std::uint32_t* prefix, const M* moment, std::int64_t bins,
                      std::int64_t reach, const LogPull& pull, float* force);
  void (*log_force64)(const std::uint32_t* prefix, const M* moment, std::int64_t bins,
                      std::int64_t reach, const LogPull& pull, double* force);

  template <class T>
  auto log_force() const {
    return for_width<T>(log_force32, log_force64);
  }
};

inline constexpr std::size_t rank_block = 16;

// Slots beyond the bins, in turn, so that nothing waits for the increment of one of them.
inline constexpr std::int32_t spare_slots = 16;

struct Kernels {
  const char* name;
  WeightKernels<float> weights32;
  WeightKernels<double> weights64;
  CountKernels<std::uint16_t> counts16;
  CountKernels<std::uint32_t> counts32;
  MomentKernels<std::uint32_t> moments32;
  MomentKernels<std::uint64_t> moments64;
  // sum over rows i and columns j of U_w(rows[i] - columns[j])
  double (*pair_energy)(const double* rows, std::size_t height, const double* columns,
                        std::size_t width_of_tile, double width);
  // force[i] += sum over columns j of U'_w(rows[i] - columns[j])
  void (*pair_force)(const double* rows, std::size_t height, const double* columns,
                     std::size_t width_of_tile, double width, std::int64_t* force);
  // depth[i] -= sum over columns j of scale * U_w(rows[i] - columns[j])
  void (*pair_depth)(const double* rows, std::size_t height, const double* columns,
                     std::size_t width_of_tile, double width, double scale, double* depth);

  template <class T>
  const WeightKernels<T>& weights() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return weights32;
    } else {
      return weights64;
    }
  }

  template <class C>
  const CountKernels<C>& counts() const {
    if constexpr (sizeof(C) == sizeof(std::uint16_t)) {
      return counts16;
    } else {
      return counts32;
    }
  }

  template <class M>
  const MomentKernels<M>& moments() const {
    if constexpr (sizeof(M) == sizeof(std::uint32_t)) {
      return moments32;
    } else {
      return moments64;
    }
  }
};

// The widest set this processor runs, or the one named by PYSOFTQ_SIMD.
const Kernels& kernels();

// The sets built in and usable here, widest first; kernels() uses the first unless another is set.
std::vector<std::string> simd_levels();

// Throws std::invalid_argument for a name that simd_levels() does not list.
void set_simd_level(const std::string& name);

}  // namespace softq
