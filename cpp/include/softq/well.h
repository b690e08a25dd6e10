// The triangular well of Eq. 3: the one place where the interaction is written.
#pragma once

#if defined(__CUDACC__)
#define SOFTQ_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Forced, so that no translation unit built for a wider instruction set can lend its copy to
// others.
#define SOFTQ_HD [[gnu::always_inline]] inline
#else
#define SOFTQ_HD inline
#endif

namespace softq {

struct Well {
  double width;

  // U_w(x) = |x| - w inside the well, 0 at its edge and beyond.
  SOFTQ_HD double energy(double x) const {
    const double depth = __builtin_fabs(x) - width;
    return depth < 0 ? depth : 0.0;
  }

  // U'_w(x) = sign(x) for 0 < |x| < w; a tie and the edge give 0.
  SOFTQ_HD long long slope(double x) const {
    // No short circuits: compilers turn these into vector masks.
    const bool inside = __builtin_fabs(x) < width;
    return static_cast<long long>(inside & (x > 0)) - static_cast<long long>(inside & (x < 0));
  }
};

}  // namespace softq
