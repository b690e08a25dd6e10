// Memory that a thread keeps from call to call, so that a training step allocates nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <type_traits>

namespace softq {

// Aligned to cache lines: a vector that straddles two of them costs twice.
template <class T>
class Scratch {
  static_assert(std::is_trivial_v<T>);
  static constexpr std::align_val_t alignment{64};

 public:
  Scratch() = default;
  ~Scratch() { ::operator delete(data_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least `size` values: all zero when it has grown, otherwise as they were left.
  T* reserve(std::size_t size) {
    if (size > size_) {
      T* grown = static_cast<T*>(::operator new(size * sizeof(T), alignment));
      ::operator delete(data_, alignment);
      std::fill_n(grown, size, T{});
      data_ = grown;
      size_ = size;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace softq
