#include "attention_op.h"

#include "attention_node.h"
#include "plan.h"

namespace attnserve {

AttentionKernel::AttentionKernel(const Ort::ConstKernelInfo& node, Weighting weighting, Storage storage,
                                 const Target& target)
    : target_(target), node_(ReadAttributes(node, weighting, storage)) {}

OrtStatusPtr AttentionKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard(NameOf(node_.weighting), [&] {
    const Ort::KernelContext context(raw);
    Attention attention = node_;
    const Index num_rows = ReadTensors(context, attention);
    attention.sequences = ReadSequences(context, kSlots, num_rows);
    attention.output = MakeOutput(context, {num_rows, attention.num_heads, attention.value_size}, attention.storage,
                                  attention.sequences);

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
  return Guard(GetName(),
               [&] { *kernel = new AttentionKernel(Ort::ConstKernelInfo(info), weighting_, storage_, target_); });
}

}  // namespace attnserve
