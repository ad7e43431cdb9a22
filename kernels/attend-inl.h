// Attention, block of queries by block of queries.

#if defined(ATTNSERVE_KERNELS_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_ATTEND_INL_H_
#undef ATTNSERVE_KERNELS_ATTEND_INL_H_
#else
#define ATTNSERVE_KERNELS_ATTEND_INL_H_
#endif

#include <algorithm>
#include <cfloat>

#include "floats.h"
#include "pack-inl.h"
#include "plan.h"
#include "rows.h"
#include "tile-inl.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

// What a task computes in.
class Workspace {
 public:
  Workspace(const Attention& attention, Index packed_size)
      : queries_size_(RoundUp(attention.head_size, kChunk) * kBlockQueries),
        output_size_(kBlockQueries * RoundUp(attention.value_size, kLanes)),
        memory_(queries_size_ + kScoresSize + output_size_ + packed_size) {}

  float* queries() const { return memory_.get(); }
  float* scores() const { return queries() + queries_size_; }
  float* output() const { return scores() + kScoresSize; }
  float* packed() const { return output() + output_size_; }

  RowState rows[kBlockQueries];

 private:
  static constexpr Index kScoresSize = kRows * kTileKeys;
  const Index queries_size_;
  const Index output_size_;
  const Floats memory_;
};

// Up to kBlockQueries queries of one head, attending to the packed keys and values of their sequence.
template <typename T>
class Block {
 public:
  Block(const Attention& attention, const Sequence& sequence, Index head, Index first_query, Workspace& work)
      : attention_(attention),
        sequence_(sequence),
        first_query_(first_query),
        padded_size_(RoundUp(attention.value_size, kLanes)),
        work_(work),
        queries_(Slice(
            RowsOf(static_cast<const T*>(attention.query), attention.num_heads, head, attention.head_size, sequence),
            first_query, kBlockQueries)),
        output_(
            Slice(RowsOf(static_cast<T*>(attention.output), attention.num_heads, head, attention.value_size, sequence),
                  first_query, kBlockQueries)) {}

  void Attend(const float* keys, const float* values) {
    Begin();
    const KeyRange all = SeenBy(0, queries_.count);
    for (Index first = all.first / kTileKeys * kTileKeys; first <= all.last; first += kTileKeys)
      for (Index row = 0; row < queries_.count; row += kRows)
        AttendTile(row, first, keys + first * attention_.head_size, values + first * padded_size_);
    WriteOutput();
  }

 private:
  // Keys that queries from `row` on see, `count` of them or as many as there are.
  KeyRange SeenBy(Index row, Index count) const {
    const Index last_row = std::min(row + count, queries_.count) - 1;
    return {attention_.SeenKeys(sequence_, first_query_ + row).first,
            attention_.SeenKeys(sequence_, first_query_ + last_row).last};
  }

  void Begin() {
    PackQueries(queries_, attention_.scale, work_.queries());
    std::fill_n(work_.output(), RoundUp(queries_.count, kRows) * padded_size_, 0.0f);
    std::fill_n(work_.rows, queries_.count, RowState{-FLT_MAX, {}});
  }

  void AttendTile(Index row, Index first_key, const float* keys, const float* values) {
    KeyRange range = SeenBy(row, kRows);
    range = {std::max(range.first - first_key, Index{0}), std::min(range.last - first_key, kTileKeys - 1)};
    if (range.first > range.last) return;
    ScoreTile(work_.queries() + row * kChunk, keys, attention_.head_size, range, work_.scores());
    for (Index other = row; other < std::min(row + kRows, queries_.count); ++other)
      WeighRow(other, first_key, range, work_.scores() + (other - row) * kTileKeys);
    AddTile(work_.scores(), values, padded_size_, range, work_.output() + row * padded_size_);
  }

  void WeighRow(Index row, Index first_key, KeyRange range, float* scores) {
    KeyRange seen = attention_.SeenKeys(sequence_, first_query_ + row);
    seen = {seen.first - first_key, seen.last - first_key};
    range.first = range.first / kLanes * kLanes;
    const bool all_seen = seen.first <= range.first && seen.last >= range.last && (range.last + 1) % kLanes == 0;
    RowState& state = work_.rows[row];
    if (attention_.softcap > 0) CapScores(attention_.softcap, range, scores);
    if (attention_.weighting == Weighting::kSoftmax) {
      const auto weigh = all_seen ? WeighSoftmax<true> : WeighSoftmax<false>;
      weigh(range, seen, scores, state, work_.output() + row * padded_size_, padded_size_);
    } else {
      const auto weigh = all_seen ? WeighExpressive<true> : WeighExpressive<false>;
      weigh(range, seen, scores, state);
    }
  }

