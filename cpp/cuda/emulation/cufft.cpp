// cuFFT's calls by the core's FFT.
#include "../cufft.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "softq/fft.h"

namespace softq::cuda {
namespace {

constexpr int invalid_plan = 1;
constexpr int no_workspace = 15;

struct Plan {
  std::size_t length = 2;
  int type = 0, batch = 0;
  bool allocates = true;
  unsigned char* work = nullptr;
  cudaStream_t stream = nullptr;

  std::size_t work_bytes() const { return 8 * length * static_cast<std::size_t>(batch); }
};
std::map<CufftHandle, Plan> plans;
int created = 0;

int create(CufftHandle* handle) {
  *handle = ++created;
  plans[*handle];
  return 0;
}

int set_auto_allocation(CufftHandle handle, int automatic) {
  plans.at(handle).allocates = automatic != 0;
  return 0;
}

int make_plan_many(CufftHandle handle, int, int* length, int*, int, int, int*, int, int, int type,
                   int batch, std::size_t* work_bytes) {
  Plan& plan = plans.at(handle);
  if (plan.allocates) return invalid_plan;  // the memory of all is the caller's
  plan.length = static_cast<std::size_t>(*length);
  plan.type = type;
  plan.batch = batch;
  *work_bytes = plan.work_bytes();
  return 0;
}

int set_work_area(CufftHandle handle, void* work) {
  plans.at(handle).work = static_cast<unsigned char*>(work);
  return 0;
}

int set_stream(CufftHandle handle, cudaStream_t stream) {
  plans.at(handle).stream = stream;
  return 0;
}

// Between r0, i0 = 0, r1, i1, … and the core's r0, r1, i1, …; the length is even.
void forward(const Plan& plan, const double* in, Complex* out) {
  std::vector<double> row(plan.length);
  for (int b = 0; b < plan.batch; ++b) {
    std::copy_n(in + static_cast<std::size_t>(b) * plan.length, plan.length, row.begin());
    real_fft(row.data(), plan.length, true);
    Complex* to = out + static_cast<std::size_t>(b) * (plan.length / 2 + 1);
    to[0] = {row[0], 0};
    for (std::size_t k = 1; k < plan.length / 2; ++k) to[k] = {row[2 * k - 1], row[2 * k]};
    to[plan.length / 2] = {row[plan.length - 1], 0};
  }
}

void backward(const Plan& plan, const Complex* in, double* out) {
  for (int b = 0; b < plan.batch; ++b) {
    const Complex* from = in + static_cast<std::size_t>(b) * (plan.length / 2 + 1);
    double* row = out + static_cast<std::size_t>(b) * plan.length;
    row[0] = from[0].re;
    for (std::size_t k = 1; k < plan.length / 2; ++k) {
      row[2 * k - 1] = from[k].re;
      row[2 * k] = from[k].im;
    }
    row[plan.length - 1] = from[plan.length / 2].re;
    real_fft(row, plan.length, false);
  }
}

// The plan as it is now: what is queued keeps its stream and work area.
template <class Transform>
int execute(CufftHandle handle, int type, const Transform& transform) {
  const Plan plan = plans.at(handle);
  if (plan.type != type) return invalid_plan;
  if (plan.work == nullptr) return no_workspace;
  emulation::enqueue(plan.stream, [=] {
    std::memset(plan.work, 0xA5, plan.work_bytes());
    transform(plan);
  });
  return 0;
}

int exec_d2z(CufftHandle handle, double* in, Complex* out) {
  return execute(handle, cufft_d2z, [=](const Plan& plan) { forward(plan, in, out); });
}

int exec_z2d(CufftHandle handle, Complex* in, double* out) {
  return execute(handle, cufft_z2d, [=](const Plan& plan) { backward(plan, in, out); });
}

int destroy(CufftHandle handle) {
  plans.erase(handle);
  return 0;
}

}  // namespace

const Cufft& cufft() {
  static const Cufft calls{
      create, set_auto_allocation, make_plan_many, set_work_area, set_stream, exec_d2z, exec_z2d,
      destroy};
  return calls;
}

}  // namespace softq::cuda
