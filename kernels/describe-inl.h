// Statistics of attention weights, a few queries at a time: their weights of all keys are there at once, and no others.

#if defined(ATTNSERVE_KERNELS_DESCRIBE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_DESCRIBE_INL_H_
#undef ATTNSERVE_KERNELS_DESCRIBE_INL_H_
#else
#define ATTNSERVE_KERNELS_DESCRIBE_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "floats.h"
#include "pack-inl.h"
#include "rows.h"
#include "statistics.h"
#include "tile-inl.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

// One head. Scores, and then weights in their place, lie in tiles, each of kRows rows of kTileKeys.
class Description {
 public:
  Description(const Statistics& statistics, Index head)
      : statistics_(statistics),
        head_(head),
        queries_(RoundUp(statistics.head_size, kChunk) * kBlockQueries),
        keys_(RoundUp(statistics.num_keys, kPanelKeys) * statistics.head_size),
        scores_(RoundUp(statistics.num_keys, kTileKeys) * kRows),
        received_(RoundUp(statistics.num_keys, kLanes)),
        tokens_(RoundUp(statistics.num_keys, kLanes) + 1) {
    const Index size = statistics.head_size, num_keys = statistics.num_keys;
    const Rows<const float> keys{statistics.key + head * num_keys * size, size, num_keys, size};
    for (Index key = 0; key < RoundUp(num_keys, kPanelKeys); key += 4)
      PackFourKeys(Slice(keys, key, 4), keys_.get() + PackedKey(key, size));
    std::fill_n(received_.get(), RoundUp(num_keys, kLanes), 0.0f);
    // Before the first key and beyond the last there is none.
    std::fill(tokens_.begin(), tokens_.end(), -1);
    std::copy_n(statistics.token, num_keys, tokens_.begin() + 1);
  }

  void Describe() {
    const Index size = statistics_.head_size, num_queries = statistics_.num_queries;
    const Rows<const float> queries{statistics_.query + head_ * num_queries * size, size, num_queries, size};
    for (Index first = 0; first < num_queries; first += kBlockQueries) {
      const Rows<const float> block = Slice(queries, first, kBlockQueries);
      PackQueries(block, statistics_.scale, queries_.get());
      for (Index row = 0; row < block.count; row += kRows)
        DescribeRows(first + row, std::min(block.count - row, kRows), queries_.get() + row * kChunk);
    }
    std::copy_n(received_.get(), statistics_.num_keys, statistics_.received + head_ * statistics_.num_keys);
  }

 private:
  void DescribeRows(Index first_query, Index count, const float* packed) {
    KeyRange all{statistics_.num_keys, -1};
    for (Index query = first_query; query < first_query + count; ++query) {
      all.first = std::min(all.first, statistics_.first_key[query]);
      all.last = std::max(all.last, statistics_.last_key[query]);
    }
    for (Index tile = all.first / kTileKeys * kTileKeys; tile <= all.last; tile += kTileKeys) {
      const KeyRange range{std::max(all.first - tile, Index{0}), std::min(all.last - tile, kTileKeys - 1)};
      ScoreTile(packed, keys_.get() + tile * statistics_.head_size, statistics_.head_size, range,
                scores_.get() + tile * kRows);
    }
    for (Index row = 0; row < count; ++row) DescribeRow(first_query + row, row);
  }

  void DescribeRow(Index query, Index row) {
    const Index place = head_ * statistics_.num_queries + query;
    const KeyRange seen{statistics_.first_key[query], statistics_.last_key[query]};
    const Index step = statistics_.step[query];
    const Weights sums =
        statistics_.weighting == Weighting::kSoftmax ? WeighSoftmax(seen, row) : WeighExpressive(seen, row);
    const float total = sums.total + statistics_.epsilon;
    const float inverse = total == 0 ? 0 : 1 / total;
    // Of w = u / total: -sum w log w = log total * sum w - sum u log u / total.
    const float nats = total == 0 ? 0 : (std::log(total) * sums.total - sums.logs) * inverse;
    // Rounding may leave a little less than nothing. A NaN is kept where it comes first.
    statistics_.entropy[place] = std::max(nats * 1.44269504f, 0.0f);
    statistics_.mass[place] = sums.total * inverse;
    Receive(seen, row, query, inverse);
    const auto weight = [&](Index key) { return key < seen.first || key > seen.last ? 0.0f : *At(key, row) * inverse; };
    statistics_.sink[place] = weight(0);
    statistics_.previous[place] = weight(step - 1);
    statistics_.self[place] = weight(step);
  }

  // What weights before their division add up to.
  struct Weights {
    float total;
    float logs;  // sum of u log u
  };

