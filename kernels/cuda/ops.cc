#include "ops.h"

#include <string>

#include "launch.h"

namespace attnserve::cuda {
namespace {

void Check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void CheckMost(const char* name, const char* what, Index number, Index most) {
  if (number > most) throw Mismatch(name, "at most " + std::to_string(most) + " " + what, std::to_string(number));
}

// The rows themselves stay on the device.
Slots ReadSlots(const Ort::KernelContext& context, std::size_t input, Index num_rows) {
  const Shape shape = ShapeOf(context, input, "slots", 2);
  CheckMost("slots", "sequences", shape[0], kMostBlocks);
  CheckMost("slots", "steps", shape[1], std::numeric_limits<int>::max() - 1024);
  return {context.GetInput(input).GetTensorData<std::int64_t>(), static_cast<int>(shape[0]), static_cast<int>(shape[1]),
          num_rows};
}

cudaStream_t StreamOf(const Ort::KernelContext& context) {
  return static_cast<cudaStream_t>(context.GetGPUComputeStream());
}

// The op's output, of zeros: rows of no sequence stay so.
void* MakeZeros(const Ort::KernelContext& context, const Shape& shape, Storage storage) {
  void* output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const Index num_bytes = shape[0] * shape[1] * shape[2] * SizeOf(storage);
  if (num_bytes > 0) Check(cudaMemsetAsync(output, 0, num_bytes, StreamOf(context)));
  return output;
}

}  // namespace

OrtStatusPtr AttentionKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard(NameOf(node_.weighting), [&] {
    const Ort::KernelContext context(raw);
    Attention attention = node_;
    const Index num_rows = ReadTensors(context, attention);
    CheckMost("query", "channels", attention.head_size, kMostHeadSize);
    CheckMost("value", "channels", attention.value_size, kMostHeadSize);
    CheckMost("query", "heads", attention.num_heads, kMostBlocks);
    const Slots slots = ReadSlots(context, kSlots, num_rows);
    void* output = MakeZeros(context, {num_rows, attention.num_heads, attention.value_size}, attention.storage);
    if (slots.num_sequences == 0 || slots.num_steps == 0 || attention.num_heads == 0) return;

    AttentionCall call{};
    call.causal = attention.causal;
    call.scale = attention.scale;
    call.epsilon = attention.epsilon;
    call.softcap = attention.softcap;
    call.window = attention.window;
    call.num_heads = static_cast<int>(attention.num_heads);
    call.num_key_heads = static_cast<int>(attention.num_key_heads);
    call.head_size = static_cast<int>(attention.head_size);
    call.value_size = static_cast<int>(attention.value_size);
    call.slots = slots;
    call.query = attention.query;
    call.key = attention.key;
    call.value = attention.value;
    call.output = output;
    Check(LaunchAttention(call, attention.weighting, attention.storage, StreamOf(context)));
  });
}

OrtStatusPtr AttentionOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] { *kernel = new AttentionKernel(Ort::ConstKernelInfo(info), weighting_, storage_); });
}

MetricKernel::MetricKernel(const Ort::ConstKernelInfo& node, Storage storage)
    : storage_(storage),
      is_prefix_(node.GetAttribute<std::int64_t>("prefix") != 0),
      is_mean_(node.GetAttribute<std::int64_t>("mean") != 0) {}

OrtStatusPtr MetricKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard("EllipticalMetric", [&] {
    const Ort::KernelContext context(raw);
    const Shape value = ShapeOf(context, 0, "value", 3), previous = ShapeOf(context, 1, "previous_value", 3);
    if (previous != value) throw Mismatch("previous_value", Describe(value), Describe(previous));
    CheckMost("value", "channels", value[2], kMostMetricSize);
    const Slots slots = ReadSlots(context, 2, value[0]);
    void* output = MakeZeros(context, value, storage_);
    if (slots.num_sequences == 0 || value[1] == 0 || value[2] == 0) return;

    MetricCall call{};
    call.is_prefix = is_prefix_;
    call.is_mean = is_mean_;
    call.num_heads = static_cast<int>(value[1]);
    call.head_size = static_cast<int>(value[2]);
    call.slots = slots;
    call.value = context.GetInput(0).GetTensorRawData();
    call.previous_value = context.GetInput(1).GetTensorRawData();
    call.output = output;
    Check(LaunchMetric(call, storage_, StreamOf(context)));
  });
}

OrtStatusPtr MetricOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] { *kernel = new MetricKernel(Ort::ConstKernelInfo(info), storage_); });
}

}  // namespace attnserve::cuda
