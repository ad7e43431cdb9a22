// kRows queries against a tile of keys: their scores, their weights, and what these add to the output.
//
// Scores, and then weights in their place, lie in rows of kTileKeys. Ranges of keys are relative to the tile. Whole
// vectors are computed, so there may be scores of keys beyond a range; they weigh nothing.

#if defined(ATTNSERVE_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_TILE_INL_H_
#undef ATTNSERVE_KERNELS_TILE_INL_H_
#else
#define ATTNSERVE_KERNELS_TILE_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <limits>

#include "pack-inl.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

// What is kept of a query from tile to tile.
struct RowState {
  float largest;                  // softmax: score so far
  HWY_ALIGN float total[kLanes];  // of the weights, by lane
};

template <Index count>
HWY_INLINE void ScorePanel(const float* queries, const float* keys, Index head_size, float* scores) {
  Vector sums[kRows][count];
  HWY_UNROLL(8)
  for (Index row = 0; row < kRows; ++row)
    for (Index j = 0; j < count; ++j) sums[row][j] = hn::Zero(D());
  for (Index first = 0; first < head_size; first += kChunk, queries += kBlockQueries * kChunk) {
    const Index num_channels = std::min(head_size - first, kChunk);
    for (Index channel = 0; channel < num_channels; ++channel, keys += kPanelKeys) {
      Vector key[count];
      for (Index j = 0; j < count; ++j) key[j] = hn::Load(D(), keys + j * kLanes);
      HWY_UNROLL(8)
      for (Index row = 0; row < kRows; ++row) {
        const Vector query = hn::Set(D(), queries[row * kChunk + channel]);
        for (Index j = 0; j < count; ++j) sums[row][j] = hn::MulAdd(query, key[j], sums[row][j]);
      }
    }
  }
  HWY_UNROLL(8)
  for (Index row = 0; row < kRows; ++row)
    for (Index j = 0; j < count; ++j) hn::Store(sums[row][j], D(), scores + row * kTileKeys + j * kLanes);
}

// Scores of packed `queries` and the tile's packed `keys`.
HWY_INLINE void ScoreTile(const float* queries, const float* keys, Index head_size, KeyRange range, float* scores) {
  for (Index key = range.first / kPanelKeys * kPanelKeys; key <= range.last; key += kPanelKeys) {
    const auto score = range.last - key < kLanes ? ScorePanel<1> : ScorePanel<kVectors>;
    score(queries, keys + key * head_size, head_size, scores + key);
  }
}

HWY_INLINE hn::Mask<D> SeenKeys(Index key, KeyRange seen) {
  // Exact: within a tile there are no large numbers, and what lies beyond it may be anywhere.
  const Vector keys = hn::Iota(D(), static_cast<float>(key));
  return hn::And(hn::Ge(keys, hn::Set(D(), static_cast<float>(seen.first))),
                 hn::Le(keys, hn::Set(D(), static_cast<float>(seen.last))));
}

// softcap * tanh(z / softcap) in the place of scores z.
HWY_INLINE void CapScores(float softcap, KeyRange range, float* scores) {
  const Vector cap = hn::Set(D(), softcap);
  for (Index key = range.first; key <= range.last; key += kLanes)
    hn::Store(hn::Mul(cap, hn::Tanh(D(), hn::Div(hn::Load(D(), scores + key), cap))), D(), scores + key);
}

// u = z^2 / (1 + z^2) of scores z.
HWY_INLINE Vector Similarity(Vector score) {
  // 2^46: from there on 1 + z^2 rounds to z^2. Unbounded, z^2 overflows, and inf / inf is NaN, which is kept where it
  // is the second operand.
  const Vector square = hn::Min(hn::Set(D(), 70368744177664.0f), hn::Mul(score, score));
  return hn::Mul(square, Invert(hn::Add(square, hn::Set(D(), 1.0f))));
}

