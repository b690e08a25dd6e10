#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace softq::emulation {
namespace {

constexpr std::size_t guard_bytes = 64;
constexpr unsigned char guard = 0xC5;
constexpr unsigned char rubbish = 0xA5;

// The limits of the smallest supported device (compute capability 7.5).
constexpr std::size_t shared_default = 48 << 10;
constexpr std::size_t shared_most = 64 << 10;
constexpr unsigned threads_most = 1024;

struct Runtime {
  std::mutex mutex;
  std::mt19937_64 random{0};
  int fail_in = 0;
  std::size_t launches = 0;
  std::map<void*, std::size_t> allocations;
  std::unordered_map<const void*, std::size_t> shared_allowed;
};
Runtime& runtime() {
  static Runtime instance;
  return instance;
}

bool fails() { return runtime().fail_in > 0 && --runtime().fail_in == 0; }

// A meeting point of a number of threads, used again and again.
struct Barrier {
  unsigned arrived = 0;
  std::uint64_t round = 0;
};

struct Warp {
  Barrier barrier;
  std::uint64_t words[2][32];
};

struct Thread {
  Fiber fiber;
  unsigned index = 0;
  unsigned exchanges = 0;
  const Barrier* waits_for = nullptr;
  std::uint64_t round = 0;
  bool done = false;
};

struct Block {
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<unsigned char> shared;
  int votes = 0;
};

Block block;
Thread* current = nullptr;

void wait_for(Barrier& barrier, unsigned threads) {
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  current->waits_for = &barrier;
  current->round = barrier.round;
  current->fiber.leave();
}

bool waits(const Thread& thread) {
  return thread.waits_for != nullptr && thread.waits_for->round == thread.round;
}

// Lets each lane of the warp go on once, in random order; tells whether any could.
bool run_warp(unsigned warp, unsigned threads) {
  std::array<unsigned, 32> lanes;
  std::iota(lanes.begin(), lanes.end(), 32 * warp);
  std::shuffle(lanes.begin(), lanes.end(), runtime().random);
  bool progress = false;
  for (const unsigned index : lanes) {
    if (index >= threads || block.threads[index].done || waits(block.threads[index])) continue;
    current = &block.threads[index];
    current->waits_for = nullptr;
    threadIdx.x = index;
    current->fiber.enter();
    progress = true;
  }
  return progress;
}

void run_block(const Launch& launch, const std::function<void()>& body) {
  block.barrier = {};
  block.warps.assign((launch.threads + 31) / 32, {});
  block.shared.assign(launch.shared_bytes + guard_bytes, rubbish);
  std::fill(block.shared.end() - guard_bytes, block.shared.end(), guard);
  if (block.threads.size() < launch.threads) block.threads = std::vector<Thread>(launch.threads);
  for (unsigned i = 0; i < launch.threads; ++i) {
    Thread& thread = block.threads[i];
    thread.index = i;
    thread.exchanges = 0;
    thread.waits_for = nullptr;
    thread.done = false;
    thread.fiber.start([&] {
      body();
      current->done = true;
    });
  }
  std::vector<unsigned> warps(block.warps.size());
  std::iota(warps.begin(), warps.end(), 0U);
  // One warp goes as far as it can, to the next barrier of the block, before another begins.
  for (bool progress = true; progress;) {
    progress = false;
    std::shuffle(warps.begin(), warps.end(), runtime().random);
    for (const unsigned warp : warps) {
      while (run_warp(warp, launch.threads)) progress = true;
    }
  }
  const auto stuck = std::count_if(block.threads.begin(), block.threads.begin() + launch.threads,
                                   [](const Thread& thread) { return !thread.done; });
  if (stuck > 0) {
    throw std::logic_error("emulation: " + std::to_string(stuck) +
                           " threads of a block wait for others that never come");
  }
  if (std::any_of(block.shared.end() - guard_bytes, block.shared.end(),
                  [](unsigned char byte) { return byte != guard; })) {
    throw std::logic_error("emulation: a kernel wrote beyond its shared memory");
  }
}

}  // namespace

