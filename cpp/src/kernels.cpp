// Compiled once for each instruction set, with SOFTQ_SIMD naming it. Nothing here may call a
// function that the linker could share between the copies: no standard algorithms, only loops and
// forced inlines.
#include "softq/kernels.h"

#include <limits>
#include <type_traits>

#include "softq/well.h"

#define SOFTQ_STRING_(x) #x
#define SOFTQ_STRING(x) SOFTQ_STRING_(x)

namespace softq {
namespace {

template <class T>
Extent<T> extent(const T* theta, std::size_t size) {
  if (size == 0) return {0, 0, 0};
  T low = theta[0];
  T high = theta[0];
  std::int64_t nonfinite = 0;
  // Short blocks keep the count in as narrow a type as the weights.
  for (std::size_t begin = 0; begin < size; begin += 4096) {
    const std::size_t end = size - begin < 4096 ? size : begin + 4096;
    std::int32_t bad = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : bad)
    for (std::size_t i = begin; i < end; ++i) {
      const T x = theta[i];
      low = x < low ? x : low;
      high = x > high ? x : high;
      bad += x - x == 0 ? 0 : 1;
    }
    nonfinite += bad;
  }
  return {low, high, nonfinite};
}

// Added to a number below 2^51, it leaves the nearest integer in the lower bits.
constexpr double integers = 0x1.8p52;

[[gnu::always_inline]] inline std::uint64_t bits_of(double value) {
  return __builtin_bit_cast(std::uint64_t, value);
}

template <class T>
void power_sums(const T* theta, std::size_t size, double centre, double scale, std::int64_t* first,
                std::int64_t* second) {
  // Times 2^25, so that the square is in units of 2^-50. A number below 2^26 is rounded to the same
  // units where multiples of 2^-25 are left.
  constexpr double fractions = integers * 0x1p-25;
  const double factor = scale * 0x1p25;
  std::uint64_t sum = 0;
  std::uint64_t squares = 0;
#pragma omp simd reduction(+ : sum, squares)
  for (std::size_t i = 0; i < size; ++i) {
    const double x = (static_cast<double>(theta[i]) - centre) * factor;
    sum += bits_of(x + fractions);
    squares += bits_of(x * x + integers);
  }
  *first = static_cast<std::int64_t>(sum - size * bits_of(fractions));  // modulo 2^64
  *second = static_cast<std::int64_t>(squares - size * bits_of(integers));
}

template <class T>
std::uint32_t slots(const T* theta, std::size_t size, const Binning<T>& binning,
                    const Sample& sample, std::uint64_t first, std::int32_t crowded,
                    std::int32_t* out) {
  const Binning<T> bin = binning;
  const Sample draw = sample;
  std::uint32_t inside = 0;
  if (draw.whole()) {
#pragma omp simd reduction(+ : inside)
    for (std::size_t i = 0; i < size; ++i) {
      const std::int32_t k = bin.index_of_product(theta[i]);
      const std::int32_t spare = bin.bins + static_cast<std::int32_t>(i % spare_slots);
      inside += k == crowded ? 1 : 0;
      out[i] = k == crowded ? spare : k;
    }
  } else {
#pragma omp simd reduction(+ : inside)
    for (std::size_t i = 0; i < size; ++i) {
      const std::int32_t k = bin.index_of_product(theta[i]);
      const std::int32_t spare = bin.bins + static_cast<std::int32_t>(i % spare_slots);
      const bool drawn = draw.keeps(first + i);
      inside += (drawn & (k == crowded)) ? 1 : 0;
      out[i] = (!drawn | (k == crowded)) ? spare : k;
    }
  }
  return inside;
}

template <class T>
void fixed(const T* theta, std::size_t size, double scale, std::int64_t* out) {
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint64_t sum = bits_of(static_cast<double>(theta[i]) * scale + integers);
    out[i] = static_cast<std::int64_t>(sum - bits_of(integers));
  }
}

// The next larger value (-0 below +0), or the next smaller one; x is finite. No branches: it is
// for loops that are to be vectors.
template <int direction, class T>
[[gnu::always_inline]] inline T neighbour(T x) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr int last = 8 * sizeof(T) - 1;
  constexpr Bits magnitude = static_cast<Bits>(~(Bits{1} << last));
  Bits bits = __builtin_bit_cast(Bits, x);
  bits ^= (bits >> last) & magnitude;  // orders as the values do
  bits += direction;
  bits ^= (bits >> last) & magnitude;
  return __builtin_bit_cast(T, bits);
}

