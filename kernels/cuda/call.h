// One call of an attention op or of the metric, as threads of a GPU read it: numbers and addresses alone. Shape letters
// in ../attention.h.

#ifndef ATTNSERVE_KERNELS_CUDA_CALL_H_
#define ATTNSERVE_KERNELS_CUDA_CALL_H_

#include <cstdint>

namespace attnserve::cuda {

// `slots [B, N]`, read where they are: on the device, so that nothing waits for them.
struct Slots {
  const std::int64_t* rows;
  int num_sequences;      // B
  int num_steps;          // N
  std::int64_t num_rows;  // T, which stands for no row
};

struct AttentionCall {
  bool causal;
  float scale;
  float epsilon;
  float softcap;        // 0 is none
  std::int64_t window;  // keys nearer than this are seen; 0 is no window

  int num_heads;
  int num_key_heads;
  int head_size;
  int value_size;
  Slots slots;

  const void* query;  // [T, H, E]
  const void* key;    // [T, K, E]
  const void* value;  // [T, K, V]
  void* output;       // [T, H, V]; rows of no sequence are not written
};

struct MetricCall {
  bool is_prefix;  // sums of the steps up to a row's own, else of the whole sequence
  bool is_mean;    // scaled by the mean over a head's channels, else by the largest

  int num_heads;
  int head_size;
  Slots slots;

  const void* value;           // [T, K, E]
  const void* previous_value;  // [T, K, E]
  void* output;                // [T, K, E]; rows of no sequence are not written
};

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_CALL_H_
