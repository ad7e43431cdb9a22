// How one call of an attention op is cut into tasks.
//
// A task is the same, and sums in the same order, whoever else is in the batch and however many threads there are: a
// sequence's answer is its own to the last bit. Short sequences are one task per key head. Longer ones are packed
// first, a task per tile of keys, and then attended to, a task per head and block of queries.

#ifndef ATTNSERVE_KERNELS_PLAN_H_
#define ATTNSERVE_KERNELS_PLAN_H_

#include <vector>

#include "attention.h"

namespace attnserve {

// Keys that are weighed at a time: with their values they fit the first-level cache.
constexpr Index kTileKeys = 128;
// Queries that share a tile while it is there.
constexpr Index kBlockQueries = 64;

// What an instruction set pads packed keys and values to.
struct Padding {
  Index keys;
  Index channels;
};

// Of all key heads: what lies together is read together.
struct PackTask {
  Index sequence;
  Index first_key;
};

struct AttendTask {
  Index sequence;
  Index key_head;
  // Of a short sequence: every head that reads `key_head`, and every query.
  bool is_short;
  Index head;
  Index first_query;
};

// Longest sequence whose keys and values one task packs for itself: they stay in the second-level cache.
constexpr Index kShortSteps = 256;
// Packed keys and values that are in memory at once, in floats, where one sequence does not need more: what has just
// been packed is in a cache still when it is attended to.
constexpr Index kMostPacked = 1 << 18;

// Of the sequences from `first_sequence` to before `end_sequence()`.
class Plan {
 public:
  Plan(const Attention& attention, Padding padding, Index first_sequence);

  Index end_sequence() const { return first_sequence_ + static_cast<Index>(first_float_.size()) - 1; }

  Index num_pack_tasks() const { return first_pack_task_.back(); }
  Index num_attend_tasks() const { return first_attend_task_.back(); }
  PackTask GetPackTask(Index task) const;
  AttendTask GetAttendTask(Index task) const;

  // Floats of memory for the packed keys and values of long sequences.
  Index scratch_size() const { return first_float_.back(); }
  // Where in it the keys, and the values, of a key head begin.
  Index KeysOffset(Index sequence, Index key_head) const;
  Index ValuesOffset(Index sequence, Index key_head) const;

  // Floats that packed keys, and values, of one key head take.
  Index KeysSize(Index num_keys) const { return RoundUp(num_keys, padding_.keys) * attention_.head_size; }
  Index ValuesSize(Index num_keys) const { return num_keys * RoundUp(attention_.value_size, padding_.channels); }

 private:
  const Attention& attention_;
  const Padding padding_;
  const Index first_sequence_;
  // By sequence from the first one on, and one more: the end.
  std::vector<Index> first_pack_task_;
  std::vector<Index> first_attend_task_;
  std::vector<Index> first_float_;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_PLAN_H_
