// What threads do together: barriers, shuffles, matrices from shared memory, tensor cores.
//
// A warp's 32 lanes hold a matrix between them. With g = lane / 4 and t = lane % 4, by PTX's mma.m16n8k16 (16 bits) and
// mma.m16n8k8 (tf32):
//
//            16 bits, two to a register                 tf32
//   left     rows g, g + 8; columns 2t, 2t + 1;         rows g, g + 8; columns t; rows g, g + 8; columns t + 4
//            rows g, g + 8; columns 2t + 8, 2t + 9
//   right    column g; rows 2t, 2t + 1; 2t + 8, 2t + 9  column g; row t; row t + 4
//   sums     row g; columns 2t, 2t + 1; row g + 8; columns 2t, 2t + 1
//
// Elsewhere than in nvcc the same functions come from emulated_lanes.h, of the tests.

#ifndef ATTNSERVE_KERNELS_CUDA_LANES_H_
#define ATTNSERVE_KERNELS_CUDA_LANES_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace attnserve::cuda {

// 16 x 16 (16 bits) or 16 x 8 (tf32).
struct Left {
  std::uint32_t parts[4];
};
// 16 x 8 or 8 x 8.
struct Right {
  std::uint32_t parts[2];
};

}  // namespace attnserve::cuda

#ifdef __CUDACC__

#define ATTNSERVE_DEVICE __device__ __forceinline__

namespace attnserve::cuda {

ATTNSERVE_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
// Of a block's threads; what they have written to shared memory is there afterwards.
ATTNSERVE_DEVICE void Synchronise() { __syncthreads(); }
// To two units in the last place, for divisors below 2^126.
ATTNSERVE_DEVICE float DivideFast(float number, float by) { return __fdividef(number, by); }
ATTNSERVE_DEVICE float ShuffleXor(float number, int mask) { return __shfl_xor_sync(0xffffffffu, number, mask); }

// Four matrices of 8 x 8 numbers of 16 bits. Lane i says where row i % 8 of matrix i / 8 begins, and gets of each
// matrix row i / 4, columns i % 4 * 2 and the next; transposed: column i / 4, and those rows.
template <bool transposed>
ATTNSERVE_DEVICE void LoadMatrices(const void* row, std::uint32_t (&parts)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address));
  }
}

// sums += left right, in float32.
ATTNSERVE_DEVICE void MultiplyAdd(float (&sums)[4], const Left& left, const Right& right, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left.parts[0]), "r"(left.parts[1]), "r"(left.parts[2]), "r"(left.parts[3]), "r"(right.parts[0]),
        "r"(right.parts[1]));
}
ATTNSERVE_DEVICE void MultiplyAdd(float (&sums)[4], const Left& left, const Right& right, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left.parts[0]), "r"(left.parts[1]), "r"(left.parts[2]), "r"(left.parts[3]), "r"(right.parts[0]),
        "r"(right.parts[1]));
}
// Of float32 numbers of which 11 bits are read.
ATTNSERVE_DEVICE void MultiplyAddTruncated(float (&sums)[4], const Left& left, const Right& right) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left.parts[0]), "r"(left.parts[1]), "r"(left.parts[2]), "r"(left.parts[3]), "r"(right.parts[0]),
        "r"(right.parts[1]));
}

}  // namespace attnserve::cuda

#else
#include "emulated_lanes.h"
#endif

#endif  // ATTNSERVE_KERNELS_CUDA_LANES_H_
