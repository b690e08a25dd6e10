// Memory aligned to cache lines: a vector that straddles two of them costs twice.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace softq {

inline constexpr std::size_t line_bytes = 64;

struct FreeLines {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{line_bytes}); }
};

template <class T>
using Lines = std::unique_ptr<T[], FreeLines>;

// Not initialised.
template <class T>
Lines<T> allocate_lines(std::size_t size) {
  static_assert(std::is_trivially_copyable_v<T>);
  return Lines<T>(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{line_bytes})));
}

// What a thread keeps from call to call, so that a training step allocates nothing.
template <class T>
class Scratch {
 public:
  // At least `size` values: all zero when it has grown, otherwise as they were left.
  T* reserve(std::size_t size) {
    if (size > size_) {
      data_ = allocate_lines<T>(size);
      std::fill_n(data_.get(), size, T{});
      size_ = size;
    }
    return data_.get();
  }

 private:
  Lines<T> data_;
  std::size_t size_ = 0;
};

}  // namespace softq
