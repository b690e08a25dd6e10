#include <stdexcept>
#include <string>

#include "block.h"
#include "fft.h"
#include "softq/well.h"

namespace softq::cuda {
namespace {

constexpr unsigned threads = 256;

// Longer than outputs -1 … bins and a well that reaches over all bins: nothing wraps around.
std::int64_t good_length(std::int64_t bins) {
  for (std::int64_t length = 2 * bins + 2;; length += 2) {
    std::int64_t rest = length;
    for (const std::int64_t factor : {2, 3, 5, 7}) {
      while (rest % factor == 0) rest /= factor;
    }
    if (rest == 1) return length;
  }
}

std::int64_t blocks_for(std::int64_t size) { return (size + threads - 1) / threads; }

void check_fft(int status, const char* call) {
  if (status == 0) return;
  throw std::runtime_error(std::string(call) + " failed: error " + std::to_string(status));
}

__global__ void fill_kernel(const Row* rows, std::int64_t count, std::int64_t bins,
                            std::int64_t length, double* real) {
  const std::int64_t at = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (at >= count * length) return;
  const Row row = rows[at / length];
  const std::int64_t i = at % length;
  real[at] = i < bins ? static_cast<double>(row.counts[i]) : 0.0;
  const std::int64_t distance = i < length - i ? i : length - i;
  real[count * length + at] = Well{row.width}.energy(static_cast<double>(distance) * *row.spacing);
}

// The well is even, so its transform is real.
__global__ void multiply_kernel(Complex* transforms, std::int64_t size, double scale) {
  const std::int64_t at = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (at >= size) return;
  const double factor = scale * transforms[size + at].re;
  transforms[at].re *= factor;
  transforms[at].im *= factor;
}

}  // namespace

Plan::Plan(std::int64_t length, int type, std::int64_t batch) {
  int n = static_cast<int>(length);
  check_fft(cufft().plan_many(&handle_, 1, &n, nullptr, 1, 0, nullptr, 1, 0, type,
                              static_cast<int>(batch)),
            "cufftPlanMany");
}

Plan::~Plan() { cufft().destroy(handle_); }

Convolution::Convolution(std::int64_t bins, std::int64_t rows, cudaStream_t stream)
    : bins_(bins),
      rows_(rows),
      length_(good_length(bins)),
      real_(static_cast<std::size_t>(2 * rows * length_), stream),
      complex_(static_cast<std::size_t>(2 * rows * (length_ / 2 + 1)), stream),
      forward_(length_, cufft_d2z, 2 * rows),
      backward_(length_, cufft_z2d, rows) {}

void Convolution::run(const Row* rows, cudaStream_t stream) const {
  launch("launch of fill_kernel", fill_kernel, blocks_for(rows_ * length_), threads, 0, stream,
         rows, rows_, bins_, length_, real_.data());
  check_fft(cufft().set_stream(forward_.handle(), stream), "cufftSetStream");
  check_fft(cufft().exec_d2z(forward_.handle(), real_.data(), complex_.data()), "cufftExecD2Z");
  const std::int64_t half = rows_ * (length_ / 2 + 1);
  launch("launch of multiply_kernel", multiply_kernel, blocks_for(half), threads, 0, stream,
         complex_.data(), half, 1.0 / static_cast<double>(length_));
  check_fft(cufft().set_stream(backward_.handle(), stream), "cufftSetStream");
  check_fft(cufft().exec_z2d(backward_.handle(), complex_.data(), real_.data()), "cufftExecZ2D");
}

}  // namespace softq::cuda
