// Prints what the core promises to be the same integers on every machine, for fixed weights:
// counts, forces on bins, gradients, exact forces. Larger arrays are shown by a hash.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "softq/coupling.h"
#include "softq/density.h"
#include "softq/force.h"
#include "softq/pairs.h"
#include "softq/potential.h"
#include "softq/sampling.h"

namespace softq {
namespace {

constexpr std::int32_t bins = 1 << 14;

// FNV-1a, a byte at a time.
template <class T>
std::uint64_t hash(const std::vector<T>& values) {
  std::uint64_t h = 0xCBF29CE484222325U;
  for (const T& value : values) {
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    for (const unsigned char byte : bytes) h = (h ^ byte) * 0x100000001B3U;
  }
  return h;
}

// Sums of four uniform numbers, all exact in float: bell-shaped without a library's logarithm.
// In the state "clusters" they gather at nine values, in "one bin" all but two do.
std::vector<double> weights(std::size_t size, const std::string& state) {
  std::vector<double> theta(size);
  for (std::size_t i = 0; i < size; ++i) {
    double x = -2;
    for (std::uint64_t n = 0; n < 4; ++n) {
      x += static_cast<double>(splitmix64(size, 4 * i + n) >> 44) * 0x1p-20;
    }
    if (state == "clusters") x = static_cast<double>(static_cast<int>(x * 4)) / 4 + x * 0x1p-10;
    if (state == "one bin") x = i < 2 ? x : x * 0x1p-20;
    theta[i] = x;
  }
  return theta;
}

template <class Storage, class T>
Storage stored(double value) {
  if constexpr (std::is_same_v<Storage, T>) {
    return static_cast<T>(value);
  } else {
    return Storage::from(static_cast<T>(value));
  }
}

template <class Storage, class T>
void print(const std::vector<double>& values, Scalar scalar, const char* name) {
  std::vector<Storage> theta(values.size());
  std::transform(values.begin(), values.end(), theta.begin(), stored<Storage, T>);
  const auto size = theta.size();
  for (const double fraction : {1.0, 0.3}) {
    const auto binning = make_binning(extent<Storage, T>(theta.data(), size), size, bins);
    std::vector<Count> counts(bins);
    histogram(theta.data(), size, binning, Sample(fraction, 1, 2, 3), counts.data());
    std::vector<double> force(bins);
    force_scan(counts.data(), bins, binning.spacing, 0.3, 1.0, force.data());
    std::vector<Storage> gradient(size, stored<Storage, T>(0.5));
    const Layer layer{theta.data(), gradient.data(), size, scalar, 0.3, 1e-3, 3, bins};
    add_force({layer}, {Method::scan, fraction, 1, 2});
    std::vector<double> potential(bins);
    potential_scan(counts.data(), bins, binning.spacing, 0.3, potential.data());
    std::printf("  %-8s %.1f counts %016" PRIx64 " V %016" PRIx64 " force %016" PRIx64
                " gradient %016" PRIx64 "\n",
                name, fraction, hash(counts), hash(potential), hash(force), hash(gradient));
  }
  if constexpr (std::is_same_v<Storage, T>) {
    std::vector<std::int64_t> sorted(size), direct(size);
    pair_force_sort(theta.data(), size, 0.3, sorted.data());
    const auto largest = std::max_element(sorted.begin(), sorted.end());
    std::printf("  %-8s     exact  %016" PRIx64 " largest %" PRId64, name, hash(sorted), *largest);
    if (size < 10'000) {
      pair_force_direct(theta.data(), size, 0.3, direct.data());
      std::printf(" direct %016" PRIx64, hash(direct));
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace softq

int main() {
  using namespace softq;
  for (const std::size_t size : {1U, 2U, 17U, 1000U, 4099U, 70'000U, 600'000U}) {
    for (const char* state : {"Gaussian", "clusters", "one bin"}) {
      std::printf("%zu weights, %s\n", size, state);
      const std::vector<double> values = weights(size, state);
      print<float, float>(values, Scalar::float32, "float32");
      print<double, double>(values, Scalar::float64, "float64");
      print<Half, float>(values, Scalar::float16, "float16");
      print<BFloat16, float>(values, Scalar::bfloat16, "bfloat16");
    }
  }
}
