// The kernels once per instruction set.

#ifndef ATTNSERVE_KERNELS_TARGET_H_
#define ATTNSERVE_KERNELS_TARGET_H_

#include <vector>

#include "attention.h"
#include "metric.h"
#include "plan.h"
#include "statistics.h"

namespace attnserve {

struct Target {
  const char* name;  // "avx512", "avx2" or "portable"
  Padding padding;
  // Tasks of a plan. Those that pack go first; apart from that tasks may run in any order, and at once.
  void (*pack)(const Attention& attention, const Plan& plan, float* scratch, Index task);
  void (*attend)(const Attention& attention, const Plan& plan, const float* scratch, Index task);
  void (*measure)(const Metric& metric, Index task);
  void (*describe)(const Statistics& statistics, Index head);
};

// What this processor can run, fastest first; the last one runs everywhere.
std::vector<Target> FindTargets();

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_TARGET_H_
