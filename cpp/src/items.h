// Integers by their size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softq {

// Calls body(Item{}) with the integer of so many bytes.
template <class Body>
void with_item(std::size_t itemsize, const Body& body) {
  switch (itemsize) {
    case 1:
      return body(std::uint8_t{});
    case 2:
      return body(std::uint16_t{});
    case 4:
      return body(std::uint32_t{});
    default:
      return body(std::uint64_t{});
  }
}

}  // namespace softq
