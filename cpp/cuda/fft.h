// Convolutions of counts with the well, by cuFFT in float64 (the paper's way).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cufft.h"
#include "device.h"

namespace softq::cuda {

// A kind of transform on the current device. All plans are kept until the process ends: graphs
// replay their work, and to destroy one may wait for the device.
struct Plan {
  CufftHandle handle;
  std::size_t work_bytes;
};

// Where the counts of a row are and what they are convolved with.
struct Row {
  const unsigned* counts;
  const double* spacing;
  double width;
};

// How many of the rows are convolved at once, in as few batches of equal size as about half a
// gigabyte allows.
std::int64_t rows_at_once(std::int64_t rows, std::int64_t bins);

// A number of rows at once. Everything is allocated here.
class Convolution {
 public:
  Convolution(std::int64_t bins, std::int64_t rows, const Place& place);

  // V of each row; rows is device memory. potential() then holds V on the midpoints 0 … bins, and
  // that of midpoint -1 at the end of the row.
  void run(const Row* rows, cudaStream_t stream) const;
  const double* potential() const { return real_.data(); }
  std::int64_t length() const { return length_; }

 private:
  std::int64_t bins_, rows_, length_;
  const Plan& forward_;
  const Plan& backward_;
  Array<double> real_;      // (2 rows, length): counts, then wells
  Array<Complex> complex_;  // their transforms
  Array<unsigned char> work_;
};

}  // namespace softq::cuda
