#include "plan.h"

#include <algorithm>

namespace attnserve {
namespace {

bool IsShort(const Sequence& sequence) { return sequence.num_steps <= kShortSteps; }

// Which of the plan's sequences a task belongs to.
Index FindSequence(const std::vector<Index>& first_task, Index task) {
  return std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
}

}  // namespace

Plan::Plan(const Attention& attention, Padding padding, Index first_sequence)
    : attention_(attention), padding_(padding), first_sequence_(first_sequence) {
  Index pack = 0, attend = 0, floats = 0;
  first_pack_task_.push_back(pack);
  first_attend_task_.push_back(attend);
  first_float_.push_back(floats);
  for (Index index = first_sequence; index < static_cast<Index>(attention.sequences.size()); ++index) {
    const Sequence& sequence = attention.sequences[index];
    if (IsShort(sequence)) {
      attend += attention.num_key_heads;
    } else {
      const Index size = attention.num_key_heads * (KeysSize(sequence.num_steps) + ValuesSize(sequence.num_steps));
      if (floats > 0 && floats + size > kMostPacked) break;
      pack += DivideUp(sequence.num_steps, kTileKeys);
      attend += attention.num_heads * DivideUp(sequence.num_steps, kBlockQueries);
      floats += size;
    }
    first_pack_task_.push_back(pack);
    first_attend_task_.push_back(attend);
    first_float_.push_back(floats);
  }
}

PackTask Plan::GetPackTask(Index task) const {
  const Index place = FindSequence(first_pack_task_, task);
  return {first_sequence_ + place, (task - first_pack_task_[place]) * kTileKeys};
}

AttendTask Plan::GetAttendTask(Index task) const {
  const Index place = FindSequence(first_attend_task_, task);
  const Index sequence = first_sequence_ + place;
  const Index within = task - first_attend_task_[place];
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
  return first_float_[sequence - first_sequence_] + key_head * (KeysSize(num_steps) + ValuesSize(num_steps));
}

Index Plan::ValuesOffset(Index sequence, Index key_head) const {
  return KeysOffset(sequence, key_head) + KeysSize(attention_.sequences[sequence].num_steps);
}

}  // namespace attnserve
