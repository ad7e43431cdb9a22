#include "attention_op.h"

#include <algorithm>
#include <cmath>

#include "plan.h"

namespace attnserve {
namespace {

enum Input : std::size_t { kQuery, kKey, kValue, kSlots };

float ReadNumber(const Ort::ConstKernelInfo& node, const char* name, bool may_be_negative) {
  const float number = node.GetAttribute<float>(name);
  if (!std::isfinite(number) || (number < 0 && !may_be_negative))
    throw Mismatch(name, may_be_negative ? "a finite number" : "a finite number >= 0", std::to_string(number));
  return number;
}

template <typename T>
void ClearRows(T* output, Index row_size, const std::vector<Sequence>& sequences, Index num_rows) {
  std::vector<char> is_written(num_rows);
  for (const Sequence& sequence : sequences)
    std::fill_n(is_written.begin() + sequence.first_row, sequence.num_steps, true);
  for (Index row = 0; row < num_rows; ++row)
    if (!is_written[row]) std::fill_n(output + row * row_size, row_size, T{0});
}

}  // namespace

AttentionKernel::AttentionKernel(const Ort::ConstKernelInfo& node, const char* op, Weighting weighting, Storage storage,
                                 const Target& target)
    : op_(op), target_(target), node_{} {
  node_.weighting = weighting;
  node_.storage = storage;
  node_.causal = node.GetAttribute<std::int64_t>("causal") != 0;
  node_.window = node.GetAttribute<std::int64_t>("window");
  node_.scale = ReadNumber(node, "scale", true);
  node_.epsilon = ReadNumber(node, "epsilon", false);
  node_.softcap = ReadNumber(node, "softcap", false);
  if (node_.window < 0) throw Mismatch("window", "a number >= 0", std::to_string(node_.window));
}

OrtStatusPtr AttentionKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard(op_, [&] {
    const Ort::KernelContext context(raw);
    const Shape query = ShapeOf(context, kQuery, "query", 3), key = ShapeOf(context, kKey, "key", 3);
    const Shape value = ShapeOf(context, kValue, "value", 3), slots = ShapeOf(context, kSlots, "slots", 2);
    const Index num_rows = query[0];
    if (key[1] == 0 || query[1] % key[1] != 0)
      throw Mismatch("key", "a number of heads that divides " + std::to_string(query[1]), std::to_string(key[1]));
    if (key[0] != num_rows || key[2] != query[2])
      throw Mismatch("key", Describe({num_rows, key[1], query[2]}), Describe(key));
    if (value[0] != num_rows || value[1] != key[1])
      throw Mismatch("value", Describe({num_rows, key[1], value[2]}), Describe(value));

    Attention attention = node_;
    attention.num_heads = query[1];
    attention.num_key_heads = key[1];
    attention.head_size = query[2];
    attention.value_size = value[2];
    attention.sequences = FindSequences(context.GetInput(kSlots).GetTensorData<std::int64_t>(), slots, num_rows);
    attention.query = context.GetInput(kQuery).GetTensorRawData();
    attention.key = context.GetInput(kKey).GetTensorRawData();
    attention.value = context.GetInput(kValue).GetTensorRawData();
    auto output = context.GetOutput(0, {num_rows, query[1], value[2]});
    attention.output = output.GetTensorMutableRawData();
    if (num_rows == 0 || query[1] == 0 || value[2] == 0) return;
    const Index row_size = query[1] * value[2];
    if (attention.storage == Storage::kFloat16) {
      ClearRows(static_cast<std::uint16_t*>(attention.output), row_size, attention.sequences, num_rows);
    } else {
      ClearRows(static_cast<float*>(attention.output), row_size, attention.sequences, num_rows);
    }

    const Plan plan(attention, target_.padding);
    const Scratch scratch(context, plan.scratch_size());
    RunTasks(context, plan.num_pack_tasks(), [&](Index task) { target_.pack(attention, plan, scratch.get(), task); });
    RunTasks(context, plan.num_attend_tasks(),
             [&](Index task) { target_.attend(attention, plan, scratch.get(), task); });
  });
}

OrtStatusPtr AttentionOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] {
    *kernel = new AttentionKernel(Ort::ConstKernelInfo(info), GetName(), weighting_, storage_, target_);
  });
}

}  // namespace attnserve
