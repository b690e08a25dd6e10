// cuFFT's calls by pocketfft.
#include "../cufft.h"

#include <ducc0/fft/fft1d_impl.h>

#include <algorithm>
#include <map>
#include <vector>

namespace softq::cuda {
namespace {

struct Plan {
  std::size_t length;
  int type, batch;
  ducc0::pocketfft_r<double> transform;
};
std::map<CufftHandle, Plan> plans;
int created = 0;

int plan_many(CufftHandle* handle, int, int* length, int*, int, int, int*, int, int, int type,
              int batch) {
  *handle = ++created;
  const auto size = static_cast<std::size_t>(*length);
  plans.emplace(*handle, Plan{size, type, batch, ducc0::pocketfft_r<double>(size)});
  return 0;
}

int set_stream(CufftHandle, cudaStream_t) { return 0; }

// Between r0, i0 = 0, r1, i1, … and pocketfft's r0, r1, i1, …; the length is even.
int exec_d2z(CufftHandle handle, double* in, Complex* out) {
  const Plan& plan = plans.at(handle);
  std::vector<double> row(plan.length);
  for (int b = 0; b < plan.batch; ++b) {
    std::copy_n(in + static_cast<std::size_t>(b) * plan.length, plan.length, row.begin());
    plan.transform.exec(row.data(), 1.0, true);
    Complex* to = out + static_cast<std::size_t>(b) * (plan.length / 2 + 1);
    to[0] = {row[0], 0};
    for (std::size_t k = 1; k < plan.length / 2; ++k) to[k] = {row[2 * k - 1], row[2 * k]};
    to[plan.length / 2] = {row[plan.length - 1], 0};
  }
  return 0;
}

int exec_z2d(CufftHandle handle, Complex* in, double* out) {
  const Plan& plan = plans.at(handle);
  for (int b = 0; b < plan.batch; ++b) {
    const Complex* from = in + static_cast<std::size_t>(b) * (plan.length / 2 + 1);
    double* row = out + static_cast<std::size_t>(b) * plan.length;
    row[0] = from[0].re;
    for (std::size_t k = 1; k < plan.length / 2; ++k) {
      row[2 * k - 1] = from[k].re;
      row[2 * k] = from[k].im;
    }
    row[plan.length - 1] = from[plan.length / 2].re;
    plan.transform.exec(row, 1.0, false);
  }
  return 0;
}

int destroy(CufftHandle handle) {
  plans.erase(handle);
  return 0;
}

}  // namespace

const Cufft& cufft() {
  static const Cufft calls{plan_many, set_stream, exec_d2z, exec_z2d, destroy};
  return calls;
}

}  // namespace softq::cuda
