// What tests ask of the emulated runtime, and do to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda_runtime.h"

namespace softq::emulation {

// Orders drawn from now on follow from the seed.
void set_seed(std::uint64_t seed);

// The call-th runtime call from now on fails (1 is the next one).
void fail(int call);

std::size_t launches();

// Before the launch-th launch from now on (1 is the next one), the value is written there, as by
// another stream.
void write_before(int launch, float* address, float value);

// Devices from now on, which nobody has used yet; the first is the current one.
void set_devices(int count);
int current_device();
// Those that have been used.
std::vector<int> contexts();

// Device memory between guards, full of rubbish at first. Ends the process where a kernel has
// written to the guards.
class Allocation {
 public:
  explicit Allocation(std::size_t bytes);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  std::uintptr_t address() const;

 private:
  std::size_t bytes_;
  unsigned char* memory_;
};
std::size_t live_allocations();

// Work recorded from a stream.
class Graph {
 public:
  void add(const std::function<void()>& work) { work_.push_back(work); }
  void replay() const;

 private:
  std::vector<std::function<void()>> work_;
};
// On a stream of the current device, one at a time. end_capture() throws std::runtime_error where
// something was done in between that cannot be recorded.
void begin_capture(cudaStream_t stream);
Graph end_capture();

}  // namespace softq::emulation