template <class T>
bool windows(const T* own, std::size_t size, double width, T* first, T* behind) {
  constexpr T unknown = std::numeric_limits<T>::quiet_NaN();
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) {
    const double x = static_cast<double>(own[i]);
    const T guess = static_cast<T>(x - width);
    const T above = neighbour<1>(guess);
    const T value = x - static_cast<double>(guess) < width ? guess : above;
    const T before = neighbour<-1>(value);
    const T checked = x - static_cast<double>(value) < width ? value : unknown;
    first[i] = x - static_cast<double>(before) < width ? unknown : checked;
  }
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) {
    const double x = static_cast<double>(own[i]);
    const T guess = static_cast<T>(x + width);
    const T above = neighbour<1>(guess);
    const T value = static_cast<double>(guess) - x < width ? above : guess;
    const T before = neighbour<-1>(value);
    const T checked = static_cast<double>(value) - x < width ? unknown : value;
    behind[i] = static_cast<double>(before) - x < width ? checked : unknown;
  }
  std::uint32_t doubts = 0;
#pragma omp simd reduction(+ : doubts)
  for (std::size_t i = 0; i < size; ++i) {
    doubts += first[i] == first[i] && behind[i] == behind[i] ? 0 : 1;
  }
  return doubts > 0;
}

// All keys of a block are compared with each weight among which one of them may be.
template <class T>
void ranks(const T* x, std::size_t stride, const T* key, std::size_t size, std::size_t from,
           std::uint32_t* rank) {
  for (std::size_t begin = 0; begin < size; begin += rank_block) {
    const T* own = key + begin;
    const T last = own[rank_block - 1];
    std::uint32_t below[rank_block];
    for (std::size_t i = 0; i < rank_block; ++i) below[i] = static_cast<std::uint32_t>(from);
    for (;; ++from) {
      const T value = x[stride * from];
#pragma omp simd
      for (std::size_t i = 0; i < rank_block; ++i) below[i] += value < own[i] ? 1 : 0;
      if (!(value < last)) break;
    }
    for (std::size_t i = 0; i < rank_block; ++i) rank[begin + i] = below[i];
  }
}

template <class T>
void gather_add(const T* theta, std::size_t size, const Binning<T>& binning, const T* table,
                T* gradient) {
  const Binning<T> local = binning;
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) gradient[i] += table[local.index_of_product(theta[i])];
}

// Rows in the lanes, several vectors of them at once: one load of a column serves all, no chain is
// long.
constexpr std::size_t lanes = 32;

double pair_energy(const double* rows, std::size_t height, const double* columns, std::size_t count,
                   double width) {
  const Well well{width};
  double total = 0;
  std::size_t i = 0;
  for (; i + lanes <= height; i += lanes) {
    double sum[lanes] = {};
    for (std::size_t j = 0; j < count; ++j) {
#pragma omp simd
      for (std::size_t lane = 0; lane < lanes; ++lane)
        sum[lane] += well.energy(rows[i + lane] - columns[j]);
    }
    for (const double value : sum) total += value;
  }
  for (; i < height; ++i) {
    for (std::size_t j = 0; j < count; ++j) total += well.energy(rows[i] - columns[j]);
  }
  return total;
}

void pair_force(const double* rows, std::size_t height, const double* columns, std::size_t count,
                double width, std::int64_t* force) {
  const Well well{width};
  std::size_t i = 0;
  for (; i + lanes <= height; i += lanes) {
    std::int64_t sum[lanes] = {};
    for (std::size_t j = 0; j < count; ++j) {
#pragma omp simd
      for (std::size_t lane = 0; lane < lanes; ++lane)
        sum[lane] += well.slope(rows[i + lane] - columns[j]);
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) force[i + lane] += sum[lane];
  }
  for (; i < height; ++i) {
    for (std::size_t j = 0; j < count; ++j) force[i] += well.slope(rows[i] - columns[j]);
  }
}

void pair_depth(const double* rows, std::size_t height, const double* columns, std::size_t count,
                double width, double scale, double* depth) {
  const Well well{width};
  std::size_t i = 0;
  for (; i + lanes <= height; i += lanes) {
    double sum[lanes] = {};
    for (std::size_t j = 0; j < count; ++j) {
#pragma omp simd
      for (std::size_t lane = 0; lane < lanes; ++lane)
        sum[lane] -= scale * well.energy(rows[i + lane] - columns[j]);
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) depth[i + lane] += sum[lane];
  }
  for (; i < height; ++i) {
    for (std::size_t j = 0; j < count; ++j) depth[i] -= scale * well.energy(rows[i] - columns[j]);
  }
}

template <class C>
void add(const C* table, std::size_t bins, std::uint32_t* counts) {
#pragma omp simd
  for (std::size_t k = 0; k < bins; ++k) counts[k] += table[k];
}

template <class C>
void sum(const C* counts, std::size_t bins, C* sums) {
  C total = 0;
#pragma omp simd reduction(inscan, + : total)
  for (std::size_t k = 0; k < bins; ++k) {
    total += counts[k];
#pragma omp scan inclusive(total)
    sums[k] = total;
  }
}

