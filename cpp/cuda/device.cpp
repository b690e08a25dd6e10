#include "device.h"

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

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  check(cudaSetDevice(device), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

Memory::Memory(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
  if (bytes > 0) check(cudaMallocAsync(&data_, bytes, stream), "cudaMallocAsync");
}

Memory::~Memory() {
  if (data_ != nullptr) cudaFreeAsync(data_, stream_);
}

}  // namespace softq::cuda
