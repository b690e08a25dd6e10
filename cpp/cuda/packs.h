// Walks over arrays of weights, 16 bytes to a load where their addresses allow it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"
#include "softq/scalar.h"

namespace softq::cuda {

inline constexpr unsigned pack_bytes = 16;

template <class Storage, class T>
__device__ Storage rounded(T value) {
  if constexpr (std::is_same_v<Storage, T>) {
    return value;
  } else {
    return Storage::from(value);
  }
}

// A weight as it is computed with.
template <class Storage>
__device__ auto computed(const Storage& value) {
  if constexpr (std::is_same_v<Storage, double>) {
    return value;
  } else {
    return static_cast<float>(value);
  }
}

template <class Storage, unsigned size>
struct Pack {
  Storage at[size];
};

template <unsigned size, class Storage>
__device__ Pack<Storage, size> load(const Storage* from) {
  Pack<Storage, size> pack;
  if constexpr (sizeof(pack) == pack_bytes) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    std::memcpy(&pack, &bits, pack_bytes);
  } else {
    pack.at[0] = *from;
  }
  return pack;
}

// For the last use in a step: these keep out of the caches, which hold the tables.
template <unsigned size, class Storage>
__device__ Pack<Storage, size> load_once(const Storage* from) {
  Pack<Storage, size> pack;
  if constexpr (sizeof(pack) == pack_bytes) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    std::memcpy(&pack, &bits, pack_bytes);
  } else {
    pack.at[0] = *from;
  }
  return pack;
}
template <unsigned size, class Storage>
__device__ void store_once(Storage* to, const Pack<Storage, size>& pack) {
  if constexpr (sizeof(pack) == pack_bytes) {
    uint4 bits;
    std::memcpy(&bits, &pack, pack_bytes);
    __stcs(reinterpret_cast<uint4*>(to), bits);
  } else {
    *to = pack.at[0];
  }
}

// An array that is not there.
template <class Storage>
inline constexpr const Storage* no = nullptr;

template <unsigned size>
using Size = std::integral_constant<unsigned, size>;

// The team's threads share [begin, end) in groups of `size` weights: load(Size<n>, i) fetches
// those from i on, use(Size<n>, i, what was fetched, inside) does the rest. A thread fetches
// `batch` groups before it uses the first, so that memory is busy. All lanes of a warp call use()
// together, those beyond the end with nothing fetched and inside = false.
template <class Team, unsigned size, unsigned batch, class Load, class Use>
__device__ void for_groups(std::uint64_t begin, std::uint64_t end, const Load& load,
                           const Use& use) {
  using Fetched = decltype(load(Size<size>{}, begin));
  constexpr std::uint64_t stride = Team::threads * size;
  std::uint64_t first = begin;
  for (; first + batch * stride <= end; first += batch * stride) {
    const std::uint64_t i = first + Team::rank() * size;
    Fetched groups[batch];
#pragma unroll
    for (unsigned b = 0; b < batch; ++b) groups[b] = load(Size<size>{}, i + b * stride);
#pragma unroll
    for (unsigned b = 0; b < batch; ++b) use(Size<size>{}, i + b * stride, groups[b], true);
  }
  const unsigned lane = threadIdx.x % warp_threads;
  for (first += (Team::rank() - lane) * size; first < end; first += stride) {
    const std::uint64_t i = first + lane * size;
    Fetched group{};
    if (i < end) group = load(Size<size>{}, i);
    use(Size<size>{}, i, group, i < end);
  }
}

// How arrays are walked through. Single weights are coalesced, too, and take a fraction of the
// code, where the work on each of them outweighs its load.
enum class Walk { packs, singles };

// Single weights up to the first address that 16-byte loads can use, packs, and the rest. Arrays
// that are not aligned alike are walked through one by one.
template <class Team, unsigned batch, Walk walk = Walk::packs, class Storage, class Load, class Use>
__device__ void for_packs(std::uint64_t begin, std::uint64_t end, const Storage* a,
                          const Storage* b, const Load& load, const Use& use) {
  if constexpr (walk == Walk::singles) return for_groups<Team, 1, batch>(begin, end, load, use);
  constexpr unsigned size = pack_bytes / sizeof(Storage);
  const auto phase = [&](const Storage* array) {
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(array + begin) % pack_bytes);
  };
  const bool alike = b == nullptr || phase(b) == phase(a);
  if (!alike || phase(a) % sizeof(Storage) != 0)
    return for_groups<Team, 1, batch>(begin, end, load, use);
  const std::uint64_t head = (pack_bytes - phase(a)) % pack_bytes / sizeof(Storage);
  const std::uint64_t first = begin + head < end ? begin + head : end;
  const std::uint64_t last = first + (end - first) / size * size;
  for_groups<Team, 1, 1>(begin, first, load, use);
  for_groups<Team, size, batch>(first, last, load, use);
  for_groups<Team, 1, 1>(last, end, load, use);
}

}  // namespace softq::cuda