// Unsigned counts wrap around consistently: either side of a window holds fewer weights than C can
// count.
template <class C, class T>
void force(const C* prefix, std::int64_t bins, std::int64_t reach, double scale, T* out) {
#pragma omp simd
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto below = static_cast<C>(prefix[k] - prefix[k - reach]);
    const auto above = static_cast<C>(prefix[k + reach + 1] - prefix[k + 1]);
    const auto difference = static_cast<std::int32_t>(std::uint32_t{below} - std::uint32_t{above});
    out[k] = static_cast<T>(scale * static_cast<double>(difference));
  }
}

// S is a parameter for clang, whose scans require a sum of a type that is not known.
template <class C, class S>
void second_sum(const C* prefix, std::size_t size, S* second) {
  S total = 0;
#pragma omp simd reduction(inscan, + : total)
  for (std::size_t k = 0; k < size; ++k) {
    total += prefix[k];
#pragma omp scan inclusive(total)
    second[k] = total;
  }
}

template <class C, class T>
void narrow_log_forces(const C* prefix, const std::uint32_t* second, std::int64_t bins,
                       std::int64_t reach, const LogPull& pull, T* out) {
  const LogPull local = pull;
#pragma omp simd
  for (std::int64_t k = 0; k < bins; ++k)
    out[k] = static_cast<T>(narrow_log_force(prefix, second, k, reach, local));
}

// From one bin to the next, the distances to all weights on the left grow by one and those to the
// right shrink; weights enter and leave at the distance `reach`.
template <class M>
void moments(const std::uint32_t* prefix, std::int64_t bins, std::int64_t reach, M* moment) {
  const M edge = static_cast<M>(reach);
  M total = 0;
  for (std::int64_t j = 1; j <= reach; ++j)
    total += static_cast<M>(j) * (prefix[j + 1] - prefix[j]);
  moment[0] = total;
#pragma omp simd reduction(inscan, + : total)
  for (std::int64_t k = 0; k < bins - 1; ++k) {
    const std::uint32_t* C = prefix + k + 1;
    const M left = C[0] - C[-reach];
    const M right = C[reach] - C[0];
    const M entering = C[reach + 1] - C[reach];
    const M leaving = C[-reach] - C[-reach - 1];
    total += left - right + edge * (entering - leaving);
#pragma omp scan inclusive(total)
    moment[k + 1] = total;
  }
}

template <class M>
void potential(const std::uint32_t* prefix, const M* moment, std::int64_t bins, std::int64_t reach,
               double spacing, double width, double* out) {
#pragma omp simd
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto population = static_cast<std::int32_t>(prefix[k + reach + 1] - prefix[k - reach]);
    // Both are below 2^31 or 2^63.
    const auto distance = static_cast<std::make_signed_t<M>>(moment[k]);
    out[k] = spacing * static_cast<double>(distance) - width * static_cast<double>(population);
  }
}

template <class M, class T>
void log_force(const std::uint32_t* prefix, const M* moment, std::int64_t bins, std::int64_t reach,
               const LogPull& pull, T* out) {
  const LogPull local = pull;
#pragma omp simd
  for (std::int64_t k = 0; k < bins; ++k) {
    const std::uint32_t below = prefix[k] - prefix[k - reach];
    const std::uint32_t above = prefix[k + reach + 1] - prefix[k + 1];
    const auto slope = static_cast<std::int32_t>(below - above);
    const auto population = static_cast<std::int32_t>(prefix[k + reach + 1] - prefix[k - reach]);
    const auto distance = static_cast<std::make_signed_t<M>>(moment[k]);
    const double occupancy =
        local.occupancy(static_cast<double>(population), static_cast<double>(distance));
    out[k] = static_cast<T>(local.force(static_cast<double>(slope), occupancy));
  }
}

template <class T>
constexpr WeightKernels<T> weight_kernels = {
    extent<T>, power_sums<T>, slots<T>, fixed<T>, windows<T>, ranks<T>, gather_add<T>,
};

template <class M>
constexpr MomentKernels<M> moment_kernels = {moments<M>, potential<M>, log_force<M, float>,
                                             log_force<M, double>};

template <class C>
constexpr CountKernels<C> count_kernels = {add<C>,
                                           sum<C>,
                                           force<C, float>,
                                           force<C, double>,
                                           second_sum<C, std::uint32_t>,
                                           narrow_log_forces<C, float>,
                                           narrow_log_forces<C, double>};

}  // namespace

namespace SOFTQ_SIMD {
extern const Kernels kernels;
const Kernels kernels = {
    SOFTQ_STRING(SOFTQ_SIMD),
    weight_kernels<float>,
    weight_kernels<double>,
    count_kernels<std::uint16_t>,
    count_kernels<std::uint32_t>,
    moment_kernels<std::uint32_t>,
    moment_kernels<std::uint64_t>,
    pair_energy,
    pair_force,
    pair_depth,
};
}  // namespace SOFTQ_SIMD

}  // namespace softq
