// The CUDA runtime as this folder uses it: errors as exceptions, device memory, launches. On a
// machine without a GPU, emulation/ takes the place of the runtime's headers and runs the same
// kernels on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace softq::cuda {

// Where a call works, and where its memory comes from: what `allocate` gives out is ready in the
// order of the stream and stays its own. Nothing here frees memory, so nothing here has to wait for
// a device, or for a graph that is being recorded.
struct Place {
  int device;
  cudaStream_t stream;
  std::function<void*(std::size_t bytes)> allocate;
};

// Throws std::runtime_error that names the call: "cudaMemcpyAsync failed: out of memory".
void check(cudaError_t status, const char* call);

// Devices that can be used. Throws std::runtime_error where there is no driver, or one too old.
int device_count();

// Multiprocessors of the current device.
std::uint64_t processors();

// Whether work on the stream is recorded into a CUDA graph now, not done.
bool capturing(cudaStream_t stream);

// Throws std::runtime_error if it is: `what` cannot be recorded. To be called before any work.
void refuse_capture(cudaStream_t stream, const char* what);

// Whether the device has been used by this process.
bool has_context(int device);

// Makes a device of the current thread the current one for a while.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

// Device memory of a place.
template <class T>
class Array {
 public:
  Array(std::size_t size, const Place& place)
      : size_(size),
        data_(size == 0 ? nullptr : static_cast<T*>(place.allocate(size * sizeof(T)))) {}

  T* data() const { return data_; }
  std::size_t size() const { return size_; }

  // An empty array has no address, which the runtime refuses.
  void clear(cudaStream_t stream) const {
    if (size_ == 0) return;
    check(cudaMemsetAsync(data_, 0, size_ * sizeof(T), stream), "cudaMemsetAsync");
  }
  void upload(const std::vector<T>& values, cudaStream_t stream) const {
    if (values.empty()) return;
    check(cudaMemcpyAsync(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
                          stream),
          "cudaMemcpyAsync");
  }
  // Waits for the stream.
  std::vector<T> download(cudaStream_t stream) const {
    std::vector<T> values(size_);
    if (size_ == 0) return values;
    check(cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    return values;
  }

 private:
  std::size_t size_;
  T* data_;
};

// name is what an error calls it: "launch of histogram".
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::size_t blocks, unsigned threads,
            std::size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(blocks);
  config.blockDim.x = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace softq::cuda
