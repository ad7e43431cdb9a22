// An op library whose one kernel nobody could mistake for attention: it answers 0.125, whatever it is given.
//
// From outside a library of real kernels looks the same: it exports RegisterCustomOps, adds ops to domain `attnserve`,
// and asks the ONNX Runtime that loads it for the API of the headers it was built with. A runtime goes on offering the
// APIs of all earlier releases, so the headers may be older than the runtime.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

// Without it a static initialiser asks for the API before anyone has said where it is.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

namespace {

constexpr float kAnswer = 0.125f;
constexpr std::size_t kSlots = 3;

struct Kernel {
  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    try {
      // query [T, H, E], key [T, K, E], value [T, K, V], slots [B, N] -> output [T, H, V]
      const Ort::KernelContext context(raw);
      auto shape = context.GetInput(0).GetTensorTypeAndShapeInfo().GetShape();
      shape[2] = context.GetInput(2).GetTensorTypeAndShapeInfo().GetShape()[2];
      auto output = context.GetOutput(0, shape);
      std::fill_n(output.GetTensorMutableData<float>(), output.GetTensorTypeAndShapeInfo().GetElementCount(), kAnswer);
      return nullptr;
    } catch (const Ort::Exception& error) {
      return Ort::Status(error).release();
    }
  }
};

struct ExpressiveAttention : Ort::CustomOpBase<ExpressiveAttention, Kernel, true> {
  const char* GetName() const { return "ExpressiveAttention"; }
  std::size_t GetInputTypeCount() const { return kSlots + 1; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    return index == kSlots ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    try {
      // No use for them here, but a node that lacks one, or has it as another type, would be of no use to any kernel.
      const Ort::ConstKernelInfo attributes(info);
      for (const char* name : {"causal", "window"}) attributes.GetAttribute<std::int64_t>(name);
      for (const char* name : {"scale", "epsilon", "softcap"}) attributes.GetAttribute<float>(name);
      *kernel = new Kernel();
      return nullptr;
    } catch (const Ort::Exception& error) {
      return Ort::Status(error).release();
    }
  }
};

}  // namespace

extern "C" OrtStatusPtr RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "built with the headers of a newer ONNX Runtime");
  Ort::InitApi(api);
  try {
    // Static, because sessions keep pointers to both.
    static const ExpressiveAttention op;
    static const Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("attnserve");
      made.Add(&op);
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::Status(error).release();
  }
}
