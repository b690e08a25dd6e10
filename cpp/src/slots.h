// Walks over weights in blocks with the bin of each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "blocks.h"
#include "softq/kernels.h"

namespace softq {

// Calls body(block, slot, count, first): the weights times the binning's factor.
template <class T, class Storage, class Body>
void for_slots(const Storage* theta, std::size_t begin, std::size_t end, const Binning<T>& binning,
               const Body& body) {
  const auto& set = kernels().weights<T>();
  constexpr std::int32_t none = -1;
  std::int32_t slot[block_length];
  for_blocks<T>(theta, begin, end, binning.factor,
                [&](const T* block, std::size_t first, std::size_t size) {
                  set.slots(block, size, binning, Sample(), first, none, slot);
                  body(block, slot, size, first);
                });
}

}  // namespace softq