// Similarities in the place of scores of keys that are `seen`, 0 in that of others.
template <bool all_seen>
HWY_INLINE void WeighExpressive(KeyRange range, KeyRange seen, float* scores, RowState& state) {
  Vector total = hn::Load(D(), state.total);
  for (Index key = range.first; key <= range.last; key += kLanes) {
    Vector weight = Similarity(hn::Load(D(), scores + key));
    if (!all_seen) weight = hn::IfThenElseZero(SeenKeys(key, seen), weight);
    hn::Store(weight, D(), scores + key);
    total = hn::Add(total, weight);
  }
  hn::Store(total, D(), state.total);
}

// e^(z - largest) in the place of scores z of keys that are `seen`, 0 in that of others.
// A score that is larger than all before scales down what `state` and the row of `output` hold.
template <bool all_seen>
HWY_INLINE void WeighSoftmax(KeyRange range, KeyRange seen, float* scores, RowState& state, float* output,
                             Index output_size) {
  const Vector nothing = hn::Set(D(), -std::numeric_limits<float>::infinity());
  Vector top = hn::Set(D(), state.largest);
  for (Index key = range.first; key <= range.last; key += kLanes) {
    Vector score = hn::Load(D(), scores + key);
    if (!all_seen) {
      score = hn::IfThenElse(SeenKeys(key, seen), score, nothing);
      hn::Store(score, D(), scores + key);
    }
    top = hn::Max(top, score);
  }
  Vector total = hn::Load(D(), state.total);
  const float largest = hn::GetLane(hn::MaxOfLanes(D(), top));
  if (largest > state.largest) {
    const Vector shrink = Exponential(hn::Set(D(), state.largest - largest));
    total = hn::Mul(total, shrink);
    for (Index channel = 0; channel < output_size; channel += kLanes)
      hn::Store(hn::Mul(hn::Load(D(), output + channel), shrink), D(), output + channel);
    state.largest = largest;
  }
  const Vector offset = hn::Set(D(), state.largest);
  for (Index key = range.first; key <= range.last; key += kLanes) {
    const Vector weight = Exponential(hn::Sub(hn::Load(D(), scores + key), offset));
    hn::Store(weight, D(), scores + key);
    total = hn::Add(total, weight);
  }
  hn::Store(total, D(), state.total);
}

template <Index count>
HWY_INLINE void AddChannels(const float* weights, const float* values, Index padded_size, Index num_keys,
                            float* output) {
  Vector sums[kRows][count];
  HWY_UNROLL(8)
  for (Index row = 0; row < kRows; ++row)
    for (Index j = 0; j < count; ++j) sums[row][j] = hn::Zero(D());
  for (Index key = 0; key < num_keys; ++key, values += padded_size) {
    Vector value[count];
    for (Index j = 0; j < count; ++j) value[j] = hn::Load(D(), values + j * kLanes);
    HWY_UNROLL(8)
    for (Index row = 0; row < kRows; ++row) {
      const Vector weight = hn::Set(D(), weights[row * kTileKeys + key]);
      for (Index j = 0; j < count; ++j) sums[row][j] = hn::MulAdd(weight, value[j], sums[row][j]);
    }
  }
  HWY_UNROLL(8)
  for (Index row = 0; row < kRows; ++row) {
    for (Index j = 0; j < count; ++j) {
      float* to = output + row * padded_size + j * kLanes;
      hn::Store(hn::Add(hn::Load(D(), to), sums[row][j]), D(), to);
    }
  }
}

// Adds weights times the tile's packed `values` to kRows rows of `output`.
HWY_INLINE void AddTile(const float* weights, const float* values, Index padded_size, KeyRange range, float* output) {
  const Index num_keys = range.last - range.first + 1;
  weights += range.first;
  values += range.first * padded_size;
  for (Index channel = 0; channel < padded_size; channel += kVectors * kLanes) {
    const auto add = padded_size - channel < kVectors * kLanes ? AddChannels<1> : AddChannels<kVectors>;
    add(weights, values + channel, padded_size, num_keys, output + channel);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_TILE_INL_H_
