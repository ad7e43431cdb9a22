// The library's one entry: adds the ops of domain `attnserve` to a session with ONNX Runtime's CUDA provider.

#include <deque>

#include "ops.h"

namespace attnserve::cuda {
namespace {

class Ops {
 public:
  Ops() : domain_("attnserve") {
    for (const Storage storage : {Storage::kFloat32, Storage::kFloat16, Storage::kBFloat16}) {
      for (const Weighting weighting : {Weighting::kExpressive, Weighting::kSoftmax})
        domain_.Add(&attention_.emplace_back(weighting, storage));
      domain_.Add(&metric_.emplace_back(storage));
    }
  }

  OrtCustomOpDomain* domain() const { return domain_; }

 private:
  // Sessions keep pointers to ops: they must not move.
  std::deque<AttentionOp> attention_;
  std::deque<MetricOp> metric_;
  Ort::CustomOpDomain domain_;
};

void Register(OrtSessionOptions* options) {
  // Never destroyed: sessions may outlive static variables.
  static const auto& ops = *new Ops();
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, ops.domain()));
}

}  // namespace
}  // namespace attnserve::cuda

#define ATTNSERVE_EXPORT __attribute__((visibility("default")))

extern "C" ATTNSERVE_EXPORT OrtStatusPtr RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(attnserve::kApiVersion);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "attnserve's kernels need a newer ONNX Runtime");
  Ort::InitApi(api);
  return attnserve::Guard("attnserve", [&] { attnserve::cuda::Register(options); });
}
