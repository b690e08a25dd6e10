// Adds the force on the bins to the gradients of the weights in them.
#pragma once

#include <cstddef>
#include <type_traits>

#include "blocks.h"
#include "schedule.h"
#include "softq/kernels.h"
#include "softq/threads.h"

namespace softq {

// gradient[i] += table[bin of theta[i]], on several threads.
template <class T, class Storage>
void gather_force(const Storage* theta, std::size_t size, const Binning<T>& binning, const T* table,
                  Storage* gradient) {
  const auto& set = kernels().weights<T>();
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    const auto add = [&](const T* block, std::size_t first, std::size_t count) {
      if constexpr (std::is_same_v<Storage, T>) {
        set.gather_add(block, count, binning, table, gradient + first);
      } else {
        T sum[block_length];
        for (std::size_t i = 0; i < count; ++i) sum[i] = static_cast<T>(gradient[first + i]);
        set.gather_add(block, count, binning, table, sum);
        for (std::size_t i = 0; i < count; ++i) gradient[first + i] = Storage::from(sum[i]);
      }
    };
    for_blocks<T>(theta, begin, end, binning.factor, add);
  });
}

}  // namespace softq
