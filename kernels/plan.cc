#include "plan.h"

#include <algorithm>

namespace attnserve {
namespace {

bool IsShort(const Sequence& sequence) { return sequence.num_steps <= kTileKeys; }

// The sequence that a task belongs to.
Index FindSequence(const std::vector<Index>& first_task, Index task) {
  return std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
}

}  // namespace

Plan::Plan(const Attention& attention, Padding padding) : attention_(attention), padding_(padding) {
  Index pack = 0, attend = 0, floats = 0;
  for (std::vector<Index>* first : {&first_pack_task_, &first_attend_task_, &first_float_}) {
    first->reserve(attention.sequences.size() + 1);
    first->push_back(0);
  }
  for (const Sequence& sequence : attention.sequences) {
    if (IsShort(sequence)) {
      attend += attention.num_key_heads;
    } else {
      pack += DivideUp(sequence.num_steps, kTileKeys);
      attend += attention.num_heads * DivideUp(sequence.num_steps, kBlockQueries);
      floats += attention.num_key_heads * (KeysSize(sequence.num_steps) + ValuesSize(sequence.num_steps));
    }
    first_pack_task_.push_back(pack);
    first_attend_task_.push_back(attend);
    first_float_.push_back(floats);
  }
}

PackTask Plan::GetPackTask(Index task) const {
  const Index sequence = FindSequence(first_pack_task_, task);
  return {sequence, (task - first_pack_task_[sequence]) * kTileKeys};
}

AttendTask Plan::GetAttendTask(Index task) const {
  const Index sequence = FindSequence(first_attend_task_, task);
  const Index within = task - first_attend_task_[sequence];
  if (IsShort(attention_.sequences[sequence])) return {sequence, within, true, 0, 0};
  const Index group = attention_.num_heads / attention_.num_key_heads;
  const Index num_blocks = DivideUp(attention_.sequences[sequence].num_steps, kBlockQueries);
  const Index key_head = within / (num_blocks * group);
  // The last queries first: in a causal model they see the most, and the longest task should not begin last.
  const Index block = num_blocks - 1 - within / group % num_blocks;
  return {sequence, key_head, false, key_head * group + within % group, block * kBlockQueries};
}

Index Plan::KeysOffset(Index sequence, Index key_head) const {
  const Index num_steps = attention_.sequences[sequence].num_steps;
  return first_float_[sequence] + key_head * (KeysSize(num_steps) + ValuesSize(num_steps));
}

Index Plan::ValuesOffset(Index sequence, Index key_head) const {
  return KeysOffset(sequence, key_head) + KeysSize(attention_.sequences[sequence].num_steps);
}

}  // namespace attnserve
