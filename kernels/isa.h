// The instruction sets that are compiled for. Included before anything of Highway.

#ifndef ATTNSERVE_KERNELS_ISA_H_
#define ATTNSERVE_KERNELS_ISA_H_

// AVX-512, AVX2 and what every processor has: few enough to test each of them. Nothing is linked of Highway, whose own
// choice would need its library, so kernels are a file that stands alone.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#if defined(__x86_64__)
inline bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("f16c");
}
inline bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}
#endif

#endif  // ATTNSERVE_KERNELS_ISA_H_
