// Multiplications and additions as fast as a core can do them: what benchmarks/kernels compares with.

#include "isa.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "peak.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Returns the number of multiply-adds done.
std::int64_t MultiplyAdd(std::int64_t rounds, float* result) {
  // More sums than a multiply-add takes cycles, times those begun per cycle; fewer than there are registers.
  constexpr int kSums = 12;
  const hn::ScalableTag<float> tag;
  hn::Vec<decltype(tag)> sums[kSums];
  const auto factor = hn::Set(tag, *result), term = hn::Set(tag, 1e-9f);
  HWY_UNROLL(12)
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Set(tag, static_cast<float>(i));
  for (std::int64_t round = 0; round < rounds; ++round) {
    HWY_UNROLL(12)
    for (int i = 0; i < kSums; ++i) sums[i] = hn::MulAdd(sums[i], factor, term);
  }
  auto total = sums[0];
  HWY_UNROLL(12)
  for (int i = 1; i < kSums; ++i) total = hn::Add(total, sums[i]);
  *result = hn::GetLane(total);
  return rounds * kSums * static_cast<std::int64_t>(hn::Lanes(tag));
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#define ATTNSERVE_EXPORT __attribute__((visibility("default")))

extern "C" ATTNSERVE_EXPORT std::int64_t attnserve_multiply_add(std::int64_t rounds, float* result) {
#if HWY_TARGETS & HWY_AVX3
  if (HasAvx512()) return attnserve::N_AVX3::MultiplyAdd(rounds, result);
#endif
#if HWY_TARGETS & HWY_AVX2
  if (HasAvx2()) return attnserve::N_AVX2::MultiplyAdd(rounds, result);
#endif
  return attnserve::HWY_STATIC_DISPATCH(MultiplyAdd)(rounds, result);
}
#endif  // HWY_ONCE
