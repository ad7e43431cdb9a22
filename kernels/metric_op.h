// EllipticalMetric: value, previous_value [T, K, E], slots [B, N] -> metric [T, K, E], as its function body in
// export/bodies/ computes it.

#ifndef ATTNSERVE_KERNELS_METRIC_OP_H_
#define ATTNSERVE_KERNELS_METRIC_OP_H_

#include "metric.h"
#include "op.h"
#include "target.h"

namespace attnserve {

class MetricKernel {
 public:
  MetricKernel(const Ort::ConstKernelInfo& node, Storage storage, const Target& target);
  OrtStatusPtr ComputeV2(OrtKernelContext* context);

 private:
  const Target& target_;
  // Without what a call adds: sizes, sequences and tensors.
  Metric node_;
};

class MetricOp : public Ort::CustomOpBase<MetricOp, MetricKernel, true> {
 public:
  MetricOp(Storage storage, const Target& target) : storage_(storage), target_(target) { version = kApiVersion; }

  const char* GetName() const { return "EllipticalMetric"; }
  std::size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const { return index == 2 ? kSlotsType : TypeOf(storage_); }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return TypeOf(storage_); }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const;

 private:
  const Storage storage_;
  const Target& target_;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_METRIC_OP_H_
