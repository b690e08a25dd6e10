#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../device.h"
#include "control.h"
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

struct Capture {
  int device;
  cudaStream_t stream;
  Graph graph;
  bool valid = true;
};

struct Runtime {
  std::mutex mutex;  // of the block that runs
  std::mutex settings;
  std::mt19937_64 random{0};
  int fail_in = 0;
  std::size_t launches = 0;
  int write_in = 0;
  std::function<void()> write;
  int devices = 1;
  std::atomic<unsigned> contexts = 0;  // a bit for each device
  std::optional<Capture> capture;
  std::atomic<std::size_t> allocations = 0;
  std::map<std::pair<int, const void*>, std::size_t> shared_allowed;  // by device and kernel
};
Runtime& runtime() {
  static Runtime instance;
  return instance;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int device_now = 0;

// What a call of the runtime returns: the test's failure, if it is due, before the call's own.
cudaError_t done(cudaError_t status = cudaSuccess) {
  if (runtime().fail_in > 0 && --runtime().fail_in == 0) status = cudaErrorUnknown;
  if (status != cudaSuccess) last_error = status;
  return status;
}

// The same of a call that uses the current device.
cudaError_t used(cudaError_t status = cudaSuccess) {
  runtime().contexts |= 1U << device_now;
  return done(status);
}

bool captures(cudaStream_t stream) {
  const std::optional<Capture>& capture = runtime().capture;
  return capture && capture->device == device_now && capture->stream == stream;
}

std::size_t shared_allowed(const void* kernel) {
  const std::lock_guard lock(runtime().settings);
  const auto found = runtime().shared_allowed.find({device_now, kernel});
  return found == runtime().shared_allowed.end() ? shared_default : found->second;
}

bool intact(const unsigned char* from) {
  return std::all_of(from, from + guard_bytes, [](unsigned char byte) { return byte == guard; });
}

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
  block.shared.assign(launch.shared_bytes + 2 * guard_bytes, rubbish);
  std::fill_n(block.shared.begin(), guard_bytes, guard);
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
  if (!intact(block.shared.data()) ||
      !intact(block.shared.data() + guard_bytes + launch.shared_bytes)) {
    throw std::logic_error("emulation: a kernel wrote beyond its shared memory");
  }
}

}  // namespace

unsigned char* dynamic_shared_memory() { return block.shared.data() + guard_bytes; }
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
  if (runtime().write_in > 0 && --runtime().write_in == 0) runtime().write();
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

void enqueue(cudaStream_t stream, const std::function<void()>& work) {
  if (captures(stream)) {
    runtime().capture->graph.add(work);
  } else {
    work();
  }
}

void set_seed(std::uint64_t seed) { runtime().random.seed(seed); }
void fail(int call) { runtime().fail_in = call; }
std::size_t launches() { return runtime().launches; }
void write_before(int launch, float* address, float value) {
  runtime().write_in = launch;
  runtime().write = [=] { *address = value; };
}

void set_devices(int count) {
  runtime().devices = count;
  runtime().contexts = 0;
  device_now = 0;
}
int current_device() { return device_now; }
std::vector<int> contexts() {
  std::vector<int> used;
  for (int device = 0; device < runtime().devices; ++device) {
    if ((runtime().contexts >> device & 1U) != 0) used.push_back(device);
  }
  return used;
}

Allocation::Allocation(std::size_t bytes)
    : bytes_(bytes),
      memory_(static_cast<unsigned char*>(std::aligned_alloc(
          guard_bytes, (bytes + 3 * guard_bytes - 1) / guard_bytes * guard_bytes))) {
  if (memory_ == nullptr) throw std::bad_alloc();
  std::memset(memory_, guard, guard_bytes);
  std::memset(memory_ + guard_bytes, rubbish, bytes);
  std::memset(memory_ + guard_bytes + bytes, guard, guard_bytes);
  ++runtime().allocations;
}
Allocation::~Allocation() {
  if (!intact(memory_) || !intact(memory_ + guard_bytes + bytes_)) {
    std::fputs("emulation: a kernel wrote beyond its device memory\n", stderr);
    std::abort();  // there is nobody to catch it
  }
  --runtime().allocations;
  std::free(memory_);
}
std::uintptr_t Allocation::address() const {
  return reinterpret_cast<std::uintptr_t>(memory_ + guard_bytes);
}
std::size_t live_allocations() { return runtime().allocations; }

void Graph::replay() const {
  for (const auto& work : work_) work();
}
void begin_capture(cudaStream_t stream) { runtime().capture = Capture{device_now, stream, {}}; }
Graph end_capture() {
  const Capture capture = std::exchange(runtime().capture, std::nullopt).value();
  if (!capture.valid) throw std::runtime_error("emulation: the capture has been invalidated");
  return capture.graph;
}

}  // namespace softq::emulation

namespace softq::cuda {

bool has_context(int device) { return (emulation::runtime().contexts >> device & 1U) != 0; }

}  // namespace softq::cuda

using softq::emulation::done;
using softq::emulation::runtime;
using softq::emulation::used;

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
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorUnknown:
      break;
  }
  return "unknown error";
}
cudaError_t cudaGetLastError() { return std::exchange(softq::emulation::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return softq::emulation::last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = runtime().devices;
  return done();
}
cudaError_t cudaGetDevice(int* device) {
  *device = softq::emulation::device_now;
  return done();
}
// As of CUDA 12, this begins to use the device.
cudaError_t cudaSetDevice(int device) {
  const bool there = device >= 0 && device < runtime().devices;
  if (!there) return done(cudaErrorInvalidDevice);
  softq::emulation::device_now = device;
  return used();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return done();
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t status = used(address == nullptr ? cudaErrorInvalidValue : cudaSuccess);
  if (status != cudaSuccess) return status;
  softq::emulation::enqueue(stream, [=] { std::memset(address, value, bytes); });
  return status;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const bool null = to == nullptr || from == nullptr;
  const cudaError_t status = used(null ? cudaErrorInvalidValue : cudaSuccess);
  if (status != cudaSuccess) return status;
  softq::emulation::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return status;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!softq::emulation::captures(stream)) return used();
  runtime().capture->valid = false;
  return used(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = softq::emulation::captures(stream) ? cudaStreamCaptureStatusActive
                                               : cudaStreamCaptureStatusNone;
  return used();
}

// As the driver's documentation has it: a launch fails with more dynamic shared memory than the
// attribute says, be that below the default.
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const auto bytes = static_cast<std::size_t>(value);
  const bool fits = bytes <= softq::emulation::shared_most;
  const cudaError_t status = used(fits ? cudaSuccess : cudaErrorInvalidValue);
  const std::lock_guard lock(runtime().settings);
  if (status == cudaSuccess) {
    runtime().shared_allowed[{softq::emulation::device_now, kernel}] = bytes;
  }
  return status;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int,
                                                          std::size_t shared_bytes) {
  *blocks = shared_bytes <= softq::emulation::shared_allowed(kernel) ? 2 : 0;
  return used();
}
cudaError_t cudaLaunchStatus(const softq::emulation::Launch& launch) {
  using namespace softq::emulation;
  const bool valid = launch.blocks > 0 && launch.threads > 0 && launch.threads <= threads_most &&
                     launch.shared_bytes <= shared_allowed(launch.kernel);
  return used(valid ? cudaSuccess : cudaErrorInvalidConfiguration);
}
