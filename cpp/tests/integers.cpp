// Prints what the core promises to be the same integers on every machine and for any number of
// threads, for fixed weights: counts, forces on bins, gradients, exact forces, clusters, codes.
// Larger arrays are shown by a hash. With `--threads`, what threads alone must not change: exact
// forces and energies of 1 … 2^17 weights, and of calls from several threads at once. With
// `--threads few`, for fewer numbers of weights.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "softq/bins.h"
#include "softq/coding.h"
#include "softq/coupling.h"
#include "softq/density.h"
#include "softq/distinct.h"
#include "softq/force.h"
#include "softq/pairs.h"
#include "softq/potential.h"
#include "softq/sampling.h"
#include "softq/segments.h"

namespace softq {
namespace {

constexpr std::int32_t bins = 1 << 14;

// As FNV-1a, but a value at a time: the sanitizers look at each access.
template <class T>
std::uint64_t hash(const std::vector<T>& values) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t h = 0xCBF29CE484222325U;
  for (const T& value : values) {
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    h = (h ^ word) * 0x100000001B3U;
    h ^= h >> 32;
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
    force_scan(counts.data(), bins, binning.spacing, 0.3, Pull{}, force.data());
    std::vector<double> log_force(bins);
    force_scan(counts.data(), bins, binning.spacing, 0.3, {Potential::log, 1, fraction},
               log_force.data());
    std::vector<Storage> gradient(size, stored<Storage, T>(0.5));
    const Layer layer{theta.data(), gradient.data(), size, scalar, 0.3, 1e-3, 3, bins};
    add_force({layer}, {Method::scan, fraction, 1, 2});
    add_force({layer}, {Method::scan, fraction, 1, 2, Potential::log});
    std::vector<double> potential(bins);
    potential_scan(counts.data(), bins, binning.spacing, 0.3, potential.data());
    std::printf("  %-8s %.1f counts %016" PRIx64 " V %016" PRIx64 " force %016" PRIx64
                " log force %016" PRIx64 " gradient %016" PRIx64 "\n",
                name, fraction, hash(counts), hash(potential), hash(force), hash(log_force),
                hash(gradient));
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

// Whole-model operations, on the weights as four segments.
template <class T>
void print_segments(const std::vector<double>& values, Scalar scalar, const char* name) {
  std::vector<T> theta(values.size());
  const auto eighths = [](double x) { return static_cast<T>(std::round(8 * x) / 8); };
  std::transform(values.begin(), values.end(), theta.begin(), eighths);
  const auto size = static_cast<std::int64_t>(theta.size());
  const std::vector<std::int64_t> edges{0, size / 8, size / 2, size / 2, size};
  const Segmented layer{theta.data(), scalar, edges};
  const Ranges ends = ranges(layer);
  const std::vector<std::int64_t> sizes{edges[1], edges[2] - edges[1], 0, size - edges[3]};
  const std::vector<double> sigma = spreads(scalar, ends, moments(layer, ends), sizes);
  const Bins hundred{100, true};
  const BinSums sums = bin_sums(layer, ends, hundred, 0, sizes.size());
  const std::vector<double> means = bin_means(scalar, ends, hundred, sums, 0);
  const auto found = distinct_values(layer, 1 << 10, 1 << 12);
  std::vector<std::uint16_t> indices(theta.size());
  const auto coded = code_values(layer, 1 << 10, 1 << 12, sizeof(indices[0]), indices.data());
  std::printf("  %-8s     sigma %016" PRIx64 " bins %016" PRIx64 " means %016" PRIx64
              " values %016" PRIx64 " indices %016" PRIx64 "\n",
              name, hash(sigma), hash(sums.count), hash(means), hash(found->bits), hash(indices));
  // Segments without weights have no codebook: the codes are those of one segment.
  const std::vector<std::int64_t> whole{0, size};
  const Segmented one{theta.data(), scalar, whole};
  const auto all = code_values(one, 1 << 10, 1 << 12, sizeof(indices[0]), indices.data());
  std::vector<std::uint8_t> packed((indices.size() * 10 + 7) / 8);
  const Items items{indices.data(), sizeof(indices[0])};
  pack(items, indices.size(), 10, packed.data());
  const Palettes palettes(whole, all->values.sizes);
  const Items counts{all->counts.data(), sizeof(all->counts[0])};
  const Streams streams = encode(items, counts, palettes, 1 << 12);
  std::printf("  %-8s     counts %016" PRIx64 " packed %016" PRIx64 " coded %016" PRIx64 "\n", name,
              hash(coded->counts), hash(packed), hash(streams.words));
}

template <class T>
void print_exact(std::size_t size, const char* state) {
  const std::vector<double> values = weights(size, state);
  std::vector<T> theta(size);
  std::transform(values.begin(), values.end(), theta.begin(), stored<T, T>);
  std::vector<std::int64_t> force(size);
  pair_force_sort(theta.data(), size, 0.3, force.data());
  std::printf("%zu weights, %s: force %016" PRIx64 " energy %a\n", size, state, hash(force),
              pair_energy_sort(theta.data(), size, 0.3));
}

// Of all powers of two up to 2^17, and the sizes around them; of few, one of the three in turn.
void print_exact(bool few) {
  constexpr std::int64_t largest = 1 << 17;
  std::set<std::int64_t> sizes;
  for (std::int64_t power = 1, turn = 0; power <= largest; power *= 2, ++turn) {
    const auto near = [=](std::int64_t d) {
      return std::clamp<std::int64_t>(power + d, 1, largest);
    };
    if (few) sizes.insert(near(turn % 3 - 1));
    if (!few) sizes.insert({near(-1), near(0), near(1)});
  }
  for (const std::int64_t at : sizes) {
    const auto size = static_cast<std::size_t>(at);
    for (const char* state : {"Gaussian", "clusters"}) {
      print_exact<float>(size, state);
      print_exact<double>(size, state);
    }
  }
}

void print_simultaneous() {
  const std::vector<double> theta = weights(200'000, "Gaussian");
  std::vector<double> energies(6);
  std::vector<std::thread> callers;
  for (double& energy : energies)
    callers.emplace_back([&] { energy = pair_energy_sort(theta.data(), theta.size(), 0.3); });
  for (std::thread& caller : callers) caller.join();
  for (const double energy : energies) std::printf("several at once: %a\n", energy);
}

}  // namespace
}  // namespace softq

int main(int count, char** arguments) {
  using namespace softq;
  const std::vector<std::string_view> given(arguments + 1, arguments + count);
  std::vector<std::size_t> sizes{1, 2, 17, 1000, 4099, 70'000};
  if (!given.empty() && given[0] == "--threads") {
    const bool few = given.size() > 1 && given[1] == "few";
    if (few) sizes = {17, 4099, 70'000};
    print_exact(few);
    print_simultaneous();
  } else {
    sizes.push_back(600'000);  // with the sanitizers, minutes
  }
  for (const std::size_t size : sizes) {
    for (const char* state : {"Gaussian", "clusters", "one bin"}) {
      std::printf("%zu weights, %s\n", size, state);
      const std::vector<double> values = weights(size, state);
      print<float, float>(values, Scalar::float32, "float32");
      print<double, double>(values, Scalar::float64, "float64");
      print<Half, float>(values, Scalar::float16, "float16");
      print<BFloat16, float>(values, Scalar::bfloat16, "bfloat16");
      print_segments<float>(values, Scalar::float32, "float32");
      print_segments<double>(values, Scalar::float64, "float64");
    }
  }
}
