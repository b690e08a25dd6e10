// Convolutions of counts with the well, by cuFFT in float64 (the paper's way).
#pragma once

#include <cstdint>
#include <utility>

#include "cufft.h"
#include "device.h"

namespace softq::cuda {

class Plan {
 public:
  Plan(std::int64_t length, int type, std::int64_t batch);
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan();
  CufftHandle handle() const { return handle_; }

 private:
  CufftHandle handle_ = 0;
};

// Where the counts of a row are and what they are convolved with.
struct Row {
  const unsigned* counts;
  const double* spacing;
  double width;
};

// A number of rows at once. Everything is allocated here.
class Convolution {
 public:
  Convolution(std::int64_t bins, std::int64_t rows, cudaStream_t stream);

  // V of each row; rows is device memory. potential() then holds V on the midpoints 0 … bins, and
  // that of midpoint -1 at the end of the row.
  void run(const Row* rows, cudaStream_t stream) const;
  const double* potential() const { return real_.data(); }
  std::int64_t length() const { return length_; }

 private:
  std::int64_t bins_, rows_, length_;
  Array<double> real_;      // (2 rows, length): counts, then wells
  Array<Complex> complex_;  // their transforms
  Plan forward_, backward_;
};

}  // namespace softq::cuda
