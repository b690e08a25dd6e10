// First moments of the windows around all bins.
#pragma once

#include <cstddef>
#include <cstdint>

#include "softq/density.h"
#include "windows.h"

namespace softq {

// Calls body(prefix, moments) for the windows of all weights closer than the reach.
template <class Body>
void with_moments(const Count* counts, std::int64_t bins, std::int64_t reach, const Body& body) {
  thread_local Scratch<Count> scratch;
  Windows<Count> windows(scratch, bins, reach);
  const Count* prefix = windows.prefix(counts);
  const auto call = [&]<class M>(M) {
    thread_local Scratch<M> room;
    M* moments = room.reserve(static_cast<std::size_t>(bins));
    kernels().moments<M>().moments(prefix, bins, reach, moments);
    body(prefix, static_cast<const M*>(moments));
  };
  // No moment is larger than that of all weights at the edge of the window.
  if (static_cast<std::uint64_t>(prefix[bins]) * static_cast<std::uint64_t>(reach) <
      std::uint64_t{1} << 31) {
    call(std::uint32_t{});
  } else {
    call(std::uint64_t{});
  }
}

}  // namespace softq
