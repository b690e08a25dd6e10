#include <algorithm>
#include <cub/device/device_radix_sort.cuh>

#include "sort.h"

namespace softq::cuda {
namespace {

// CUB's calls: the first, without a workspace, tells how large it must be.
template <class Call>
void with_workspace(const char* name, const Place& place, const Call& call) {
  std::size_t bytes = 0;
  check(call(nullptr, bytes), name);
  check(call(place.allocate(std::max<std::size_t>(bytes, 1)), bytes), name);
}

}  // namespace

template <class T>
void sort(const T* in, T* out, std::uint64_t size, const Place& place) {
  with_workspace("cub::DeviceRadixSort::SortKeys", place, [&](void* workspace, std::size_t& bytes) {
    return cub::DeviceRadixSort::SortKeys(workspace, bytes, in, out, size, 0, 8 * sizeof(T),
                                          place.stream);
  });
}

template <class T>
void sort(const T* in, T* out, const std::uint32_t* values_in, std::uint32_t* values_out,
          std::uint64_t size, const Place& place) {
  with_workspace(
      "cub::DeviceRadixSort::SortPairs", place, [&](void* workspace, std::size_t& bytes) {
        return cub::DeviceRadixSort::SortPairs(workspace, bytes, in, out, values_in, values_out,
                                               size, 0, 8 * sizeof(T), place.stream);
      });
}

#define SOFTQ_INSTANTIATE(T)                                                               \
  template void sort<T>(const T*, T*, std::uint64_t, const Place&);                        \
  template void sort<T>(const T*, T*, const std::uint32_t*, std::uint32_t*, std::uint64_t, \
                        const Place&);
SOFTQ_INSTANTIATE(float)
SOFTQ_INSTANTIATE(double)

}  // namespace softq::cuda
