#include "device.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace softq::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(status));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, or one too old: not an error that a later call should report
  return 0;
}

std::uint64_t processors() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::uint64_t>(count);
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  check(cudaSetDevice(device), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

namespace {

// A pool of our own on each device, which keeps up to 256 MB between calls: asking the driver takes
// longer than most of what is computed here.
cudaMemPool_t pool() {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) return found->second;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t created{};
  check(cudaMemPoolCreate(&created, &properties), "cudaMemPoolCreate");
  std::uint64_t kept = 256 << 20;
  check(cudaMemPoolSetAttribute(created, cudaMemPoolAttrReleaseThreshold, &kept),
        "cudaMemPoolSetAttribute");
  return pools[device] = created;
}

}  // namespace

Memory::Memory(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
  if (bytes == 0) return;
  check(cudaMallocFromPoolAsync(&data_, bytes, pool(), stream), "cudaMallocFromPoolAsync");
}

Memory::~Memory() {
  if (data_ != nullptr) cudaFreeAsync(data_, stream_);
}

}  // namespace softq::cuda
