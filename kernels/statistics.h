// One call of AttentionStatistics: no ONNX Runtime, no vectors.

#ifndef ATTNSERVE_KERNELS_STATISTICS_H_
#define ATTNSERVE_KERNELS_STATISTICS_H_

#include "attention.h"

namespace attnserve {

// Rows of attention weights w of one sequence, by head, of which none is kept.
struct Statistics {
  Weighting weighting;
  float scale;
  float epsilon;
  float softcap;  // 0 is none

  Index num_heads;
  Index num_queries;
  Index num_keys;
  Index head_size;

  const float* query;      // [H, Q, E]
  const float* key;        // [H, N, E]
  const Index* token;      // [N] id of each step, of those whose repetitions are looked for
  const Index* step;       // [Q] of each query in the sequence
  const Index* first_key;  // [Q] that it sees
  const Index* last_key;   // [Q] that it sees; before the first one where it sees none

  // [H, Q] each; 0 for a row without weights.
  float* mass;       // sum w
  float* entropy;    // -sum w log2 w
  float* distance;   // sum w |key - step|
  float* sink;       // w of key 0
  float* previous;   // w of the key before the step
  float* self;       // w of the step's own key
  float* duplicate;  // sum w of keys before the step that have its token
  float* induction;  // sum w of keys up to the step that come right after a key of its token
  // [H, N] sum over the queries of w
  float* received;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_STATISTICS_H_
