// How the elements of a type are laid out for tensor cores, and multiplied.

#ifndef ATTNSERVE_KERNELS_CUDA_ELEMENTS_H_
#define ATTNSERVE_KERNELS_CUDA_ELEMENTS_H_

#include <cstring>

#include "lanes.h"

namespace attnserve::cuda {

ATTNSERVE_DEVICE float ToFloat(float number) { return number; }
ATTNSERVE_DEVICE float ToFloat(__half number) { return __half2float(number); }
ATTNSERVE_DEVICE float ToFloat(__nv_bfloat16 number) { return __bfloat162float(number); }
ATTNSERVE_DEVICE void FromFloat(float number, float* to) { *to = number; }
ATTNSERVE_DEVICE void FromFloat(float number, __half* to) { *to = __float2half_rn(number); }
ATTNSERVE_DEVICE void FromFloat(float number, __nv_bfloat16* to) { *to = __float2bfloat16_rn(number); }

template <typename To, typename From>
ATTNSERVE_DEVICE To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Of 16 bits.
template <typename T>
struct Elements {
  static constexpr int kStep = 16;      // channels, or keys, of one multiplication
  static constexpr int kTileKeys = 64;  // in shared memory at once
  static constexpr int kPadding = 8;    // beyond a row of shared memory: rows of a matrix begin in different banks

  ATTNSERVE_DEVICE static std::uint32_t Pack(T first, T second) {
    const T pair[2] = {first, second};
    std::uint32_t bits;
    memcpy(&bits, pair, sizeof(bits));
    return bits;
  }

  // What this lane holds of the left matrix, whose element is at(row, column).
  template <typename At>
  ATTNSERVE_DEVICE static Left MakeLeft(int group, int lane, const At& at) {
    Left left;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = group + part % 2 * 8, column = 2 * lane + part / 2 * 8;
      left.parts[part] = Pack(at(row, column), at(row, column + 1));
    }
    return left;
  }

  // Weights as the left matrix of the `step`th multiplication: where the sums of two products lie is where they go.
  ATTNSERVE_DEVICE static Left MakeLeft(const float (*weights)[4], int step) {
    Left left;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float* from = weights[2 * step + part / 2] + part % 2 * 2;
      T first, second;
      FromFloat(from[0], &first);
      FromFloat(from[1], &second);
      left.parts[part] = Pack(first, second);
    }
    return left;
  }

  // The right matrices of 16 keys of a tile: their channels from `channel` on, transposed.
  ATTNSERVE_DEVICE static void LoadKeys(const T* tile, int stride, int key, int channel, Right (&right)[2]) {
    const int lane = ThreadIndex() % 32;
    std::uint32_t parts[4];
    LoadMatrices<false>(tile + (key + lane / 16 * 8 + lane % 8) * stride + channel + lane / 8 % 2 * 8, parts);
    right[0] = {{parts[0], parts[1]}};
    right[1] = {{parts[2], parts[3]}};
  }

  // The right matrices of 16 channels of a tile, from the `key`th value on.
  ATTNSERVE_DEVICE static void LoadValues(const T* tile, int stride, int key, int channel, Right (&right)[2]) {
    const int lane = ThreadIndex() % 32;
    std::uint32_t parts[4];
    LoadMatrices<true>(tile + (key + lane / 8 % 2 * 8 + lane % 8) * stride + channel + lane / 16 * 8, parts);
    right[0] = {{parts[0], parts[1]}};
    right[1] = {{parts[2], parts[3]}};
  }

  ATTNSERVE_DEVICE static void Multiply(float (&sums)[4], const Left& left, const Right& right) {
    MultiplyAdd(sums, left, right, T());
  }
};

// float32 keeps its digits: each number is the sum of two that tensor cores read whole, and of the four products the
// smallest is left out.
template <>
struct Elements<float> {
  static constexpr int kStep = 8;
  static constexpr int kTileKeys = 32;
  static constexpr int kPadding = 4;

  template <typename At>
  ATTNSERVE_DEVICE static Left MakeLeft(int group, int lane, const At& at) {
    Left left;
#pragma unroll
    for (int part = 0; part < 4; ++part)
      left.parts[part] = BitCast<std::uint32_t>(at(group + part % 2 * 8, lane + part / 2 * 4));
    return left;
  }

  // Sums lie at columns 2t and 2t + 1, factors at t and t + 4. Which key is which does not matter to the product, as
  // long as values are taken in the same order.
  ATTNSERVE_DEVICE static Left MakeLeft(const float (*weights)[4], int step) {
    const float* from = weights[step];
    return {{BitCast<std::uint32_t>(from[0]), BitCast<std::uint32_t>(from[2]), BitCast<std::uint32_t>(from[1]),
             BitCast<std::uint32_t>(from[3])}};
  }

  ATTNSERVE_DEVICE static void LoadKeys(const float* tile, int stride, int key, int channel, Right (&right)[2]) {
    const int group = ThreadIndex() % 32 / 4, lane = ThreadIndex() % 4;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float* from = tile + (key + 8 * which + group) * stride + channel + lane;
      right[which] = {{BitCast<std::uint32_t>(from[0]), BitCast<std::uint32_t>(from[4])}};
    }
  }

  ATTNSERVE_DEVICE static void LoadValues(const float* tile, int stride, int key, int channel, Right (&right)[2]) {
    const int group = ThreadIndex() % 32 / 4, lane = ThreadIndex() % 4;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float* from = tile + (key + 2 * lane) * stride + channel + 8 * which + group;
      right[which] = {{BitCast<std::uint32_t>(from[0]), BitCast<std::uint32_t>(from[stride])}};
    }
  }

  ATTNSERVE_DEVICE static void Multiply(float (&sums)[4], const Left& left, const Right& right) {
    Left large_left, small_left;
    Right large_right, small_right;
#pragma unroll
    for (int part = 0; part < 4; ++part) Split(left.parts[part], large_left.parts[part], small_left.parts[part]);
#pragma unroll
    for (int part = 0; part < 2; ++part) Split(right.parts[part], large_right.parts[part], small_right.parts[part]);
    // The small ones first: they would be lost in a large sum.
    MultiplyAddTruncated(sums, small_left, large_right);
    MultiplyAddTruncated(sums, large_left, small_right);
    MultiplyAddTruncated(sums, large_left, large_right);
  }

 private:
  // Rounds to 11 bits; what is left has 13, of which tensor cores read 11. Of what is not finite NaN is left.
  ATTNSERVE_DEVICE static void Split(std::uint32_t number, std::uint32_t& large, std::uint32_t& small) {
    large = (number + 0x1000u) & 0xffffe000u;
    small = BitCast<std::uint32_t>(BitCast<float>(number) - BitCast<float>(large));
  }
};

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_ELEMENTS_H_
