// The library's one entry: adds the ops of domain `attnserve` to a session.

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "attention_op.h"
#include "metric_op.h"
#include "op.h"
#include "statistics_op.h"
#include "target.h"

namespace attnserve {
namespace {

constexpr char kTargetOption[] = "attnserve.target";

// The ops of one instruction set.
class Ops {
 public:
  explicit Ops(const Target& target) : domain_("attnserve") {
    for (const Weighting weighting : {Weighting::kExpressive, Weighting::kSoftmax})
      for (const Storage storage : {Storage::kFloat32, Storage::kFloat16})
        domain_.Add(&attention_.emplace_back(weighting, storage, target));
    for (const Storage storage : {Storage::kFloat32, Storage::kFloat16})
      domain_.Add(&metric_.emplace_back(storage, target));
    domain_.Add(&statistics_.emplace_back(target));
  }

  OrtCustomOpDomain* domain() const { return domain_; }

 private:
  // Sessions keep pointers to ops: they must not move.
  std::deque<AttentionOp> attention_;
  std::deque<MetricOp> metric_;
  std::deque<StatisticsOp> statistics_;
  Ort::CustomOpDomain domain_;
};

const Target& ChooseTarget(const std::string& name) {
  // Never destroyed, nor are the ops: sessions keep pointers to them, and may outlive static variables.
  static const auto& targets = *new std::vector<Target>(FindTargets());
  std::string names;
  for (const Target& target : targets) {
    if (name.empty() || name == target.name) return target;
    names += (names.empty() ? "" : ", ") + std::string(target.name);
  }
  throw Mismatch(kTargetOption, "one of " + names, name);
}

void Register(OrtSessionOptions* options) {
  Ort::UnownedSessionOptions session(options);
  const Target& target = ChooseTarget(session.GetConfigEntryOrDefault(kTargetOption, ""));
  static std::mutex mutex;
  static auto& made = *new std::map<const Target*, Ops>();
  const std::lock_guard<std::mutex> lock(mutex);
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(session, made.try_emplace(&target, target).first->second.domain()));
}

}  // namespace
}  // namespace attnserve

// The one symbol that is seen from outside; what ONNX Runtime looks for.
#define ATTNSERVE_EXPORT __attribute__((visibility("default")))

extern "C" ATTNSERVE_EXPORT OrtStatusPtr RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(attnserve::kApiVersion);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "attnserve's kernels need a newer ONNX Runtime");
  Ort::InitApi(api);
  return attnserve::Guard("attnserve", [&] { attnserve::Register(options); });
}