  // Divides by the sums of the weights.
  void WriteOutput() {
    for (Index row = 0; row < queries_.count; ++row) {
      float total = hn::GetLane(hn::SumOfLanes(D(), hn::Load(D(), work_.rows[row].total)));
      if (attention_.weighting == Weighting::kExpressive) total += attention_.epsilon;
      // Where every weight is 0, so is the output.
      if (total == 0) total = 1;
      const float* sums = work_.output() + row * padded_size_;
      Index channel = 0;
      for (; channel + kLanes <= output_.size; channel += kLanes)
        StoreFloats(hn::Div(hn::Load(D(), sums + channel), hn::Set(D(), total)), output_[row] + channel);
      for (; channel < output_.size; ++channel) FromFloat(sums[channel] / total, output_[row] + channel);
    }
  }

  const Attention& attention_;
  const Sequence& sequence_;
  const Index first_query_;
  const Index padded_size_;
  Workspace& work_;
  const Rows<const T> queries_;
  const Rows<T> output_;
};

// Packs up to kTileKeys keys, and their values, of `num_heads` key heads, each of which is packed to its own place.
template <typename T, typename KeysOf, typename ValuesOf>
void PackTile(const Attention& attention, const Sequence& sequence, Index first_head, Index num_heads, Index first_key,
              const KeysOf& keys_of, const ValuesOf& values_of) {
  const Index all_heads = attention.num_key_heads;
  const auto keys = [&](Index head) {
    return RowsOf(static_cast<const T*>(attention.key), all_heads, head, attention.head_size, sequence);
  };
  const auto values = [&](Index head) {
    return RowsOf(static_cast<const T*>(attention.value), all_heads, head, attention.value_size, sequence);
  };
  const Index end = std::min(first_key + kTileKeys, sequence.num_steps);
  // Heads lie side by side in a row, so rows are gone through once.
  for (Index key = first_key; key < RoundUp(end, kPanelKeys); key += 4)
    for (Index head = first_head; head < first_head + num_heads; ++head)
      PackFourKeys(Slice(keys(head), key, 4), keys_of(head) + PackedKey(key, attention.head_size));
  for (Index key = first_key; key < end; ++key)
    for (Index head = first_head; head < first_head + num_heads; ++head)
      PackValue(values(head)[key], attention.value_size, values_of(head) + key * RoundUp(attention.value_size, kLanes));
}

template <typename T>
void RunPackTask(const Attention& attention, const Plan& plan, float* scratch, Index index) {
  const PackTask task = plan.GetPackTask(index);
  PackTile<T>(
      attention, attention.sequences[task.sequence], 0, attention.num_key_heads, task.first_key,
      [&](Index head) { return scratch + plan.KeysOffset(task.sequence, head); },
      [&](Index head) { return scratch + plan.ValuesOffset(task.sequence, head); });
}

template <typename T>
void RunAttendTask(const Attention& attention, const Plan& plan, const float* scratch, Index index) {
  const AttendTask task = plan.GetAttendTask(index);
  const Sequence& sequence = attention.sequences[task.sequence];
  if (!task.is_short) {
    Workspace work(attention, 0);
    Block<T>(attention, sequence, task.head, task.first_query, work)
        .Attend(scratch + plan.KeysOffset(task.sequence, task.key_head),
                scratch + plan.ValuesOffset(task.sequence, task.key_head));
    return;
  }
  const Index num_steps = sequence.num_steps;
  Workspace work(attention, plan.KeysSize(num_steps) + plan.ValuesSize(num_steps));
  float* keys = work.packed();
  float* values = keys + plan.KeysSize(num_steps);
  for (Index first_key = 0; first_key < num_steps; first_key += kTileKeys)
    PackTile<T>(
        attention, sequence, task.key_head, 1, first_key, [&](Index) { return keys; }, [&](Index) { return values; });
  const Index group = attention.num_heads / attention.num_key_heads;
  for (Index head = task.key_head * group; head < (task.key_head + 1) * group; ++head)
    for (Index query = 0; query < num_steps; query += kBlockQueries)
      Block<T>(attention, sequence, head, query, work).Attend(keys, values);
}

void RunPack(const Attention& attention, const Plan& plan, float* scratch, Index task) {
  const bool is_half = attention.storage == Storage::kFloat16;
  (is_half ? RunPackTask<hwy::float16_t> : RunPackTask<float>)(attention, plan, scratch, task);
}

void RunAttend(const Attention& attention, const Plan& plan, const float* scratch, Index task) {
  const bool is_half = attention.storage == Storage::kFloat16;
  (is_half ? RunAttendTask<hwy::float16_t> : RunAttendTask<float>)(attention, plan, scratch, task);
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_ATTEND_INL_H_
