// What cpp/cuda/cufft.h declares beside NVIDIA's own header, and its loader beside the library:
// compiles only where both say the same, ends well only where the library and all calls are found.
#include "../cuda/cufft.h"

#include <cufft.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <type_traits>

namespace softq::cuda {
namespace {

// What stands in our declarations in place of a type of NVIDIA's.
template <class T>
struct Here {
  using type = T;
};
template <>
struct Here<cufftResult> {
  using type = int;
};
template <>
struct Here<cufftType> {
  using type = int;
};
template <>
struct Here<cufftDoubleComplex*> {
  using type = Complex*;
};
template <class Result, class... Parameters>
struct Here<Result(Parameters...)> {
  using type = typename Here<Result>::type (*)(typename Here<Parameters>::type...);
};

template <auto call, class Ours>
inline constexpr bool same =
    std::is_same_v<typename Here<std::remove_pointer_t<decltype(call)>>::type, Ours>;

static_assert(same<&cufftCreate, decltype(Cufft::create)>);
static_assert(same<&cufftSetAutoAllocation, decltype(Cufft::set_auto_allocation)>);
static_assert(same<&cufftMakePlanMany, decltype(Cufft::make_plan_many)>);
static_assert(same<&cufftSetWorkArea, decltype(Cufft::set_work_area)>);
static_assert(same<&cufftSetStream, decltype(Cufft::set_stream)>);
static_assert(same<&cufftExecD2Z, decltype(Cufft::exec_d2z)>);
static_assert(same<&cufftExecZ2D, decltype(Cufft::exec_z2d)>);
static_assert(same<&cufftDestroy, decltype(Cufft::destroy)>);

static_assert(std::is_same_v<CufftHandle, cufftHandle>);
static_assert(std::is_same_v<double, cufftDoubleReal>);
static_assert(sizeof(cufftResult) == sizeof(int) && CUFFT_SUCCESS == 0);
static_assert(sizeof(cufftType) == sizeof(int));
static_assert(cufft_d2z == CUFFT_D2Z && cufft_z2d == CUFFT_Z2D);
static_assert(sizeof(Complex) == sizeof(cufftDoubleComplex));
static_assert(offsetof(Complex, re) == offsetof(cufftDoubleComplex, x));
static_assert(offsetof(Complex, im) == offsetof(cufftDoubleComplex, y));
static_assert(std::is_same_v<decltype(Complex::re), decltype(cufftDoubleComplex::x)>);

}  // namespace
}  // namespace softq::cuda

int main() {
  try {
    softq::cuda::cufft();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("cuFFT %d.%d.%d: declarations as here, all calls found\n", CUFFT_VER_MAJOR,
              CUFFT_VER_MINOR, CUFFT_VER_PATCH);
  return 0;
}
