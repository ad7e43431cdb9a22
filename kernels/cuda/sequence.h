// The steps of a sequence, and what its queries see: read on the device.

#ifndef ATTNSERVE_KERNELS_CUDA_SEQUENCE_H_
#define ATTNSERVE_KERNELS_CUDA_SEQUENCE_H_

#include "call.h"
#include "lanes.h"

namespace attnserve::cuda {

// Its steps are the packed rows from first_row on.
struct Sequence {
  int first_row;
  int num_steps;
};

// Keys that a query sees.
struct KeyRange {
  int first;
  int last;
};

// A row of slots is one ascending run of packed rows, and then T only. Nobody waits for a device to say that one is
// not: what does not begin and end as it should has no steps, so that nothing is read or written out of bounds.
ATTNSERVE_DEVICE Sequence FindSequence(const Slots& slots, int index) {
  const std::int64_t* rows = slots.rows + static_cast<std::int64_t>(index) * slots.num_steps;
  int first = 0, end = slots.num_steps;
  while (first < end) {
    const int middle = first + (end - first) / 2;
    if (rows[middle] == slots.num_rows) {
      end = middle;
    } else {
      first = middle + 1;
    }
  }
  if (end == 0) return {0, 0};
  const std::int64_t first_row = rows[0];
  const bool is_run = first_row >= 0 && first_row <= slots.num_rows - end && rows[end - 1] == first_row + end - 1;
  return is_run ? Sequence{static_cast<int>(first_row), end} : Sequence{0, 0};
}

ATTNSERVE_DEVICE KeyRange SeenKeys(const AttentionCall& call, int num_steps, int query) {
  KeyRange seen{0, call.causal ? query : num_steps - 1};
  // Subtracted rather than added: a window may be as large as its type.
  if (call.window > 0 && query >= call.window) seen.first = query - static_cast<int>(call.window) + 1;
  if (call.window > 0 && seen.last - query >= call.window) seen.last = query + static_cast<int>(call.window) - 1;
  return seen;
}

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_SEQUENCE_H_
