// The CUDA runtime as this folder uses it: errors as exceptions, device memory, launches. On a
// machine without a GPU, emulation/ takes the place of the runtime's headers and runs the same
// kernels on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace softq::cuda {

// Throws std::runtime_error that names the call: "cudaMemcpyAsync failed: out of memory".
void check(cudaError_t status, const char* call);

// Devices that can be used; 0 also where there is no driver.
int device_count();

// Multiprocessors of the current device.
std::uint64_t processors();

// Makes a device the current one for a while.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Device memory, taken and given back in the order of a stream.
class Memory {
 public:
  Memory(std::size_t bytes, cudaStream_t stream);
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory();
  void* data() const { return data_; }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(stream_, other.stream_);
  }
  void* data_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

template <class T>
class Array {
 public:
  Array(std::size_t size, cudaStream_t stream) : size_(size), memory_(size * sizeof(T), stream) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  std::size_t size() const { return size_; }

  void clear(cudaStream_t stream) const {
    check(cudaMemsetAsync(data(), 0, size_ * sizeof(T), stream), "cudaMemsetAsync");
  }
  void upload(const std::vector<T>& values, cudaStream_t stream) const {
    check(cudaMemcpyAsync(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
                          stream),
          "cudaMemcpyAsync");
  }
  // Waits for the stream.
  std::vector<T> download(cudaStream_t stream) const {
    std::vector<T> values(size_);
    check(cudaMemcpyAsync(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    return values;
  }

 private:
  std::size_t size_;
  Memory memory_;
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
