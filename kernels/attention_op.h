// ExpressiveAttention and DotProductAttention: query [T, H, E], key [T, K, E], value [T, K, V], slots [B, N] ->
// output [T, H, V]. What they compute is said by their function bodies, export/bodies/.

#ifndef ATTNSERVE_KERNELS_ATTENTION_OP_H_
#define ATTNSERVE_KERNELS_ATTENTION_OP_H_

#include "attention.h"
#include "attention_node.h"
#include "op.h"
#include "target.h"

namespace attnserve {

class AttentionKernel {
 public:
  AttentionKernel(const Ort::ConstKernelInfo& node, Weighting weighting, Storage storage, const Target& target);
  OrtStatusPtr ComputeV2(OrtKernelContext* context);

 private:
  const Target& target_;
  // Without what a call adds: sizes, sequences and tensors.
  const Attention node_;
};

class AttentionOp : public Ort::CustomOpBase<AttentionOp, AttentionKernel, true> {
 public:
  AttentionOp(Weighting weighting, Storage storage, const Target& target)
      : weighting_(weighting), storage_(storage), target_(target) {
    version = kApiVersion;
  }

  const char* GetName() const { return NameOf(weighting_); }
  std::size_t GetInputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const { return index == 3 ? kSlotsType : TypeOf(storage_); }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return TypeOf(storage_); }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const;

 private:
  const Weighting weighting_;
  const Storage storage_;
  const Target& target_;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_ATTENTION_OP_H_
