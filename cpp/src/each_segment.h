// Walks over the segments of a layer on several threads.
#pragma once

#include <cstddef>

#include "schedule.h"
#include "softq/segments.h"

namespace softq {

// Calls body(segment, its first weight, T{}) for each segment, on several threads.
template <class Body>
void for_segments(const Segmented& layer, const Body& body) {
  const auto size = [&](std::size_t segment) { return layer.size(segment); };
  const Schedule schedule(layer.segments(), size, size);
  with_storage(layer.scalar, [&]<class Storage, class T>(Storage, T computed) {
    const auto* theta = static_cast<const Storage*>(layer.theta);
    schedule.run(
        [&](std::size_t segment) { body(segment, theta + layer.edges[segment], computed); });
  });
}

}  // namespace softq
