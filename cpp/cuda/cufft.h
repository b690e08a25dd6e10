// The few calls of cuFFT used here, from the library that is loaded when the method "fft" is first
// used: all else works without it.
#pragma once

#include <cstddef>

#include "device.h"

namespace softq::cuda {

// As in NVIDIA's cufft.h.
using CufftHandle = int;
inline constexpr int cufft_d2z = 0x6a;
inline constexpr int cufft_z2d = 0x6c;

struct Complex {
  double re, im;
};

struct Cufft {
  int (*create)(CufftHandle* plan);
  int (*set_auto_allocation)(CufftHandle plan, int automatic);
  int (*make_plan_many)(CufftHandle plan, int rank, int* length, int* in_embed, int in_stride,
                        int in_distance, int* out_embed, int out_stride, int out_distance, int type,
                        int batch, std::size_t* work_bytes);
  int (*set_work_area)(CufftHandle plan, void* work);
  int (*set_stream)(CufftHandle plan, cudaStream_t stream);
  int (*exec_d2z)(CufftHandle plan, double* in, Complex* out);
  int (*exec_z2d)(CufftHandle plan, Complex* in, double* out);
  int (*destroy)(CufftHandle plan);
};

// Throws std::runtime_error that says what to install.
const Cufft& cufft();

}  // namespace softq::cuda
