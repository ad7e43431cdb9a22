#include "metric_op.h"

namespace attnserve {
namespace {

enum Input : std::size_t { kValue, kPreviousValue, kSlots };

}  // namespace

MetricKernel::MetricKernel(const Ort::ConstKernelInfo& node, Storage storage, const Target& target)
    : target_(target), node_{} {
  node_.storage = storage;
  node_.is_prefix = node.GetAttribute<std::int64_t>("prefix") != 0;
  node_.is_mean = node.GetAttribute<std::int64_t>("mean") != 0;
}

OrtStatusPtr MetricKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard("EllipticalMetric", [&] {
    const Ort::KernelContext context(raw);
    const Shape value = ShapeOf(context, kValue, "value", 3);
    const Shape previous = ShapeOf(context, kPreviousValue, "previous_value", 3);
    if (previous != value) throw Mismatch("previous_value", Describe(value), Describe(previous));

    Metric metric = node_;
    metric.num_heads = value[1];
    metric.head_size = value[2];
    metric.sequences = ReadSequences(context, kSlots, value[0]);
    metric.value = context.GetInput(kValue).GetTensorRawData();
    metric.previous_value = context.GetInput(kPreviousValue).GetTensorRawData();
    metric.output = MakeOutput(context, value, metric.storage, metric.sequences);
    if (value[2] == 0) return;
    RunTasks(context, metric.num_tasks(), [&](Index task) { target_.measure(metric, task); });
  });
}

OrtStatusPtr MetricOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] { *kernel = new MetricKernel(Ort::ConstKernelInfo(info), storage_, target_); });
}

}  // namespace attnserve
