// All that is computed with vectors, compiled once per instruction set.

#include "target.h"

#include "isa.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "target.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "attend-inl.h"
#include "describe-inl.h"
#include "measure-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

Target GetTarget(const char* name) { return {name, {kPanelKeys, kLanes}, RunPack, RunAttend, RunMeasure, RunDescribe}; }

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnserve {

std::vector<Target> FindTargets() {
  std::vector<Target> targets;
#if HWY_TARGETS & HWY_AVX3
  if (HasAvx512()) targets.push_back(N_AVX3::GetTarget("avx512"));
#endif
#if HWY_TARGETS & HWY_AVX2
  if (HasAvx2()) targets.push_back(N_AVX2::GetTarget("avx2"));
#endif
  targets.push_back(HWY_STATIC_DISPATCH(GetTarget)("portable"));
  return targets;
}

}  // namespace attnserve
#endif  // HWY_ONCE
