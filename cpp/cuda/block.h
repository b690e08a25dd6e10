// What the threads of a team do together: those of a block, or of a warp.
#pragma once

#include "device.h"

namespace softq::cuda {

inline constexpr unsigned block_threads = 1024;  // of every kernel but those of segments.cu
inline constexpr unsigned warp_threads = 32;
inline constexpr unsigned warps = block_threads / warp_threads;
inline constexpr unsigned all_lanes = 0xFFFFFFFF;

// All threads of a block of this size, or those of one warp.
template <unsigned size>
struct Team {
  static constexpr unsigned threads = size;
  static constexpr unsigned warps = size / warp_threads;

  __device__ static unsigned rank() { return threadIdx.x % size; }
  // Orders the accesses of the team's threads to memory.
  __device__ static void sync() {
    if constexpr (warps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};
using WarpTeam = Team<warp_threads>;
using BlockTeam = Team<block_threads>;

// The memory whose size is given at launch.
template <class T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 softq_dynamic_shared[];
  return reinterpret_cast<T*>(softq_dynamic_shared);
#else
  return reinterpret_cast<T*>(emulation::dynamic_shared_memory());
#endif
}

template <class T>
struct Sum {
  __device__ T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct Max {
  __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Combined over the team, in an order that is always the same; the result is that of rank 0.
// shared holds a value for each warp of the team and may be used again after the next barrier.
template <class Team = BlockTeam, class T, class Combine>
__device__ T reduce(T value, T* shared, Combine combine) {
  for (unsigned by = warp_threads / 2; by > 0; by /= 2)
    value = combine(value, __shfl_down_sync(all_lanes, value, by));
  if constexpr (Team::warps > 1) {
    if (threadIdx.x % warp_threads == 0) shared[threadIdx.x / warp_threads] = value;
    __syncthreads();
    if (threadIdx.x < warp_threads) {
      value = shared[threadIdx.x % Team::warps];
      for (unsigned by = Team::warps / 2; by > 0; by /= 2)
        value = combine(value, __shfl_down_sync(all_lanes, value, by));
    }
  }
  return value;
}

template <class T>
__device__ T warp_scan(T value) {
  for (unsigned by = 1; by < warp_threads; by *= 2) {
    const T below = __shfl_up_sync(all_lanes, value, by);
    if (threadIdx.x % warp_threads >= by) value += below;
  }
  return value;
}

// Inclusive prefix sum over the team; total is the sum of all. shared holds a value for each warp
// of the team and may be used again after the next barrier.
template <class Team = BlockTeam, class T>
__device__ T scan(T value, T* shared, T& total) {
  value = warp_scan(value);
  if constexpr (Team::warps == 1) {
    total = __shfl_sync(all_lanes, value, warp_threads - 1);
    return value;
  } else {
    const unsigned warp = threadIdx.x / warp_threads;
    const unsigned lane = threadIdx.x % warp_threads;
    if (lane == warp_threads - 1) shared[warp] = value;
    __syncthreads();
    if (warp == 0) {
      const T sum = warp_scan(lane < Team::warps ? shared[lane] : T{});
      if (lane < Team::warps) shared[lane] = sum;
    }
    __syncthreads();
    total = shared[Team::warps - 1];
    return warp > 0 ? value + shared[warp - 1] : value;
  }
}

// Whether all other blocks that share the ticket have come here before: then their writes can be
// read (past the first-level cache). The ticket is ready for the next launch. Ends in a barrier.
__device__ inline bool last_block(unsigned* ticket, unsigned blocks) {
  __threadfence();
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0 && atomicAdd(ticket, 1U) == blocks - 1) {
    *ticket = 0;
    __threadfence();
    last = true;
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace softq::cuda
