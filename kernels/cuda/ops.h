// The ops of domain `attnserve` on ONNX Runtime's CUDA provider; what they compute is said by their function bodies,
// export/bodies/.

#ifndef ATTNSERVE_KERNELS_CUDA_OPS_H_
#define ATTNSERVE_KERNELS_CUDA_OPS_H_

#include "../attention_node.h"
#include "../op.h"

namespace attnserve::cuda {

constexpr char kProvider[] = "CUDAExecutionProvider";

class AttentionKernel {
 public:
  AttentionKernel(const Ort::ConstKernelInfo& node, Weighting weighting, Storage storage)
      : node_(ReadAttributes(node, weighting, storage)) {}
  OrtStatusPtr ComputeV2(OrtKernelContext* context);

 private:
  const Attention node_;
};

class AttentionOp : public Ort::CustomOpBase<AttentionOp, AttentionKernel, true> {
 public:
  AttentionOp(Weighting weighting, Storage storage) : weighting_(weighting), storage_(storage) {
    version = kApiVersion;
  }

  const char* GetName() const { return NameOf(weighting_); }
  const char* GetExecutionProviderType() const { return kProvider; }
  std::size_t GetInputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    return index == kSlots ? kSlotsType : TypeOf(storage_);
  }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return TypeOf(storage_); }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const;

 private:
  const Weighting weighting_;
  const Storage storage_;
};

class MetricKernel {
 public:
  MetricKernel(const Ort::ConstKernelInfo& node, Storage storage);
  OrtStatusPtr ComputeV2(OrtKernelContext* context);

 private:
  const Storage storage_;
  bool is_prefix_;
  bool is_mean_;
};

class MetricOp : public Ort::CustomOpBase<MetricOp, MetricKernel, true> {
 public:
  explicit MetricOp(Storage storage) : storage_(storage) { version = kApiVersion; }

  const char* GetName() const { return "EllipticalMetric"; }
  const char* GetExecutionProviderType() const { return kProvider; }
  std::size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const { return index == 2 ? kSlotsType : TypeOf(storage_); }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return TypeOf(storage_); }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const;

 private:
  const Storage storage_;
};

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_OPS_H_
