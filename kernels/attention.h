// One call of an attention op: no ONNX Runtime, no vectors.
//
// Shape letters, as in docs/attention.md:
//
//   T packed rows      B sequences        N steps of the longest sequence
//   H query heads      K key heads (K divides H; query head h reads key head h / (H / K))
//   E query/key size   V value size

#ifndef ATTNSERVE_KERNELS_ATTENTION_H_
#define ATTNSERVE_KERNELS_ATTENTION_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace attnserve {

using Index = std::int64_t;

enum class Weighting { kExpressive, kSoftmax };
// On a CPU bfloat16 is none.
enum class Storage { kFloat32, kFloat16, kBFloat16 };

// Its steps are the packed rows from first_row on.
struct Sequence {
  Index first_row;
  Index num_steps;
};

// Keys that a query sees.
struct KeyRange {
  Index first;
  Index last;
};

// Everything is computed in float32, whatever the storage.
struct Attention {
  Weighting weighting;
  Storage storage;

  bool causal;
  float scale;
  float epsilon;
  Index window;   // keys nearer than this are seen; 0 is no window
  float softcap;  // 0 is none

  Index num_heads;
  Index num_key_heads;
  Index head_size;
  Index value_size;
  std::vector<Sequence> sequences;

  const void* query;  // [T, H, E]
  const void* key;    // [T, K, E]
  const void* value;  // [T, K, V]
  void* output;       // [T, H, V]; rows of no sequence are not written

  KeyRange SeenKeys(const Sequence& sequence, Index query) const {
    KeyRange seen{0, causal ? query : sequence.num_steps - 1};
    // Subtracted rather than added: a window may be as large as its type.
    if (window > 0 && query >= window) seen.first = query - window + 1;
    if (window > 0 && seen.last - query >= window) seen.last = query + window - 1;
    return seen;
  }
};

constexpr Index DivideUp(Index number, Index by) { return (number + by - 1) / by; }
constexpr Index RoundUp(Index number, Index to) { return DivideUp(number, to) * to; }

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_ATTENTION_H_