unsigned char* dynamic_shared_memory() { return block.shared.data(); }
void block_barrier() { wait_for(block.barrier, blockDim.x); }

const std::uint64_t* exchange(unsigned mask, std::uint64_t word) {
  Warp& warp = block.warps[current->index / 32];
  // Two sets in turn: nobody writes one again before all have read it.
  std::uint64_t* words = warp.words[current->exchanges++ % 2];
  words[current->index % 32] = word;
  wait_for(warp.barrier, static_cast<unsigned>(__popc(mask)));
  return words;
}

void run(const Launch& launch, const std::function<void()>& thread) {
  const std::lock_guard lock(runtime().mutex);
  ++runtime().launches;
  gridDim.x = launch.blocks;
  blockDim.x = launch.threads;
  std::vector<unsigned> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), runtime().random);
  for (const unsigned index : order) {
    blockIdx.x = index;
    run_block(launch, thread);
  }
}

void set_seed(std::uint64_t seed) { runtime().random.seed(seed); }
void fail(int call) { runtime().fail_in = call; }
std::size_t live_allocations() { return runtime().allocations.size(); }
std::size_t launches() { return runtime().launches; }

}  // namespace softq::emulation

using softq::emulation::fails;
using softq::emulation::runtime;

int __syncthreads_or(int predicate) {
  using namespace softq::emulation;
  block_barrier();
  block.votes = 0;
  block_barrier();
  block.votes |= predicate;
  block_barrier();
  return block.votes;
}

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorUnknown:
      break;
  }
  return "unknown error";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return fails() ? cudaErrorUnknown : device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = nullptr;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return fails() ? cudaErrorUnknown : cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** address, std::size_t bytes, cudaMemPool_t,
                                    cudaStream_t) {
  using namespace softq::emulation;
  if (fails()) return cudaErrorMemoryAllocation;
  auto* memory = static_cast<unsigned char*>(
      std::aligned_alloc(guard_bytes, (bytes + 3 * guard_bytes - 1) / guard_bytes * guard_bytes));
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(memory, guard, guard_bytes);
  std::memset(memory + guard_bytes, rubbish, bytes);
  std::memset(memory + guard_bytes + bytes, guard, guard_bytes);
  *address = memory + guard_bytes;
  const std::lock_guard lock(runtime().mutex);
  runtime().allocations[*address] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t) {
  using namespace softq::emulation;
  const std::lock_guard lock(runtime().mutex);
  const auto found = runtime().allocations.find(address);
  if (found == runtime().allocations.end()) return cudaErrorInvalidValue;
  auto* memory = static_cast<unsigned char*>(address);
  const auto intact = [](const unsigned char* from) {
    return std::all_of(from, from + guard_bytes, [](unsigned char byte) { return byte == guard; });
  };
  if (!intact(memory - guard_bytes) || !intact(memory + found->second)) {
    std::fputs("emulation: a kernel wrote beyond its device memory\n", stderr);
    std::abort();  // from a destructor: there is nobody to catch it
  }
  runtime().allocations.erase(found);
  std::free(memory - guard_bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  if (fails()) return cudaErrorUnknown;
  if (bytes > 0) std::memset(address, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (fails()) return cudaErrorUnknown;
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return fails() ? cudaErrorUnknown : cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return fails() ? cudaErrorUnknown : cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (fails()) return cudaErrorUnknown;
  const auto bytes = static_cast<std::size_t>(value);
  if (bytes > softq::emulation::shared_most) return cudaErrorInvalidValue;
  runtime().shared_allowed[kernel] = bytes;
  return cudaSuccess;
}
cudaError_t cudaLaunchStatus(const softq::emulation::Launch& launch) {
  using namespace softq::emulation;
  if (fails()) return cudaErrorUnknown;
  const auto allowed = runtime().shared_allowed.find(launch.kernel);
  const std::size_t most = allowed == runtime().shared_allowed.end()
                               ? shared_default
                               : std::max(allowed->second, shared_default);
  const bool valid = launch.blocks > 0 && launch.threads > 0 && launch.threads <= threads_most &&
                     launch.shared_bytes <= most;
  return valid ? cudaSuccess : cudaErrorInvalidConfiguration;
}
