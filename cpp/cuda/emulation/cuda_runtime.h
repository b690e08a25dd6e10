// Stands in for the CUDA runtime's header: the kernels of this folder, compiled by the host's
// compiler, run on the CPU. Device memory is host memory, streams run at once, blocks run one after
// another and the threads of a block are fibers. A warp runs on to the next barrier of the block
// before another begins, in an order that is drawn anew each time, so that a missing barrier
// changes results; memory is filled with rubbish before a kernel can read what nothing has written.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks do not run side by side

using cudaStream_t = struct CUstream_st*;
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// ---------------------------------------------------------------------------------------- threads
namespace softq::emulation {

unsigned char* dynamic_shared_memory();
void block_barrier();

// Each lane of the mask gives a word; returns the words of all lanes once all have given theirs.
const std::uint64_t* exchange(unsigned mask, std::uint64_t word);

struct Launch {
  unsigned blocks, threads;
  std::size_t shared_bytes;
  const void* kernel;
};
// Throws std::logic_error where threads wait for others that never come, or write beyond the
// dynamic shared memory.
void run(const Launch& launch, const std::function<void()>& thread);

// Does work that is queued on a stream at once, or records it.
void enqueue(cudaStream_t stream, const std::function<void()>& work);

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  const std::uint64_t* words = exchange(mask, word);
  std::memcpy(&value, &words[from], sizeof(T));
  return value;
}

}  // namespace softq::emulation

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

inline void __syncwarp() { softq::emulation::exchange(0xFFFFFFFF, 0); }
inline void __syncthreads() { softq::emulation::block_barrier(); }
int __syncthreads_or(int predicate);
inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const std::uint64_t* words = softq::emulation::exchange(mask, predicate ? 1 : 0);
  unsigned out = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1U) != 0 && words[lane] != 0) out |= 1U << lane;
  }
  return out;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return softq::emulation::shuffle(mask, value, static_cast<unsigned>(lane));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = threadIdx.x % 32;
  return softq::emulation::shuffle(mask, value, lane + by < 32 ? lane + by : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = threadIdx.x % 32;
  return softq::emulation::shuffle(mask, value, lane >= by ? lane - by : lane);
}

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  if (value > before) *address = value;
  return before;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

// ---------------------------------------------------------------------------------------- runtime
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorInvalidDevice,
  cudaErrorStreamCaptureUnsupported,
  cudaErrorUnknown
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads, std::size_t shared_bytes);
cudaError_t cudaLaunchStatus(const softq::emulation::Launch& launch);

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                          void (*kernel)(Parameters...),
                                                          int threads, std::size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}
template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  const softq::emulation::Launch launch{config->gridDim.x, config->blockDim.x,
                                        config->dynamicSmemBytes,
                                        reinterpret_cast<const void*>(kernel)};
  const cudaError_t status = cudaLaunchStatus(launch);
  if (status != cudaSuccess) return status;
  softq::emulation::enqueue(config->stream,
                            [=] { softq::emulation::run(launch, [&] { kernel(arguments...); }); });
  return status;
}
