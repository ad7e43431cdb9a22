#include "attention_op.h"

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
    const Shape query = ShapeOf(context, kQuery, "query", 3);
    const Shape key = ShapeOf(context, kKey, "key", 3);
    const Shape value = ShapeOf(context, kValue, "value", 3);
    const Index num_rows = query[0], num_heads = query[1], num_key_heads = key[1];
    if (num_key_heads == 0 || num_heads % num_key_heads != 0)
      throw Mismatch("key", "a number of heads that divides " + std::to_string(num_heads),
                     std::to_string(num_key_heads));
    const Shape expected_key = {num_rows, num_key_heads, query[2]};
    if (key != expected_key) throw Mismatch("key", Describe(expected_key), Describe(key));
    const Shape expected_value = {num_rows, num_key_heads, value[2]};
    if (value != expected_value) throw Mismatch("value", Describe(expected_value), Describe(value));

    Attention attention = node_;
    attention.num_heads = num_heads;
    attention.num_key_heads = num_key_heads;
    attention.head_size = query[2];
    attention.value_size = value[2];
    attention.sequences = ReadSequences(context, kSlots, num_rows);
    attention.query = context.GetInput(kQuery).GetTensorRawData();
    attention.key = context.GetInput(kKey).GetTensorRawData();
    attention.value = context.GetInput(kValue).GetTensorRawData();
    attention.output = MakeOutput(context, {num_rows, num_heads, value[2]}, attention.storage, attention.sequences);

    for (Index first = 0; first < static_cast<Index>(attention.sequences.size());) {
      const Plan plan(attention, target_.padding, first);
      const Scratch scratch(context, plan.scratch_size());
      RunTasks(context, plan.num_pack_tasks(), [&](Index task) { target_.pack(attention, plan, scratch.get(), task); });
      RunTasks(context, plan.num_attend_tasks(),
               [&](Index task) { target_.attend(attention, plan, scratch.get(), task); });
      first = plan.end_sequence();
    }
  });
}

OrtStatusPtr AttentionOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] {
    *kernel = new AttentionKernel(Ort::ConstKernelInfo(info), GetName(), weighting_, storage_, target_);
  });
}

}  // namespace attnserve
