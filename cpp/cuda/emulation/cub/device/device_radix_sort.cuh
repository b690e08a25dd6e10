// Stands in for CUB's radix sort, which reports any error of the runtime that nobody has read.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Size>
  static cudaError_t SortKeys(void* workspace, std::size_t& bytes, const Key* in, Key* out,
                              Size size, int, int, cudaStream_t stream) {
    if (workspace == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    softq::emulation::enqueue(stream, [=] {
      std::copy_n(in, size, out);
      std::stable_sort(out, out + size);
    });
    return cudaPeekAtLastError();
  }

  template <class Key, class Value, class Size>
  static cudaError_t SortPairs(void* workspace, std::size_t& bytes, const Key* in, Key* out,
                               const Value* values_in, Value* values_out, Size size, int, int,
                               cudaStream_t stream) {
    if (workspace == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    softq::emulation::enqueue(stream, [=] {
      std::vector<std::size_t> order(size);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t a, std::size_t b) { return in[a] < in[b]; });
      for (std::size_t i = 0; i < order.size(); ++i) {
        out[i] = in[order[i]];
        values_out[i] = values_in[order[i]];
      }
    });
    return cudaPeekAtLastError();
  }
};

}  // namespace cub
