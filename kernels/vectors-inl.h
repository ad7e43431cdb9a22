// Vectors of the instruction set that is being compiled, and functions of them.

#if defined(ATTNSERVE_KERNELS_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_VECTORS_INL_H_
#undef ATTNSERVE_KERNELS_VECTORS_INL_H_
#else
#define ATTNSERVE_KERNELS_VECTORS_INL_H_
#endif

#include <hwy/highway.h>

#include <iterator>

#include "attention.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using Vector = hn::Vec<D>;
constexpr Index kLanes = hn::MaxLanes(D());

// What is in registers at a time: kRows queries times kVectors vectors of keys, or of values' channels. The sums fill
// the register file but for what is multiplied, which makes the multiplications, and not the loads, what takes time.
constexpr Index kVectors = 2;
#if HWY_TARGET <= HWY_AVX3
constexpr Index kRows = 8;
#else
constexpr Index kRows = 4;
#endif

HWY_INLINE float ToFloat(float number) { return number; }
HWY_INLINE float ToFloat(hwy::float16_t number) { return hwy::F32FromF16(number); }
HWY_INLINE void FromFloat(float number, float* to) { *to = number; }
HWY_INLINE void FromFloat(float number, hwy::float16_t* to) { *to = hwy::F16FromF32(number); }

template <class Tag>
HWY_INLINE hn::Vec<Tag> LoadFloats(Tag tag, const float* from) {
  return hn::LoadU(tag, from);
}
template <class Tag>
HWY_INLINE hn::Vec<Tag> LoadFloats(Tag tag, const hwy::float16_t* from) {
  return hn::PromoteTo(tag, hn::LoadU(hn::Rebind<hwy::float16_t, Tag>(), from));
}

HWY_INLINE void StoreFloats(Vector numbers, float* to) { hn::StoreU(numbers, D(), to); }
HWY_INLINE void StoreFloats(Vector numbers, hwy::float16_t* to) {
  const hn::Rebind<hwy::float16_t, D> narrow;
  hn::StoreU(hn::DemoteTo(narrow, numbers), narrow, to);
}

// 1 / x, to a unit in the last place.
HWY_INLINE Vector Invert(Vector x) {
#if HWY_TARGET <= HWY_AVX3
  // An estimate to 14 bits and a step of Newton's: divisions of 512 bits take three times as long.
  const Vector near = hn::ApproximateReciprocal(x);
  return hn::MulAdd(near, hn::NegMulAdd(near, x, hn::Set(D(), 1.0f)), near);
#else
  return hn::Div(hn::Set(D(), 1.0f), x);
#endif
}

// e^x for x <= 0, to a unit in the last place; 0 where that is not a normal number.
HWY_INLINE Vector Exponential(Vector x) {
  const hn::RebindToSigned<D> integers;
  const Vector log2_e = hn::Set(D(), 1.44269504f);
  // As 2^exponent * 2^rest. A NaN is kept where it is the second operand.
  const Vector bounded = hn::Max(hn::Set(D(), -88.0f), x);
  const auto exponent = hn::NearestInt(hn::Mul(bounded, log2_e));
  // Rounded once: x / log 2 alone would lose what the exponent takes of its digits.
  const Vector rest = hn::MulSub(bounded, log2_e, hn::ConvertTo(D(), exponent));
  // Minimax over [-0.5, 0.5] with 1 as its constant: 2e-9, so that what is left is rounding.
  constexpr float kSeries[] = {
      1.5353362e-4f, 1.33988739e-3f, 9.61843692e-3f, 5.55033237e-2f, 2.40226477e-1f, 6.93147182e-1f, 1.0f};
  Vector power = hn::Set(D(), kSeries[0]);
  HWY_UNROLL(6)
  for (Index term = 1; term < static_cast<Index>(std::size(kSeries)); ++term)
    power = hn::MulAdd(power, rest, hn::Set(D(), kSeries[term]));
  // An exponent of -127 becomes the bits of 0.
  const auto scale = hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(integers, 127)));
  return hn::Mul(power, hn::BitCast(D(), scale));
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_VECTORS_INL_H_
