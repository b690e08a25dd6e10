#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

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

// Plans are of a device, and hold the stream and the memory of the transform that is started.
struct Plans {
  std::mutex mutex;
  std::map<std::tuple<int, std::int64_t, int, std::int64_t>, Plan> made;
};
Plans& plans() {
  static Plans& kept = *new Plans;  // not destroyed at the end of the process: the driver may be
  return kept;
}

Plan make_plan(std::int64_t length, int type, std::int64_t batch) {
  Plan plan{};
  check_fft(cufft().create(&plan.handle), "cufftCreate");
  try {
    check_fft(cufft().set_auto_allocation(plan.handle, 0), "cufftSetAutoAllocation");
    int n = static_cast<int>(length);
    check_fft(cufft().make_plan_many(plan.handle, 1, &n, nullptr, 1, 0, nullptr, 1, 0, type,
                                     static_cast<int>(batch), &plan.work_bytes),
              "cufftMakePlanMany");
  } catch (...) {
    cufft().destroy(plan.handle);
    throw;
  }
  return plan;
}

const Plan& plan_of(std::int64_t length, int type, std::int64_t batch) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::tuple key(device, length, type, batch);
  const std::lock_guard lock(plans().mutex);
  const auto found = plans().made.find(key);
  if (found != plans().made.end()) return found->second;
  return plans().made.emplace(key, make_plan(length, type, batch)).first->second;
}

// Another thread may use the plan for its own stream.
template <class Execute>
void execute(const Plan& plan, void* work, cudaStream_t stream, const Execute& body) {
  const std::lock_guard lock(plans().mutex);
  check_fft(cufft().set_stream(plan.handle, stream), "cufftSetStream");
  check_fft(cufft().set_work_area(plan.handle, work), "cufftSetWorkArea");
  body();
}

}  // namespace

std::int64_t rows_at_once(std::int64_t rows, std::int64_t bins) {
  constexpr std::int64_t memory = std::int64_t{1} << 29;
  constexpr std::int64_t most = 32;  // enough to fill a device
  // A row and its well, their transforms, and about as much again for cuFFT.
  const std::int64_t bytes = 64 * good_length(bins);
  const std::int64_t fit = std::clamp<std::int64_t>(memory / bytes, 1, most);
  const std::int64_t batches = std::max<std::int64_t>((rows + fit - 1) / fit, 1);
  return (rows + batches - 1) / batches;
}

Convolution::Convolution(std::int64_t bins, std::int64_t rows, const Place& place)
    : bins_(bins),
      rows_(rows),
      length_(good_length(bins)),
      forward_(plan_of(length_, cufft_d2z, 2 * rows)),
      backward_(plan_of(length_, cufft_z2d, rows)),
      real_(static_cast<std::size_t>(2 * rows * length_), place),
      complex_(static_cast<std::size_t>(2 * rows * (length_ / 2 + 1)), place),
      work_(std::max(forward_.work_bytes, backward_.work_bytes), place) {}

void Convolution::run(const Row* rows, cudaStream_t stream) const {
  launch("launch of fill_kernel", fill_kernel, blocks_for(rows_ * length_), threads, 0, stream,
         rows, rows_, bins_, length_, real_.data());
  execute(forward_, work_.data(), stream, [&] {
    check_fft(cufft().exec_d2z(forward_.handle, real_.data(), complex_.data()), "cufftExecD2Z");
  });
  const std::int64_t half = rows_ * (length_ / 2 + 1);
  launch("launch of multiply_kernel", multiply_kernel, blocks_for(half), threads, 0, stream,
         complex_.data(), half, 1.0 / static_cast<double>(length_));
  execute(backward_, work_.data(), stream, [&] {
    check_fft(cufft().exec_z2d(backward_.handle, complex_.data(), real_.data()), "cufftExecZ2D");
  });
}

}  // namespace softq::cuda
