// AttentionStatistics: what the service says of attention, without a single row of weights that outlives its eight.
//
//   query [H, Q, E], key [H, N, E]                  of one sequence, key heads repeated, metric and rotation folded in
//   token [N]                                       ids of the steps, or any numbers that tell which are alike
//   step [Q], first_key [Q], last_key [Q]           where each query stands and what it sees
//   scale, softcap, epsilon []
//   -> mass, entropy, distance, sink, previous, self, duplicate, induction [H, Q], received [H, N]
//
// and one attribute, `weighting`: "expressive" or "softmax".

#ifndef ATTNSERVE_KERNELS_STATISTICS_OP_H_
#define ATTNSERVE_KERNELS_STATISTICS_OP_H_

#include "op.h"
#include "statistics.h"
#include "target.h"

namespace attnserve {

class StatisticsKernel {
 public:
  StatisticsKernel(const Ort::ConstKernelInfo& node, const Target& target);
  OrtStatusPtr ComputeV2(OrtKernelContext* context);

 private:
  const Target& target_;
  Weighting weighting_;
};

class StatisticsOp : public Ort::CustomOpBase<StatisticsOp, StatisticsKernel, true> {
 public:
  explicit StatisticsOp(const Target& target) : target_(target) { version = kApiVersion; }

  const char* GetName() const { return "AttentionStatistics"; }
  std::size_t GetInputTypeCount() const { return 9; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    return index >= 2 && index <= 5 ? kSlotsType : TypeOf(Storage::kFloat32);
  }
  std::size_t GetOutputTypeCount() const { return 9; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return TypeOf(Storage::kFloat32); }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const;

 private:
  const Target& target_;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_STATISTICS_OP_H_
