// One call of the elliptical metric: no ONNX Runtime, no vectors. Shape letters in attention.h.

#ifndef ATTNSERVE_KERNELS_METRIC_H_
#define ATTNSERVE_KERNELS_METRIC_H_

#include <vector>

#include "attention.h"

namespace attnserve {

struct Metric {
  Storage storage;
  bool is_prefix;  // sums of the steps up to a row's own, else of the whole sequence
  bool is_mean;    // scaled by the mean over a head's channels, else by the largest

  Index num_heads;
  Index head_size;
  std::vector<Sequence> sequences;

  const void* value;           // [T, K, E]
  const void* previous_value;  // [T, K, E]
  void* output;                // [T, K, E]; rows of no sequence are not written

  // One for every head of every sequence.
  Index num_tasks() const { return static_cast<Index>(sequences.size()) * num_heads; }
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_METRIC_H_
