#include "device.h"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace softq::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else CUB's later calls, which look there, would report this one
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(status));
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

std::uint64_t processors() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::uint64_t>(count);
}

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

void refuse_capture(cudaStream_t stream, const char* what) {
  if (!capturing(stream)) return;
  throw std::runtime_error(std::string(what) +
                           " cannot be recorded in a CUDA graph: do it before recording begins");
}

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice");
}

// To return to a device that nobody has used would take some hundred megabytes of its memory.
DeviceGuard::~DeviceGuard() {
  if (device_ == before_ || !has_context(before_)) return;
  if (cudaSetDevice(before_) != cudaSuccess) cudaGetLastError();
}

}  // namespace softq::cuda