  Weights WeighExpressive(KeyRange seen, Index row) {
    Vector total = hn::Zero(D()), logs = hn::Zero(D());
    ForVectors(seen, row, [&](Index, float* at, hn::Mask<D> is_seen) {
      const Vector weight = hn::IfThenElseZero(is_seen, Similarity(Capped(at)));
      hn::Store(weight, D(), at);
      total = hn::Add(total, weight);
      // The logarithm of 0 would be infinite.
      logs = hn::MulAdd(weight, hn::Log(D(), hn::Max(weight, hn::Set(D(), FLT_MIN))), logs);
    });
    return {Sum(total), Sum(logs)};
  }

  Weights WeighSoftmax(KeyRange seen, Index row) {
    Vector top = hn::Set(D(), -FLT_MAX);
    ForVectors(seen, row, [&](Index, float* at, hn::Mask<D> is_seen) {
      const Vector score = Capped(at);
      hn::Store(score, D(), at);
      top = hn::Max(top, hn::IfThenElse(is_seen, score, hn::Set(D(), -FLT_MAX)));
    });
    const Vector largest = hn::MaxOfLanes(D(), top);
    Vector total = hn::Zero(D()), logs = hn::Zero(D());
    ForVectors(seen, row, [&](Index, float* at, hn::Mask<D> is_seen) {
      // Below this the weight is 0, and 0 times its logarithm must be.
      const Vector exponent = hn::Max(hn::Set(D(), -88.0f), hn::Sub(hn::Load(D(), at), largest));
      const Vector weight = hn::IfThenElseZero(is_seen, Exponential(exponent));
      hn::Store(weight, D(), at);
      total = hn::Add(total, weight);
      logs = hn::Add(logs, hn::IfThenElseZero(is_seen, hn::Mul(weight, exponent)));
    });
    return {Sum(total), Sum(logs)};
  }

  // Adds the row's weights to what keys have received, and up where they are.
  void Receive(KeyRange seen, Index row, Index query, float inverse) {
    const hn::RebindToSigned<D> integers;
    const Index step = statistics_.step[query], place = head_ * statistics_.num_queries + query;
    const auto token = hn::Set(integers, tokens_[step + 1]);
    const Vector factor = hn::Set(D(), inverse);
    Vector distance = hn::Zero(D()), duplicate = hn::Zero(D()), induction = hn::Zero(D());
    ForVectors(seen, row, [&](Index key, const float* at, hn::Mask<D>) {
      const Vector weight = hn::Mul(hn::Load(D(), at), factor);
      float* received = received_.get() + key;
      hn::Store(hn::Add(hn::Load(D(), received), weight), D(), received);
      const Vector away = hn::Iota(D(), static_cast<float>(key - step));
      distance = hn::MulAdd(weight, hn::Abs(away), distance);
      const auto add = [&](Vector& sum, const std::int32_t* tokens, hn::Mask<D> is_near) {
        const auto is_same = hn::RebindMask(D(), hn::Eq(hn::LoadU(integers, tokens), token));
        sum = hn::Add(sum, hn::IfThenElseZero(hn::And(is_near, is_same), weight));
      };
      add(duplicate, &tokens_[key + 1], hn::Lt(away, hn::Zero(D())));
      add(induction, &tokens_[key], hn::Le(away, hn::Zero(D())));
    });
    statistics_.distance[place] = Sum(distance);
    statistics_.duplicate[place] = Sum(duplicate);
    statistics_.induction[place] = Sum(induction);
  }

  template <typename Function>
  HWY_INLINE void ForVectors(KeyRange seen, Index row, const Function& function) {
    for (Index key = seen.first / kLanes * kLanes; key <= seen.last; key += kLanes)
      function(key, At(key, row), SeenKeys(key, seen));
  }

  HWY_INLINE Vector Capped(const float* at) const {
    const Vector score = hn::Load(D(), at);
    if (statistics_.softcap == 0) return score;
    const Vector cap = hn::Set(D(), statistics_.softcap);
    return hn::Mul(cap, hn::Tanh(D(), hn::Div(score, cap)));
  }

  float* At(Index key, Index row) const {
    return scores_.get() + key / kTileKeys * kTileKeys * kRows + row * kTileKeys + key % kTileKeys;
  }

  static float Sum(Vector numbers) { return hn::GetLane(hn::SumOfLanes(D(), numbers)); }

  const Statistics& statistics_;
  const Index head_;
  const Floats queries_;
  const Floats keys_;
  const Floats scores_;
  const Floats received_;
  // One before: that of each key, and at the same place that of the key before it.
  std::vector<std::int32_t> tokens_;
};

void RunDescribe(const Statistics& statistics, Index head) { Description(statistics, head).Describe(); }

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_DESCRIBE_INL_H_
