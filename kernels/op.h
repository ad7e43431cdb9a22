// What the ops have in common: reading a node and its inputs, and running tasks in ONNX Runtime's threads.

#ifndef ATTNSERVE_KERNELS_OP_H_
#define ATTNSERVE_KERNELS_OP_H_

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

// Without it a static initialiser asks for the API before anyone has said where it is.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "attention.h"

namespace attnserve {

// The oldest version of ONNX Runtime's API with all that is used here. Asked for by its number: the headers may be
// older or newer than the ONNX Runtime that loads the library.
constexpr std::uint32_t kApiVersion = 17;
static_assert(ORT_API_VERSION >= kApiVersion, "the headers of ONNX Runtime are too old");

// A node or an input is wrong; the message says of which, what was expected and what came.
class Mismatch : public std::invalid_argument {
 public:
  Mismatch(const char* name, const std::string& expected, const std::string& got)
      : std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got) {}
};

constexpr ONNXTensorElementDataType kSlotsType = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

constexpr ONNXTensorElementDataType TypeOf(Storage storage) {
  switch (storage) {
    case Storage::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Storage::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

// Bytes of a number.
constexpr Index SizeOf(Storage storage) { return storage == Storage::kFloat32 ? 4 : 2; }

using Shape = std::vector<std::int64_t>;

std::string Describe(const Shape& shape);

// Shape of an input; the number of its dimensions is checked.
Shape ShapeOf(const Ort::KernelContext& context, std::size_t input, const char* name, std::size_t num_dimensions);

// The rows of each sequence that has any, from slots [B, N].
//
// Raises:
//   Mismatch: a row of slots is not an ascending run of packed rows followed by T only, or two sequences share a row.
std::vector<Sequence> ReadSequences(const Ort::KernelContext& context, std::size_t input, Index num_rows);

// The op's output [T, ...], in which rows of no sequence are 0.
void* MakeOutput(const Ort::KernelContext& context, const Shape& shape, Storage storage,
                 const std::vector<Sequence>& sequences);

// Memory of a call, from the session's own allocator: it counts as the session's, and is given back with it.
class Scratch {
 public:
  Scratch(const Ort::KernelContext& context, Index size);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* get() const { return floats_; }

 private:
  OrtAllocator* allocator_ = nullptr;
  float* floats_ = nullptr;
};

// Calls `run(task)` for every task from 0 on, in any order and at once. What a task throws is thrown here.
void RunTasks(const Ort::KernelContext& context, Index num_tasks, const std::function<void(Index)>& run);

// Turns what `compute` throws into a status.
template <typename Compute>
OrtStatusPtr Guard(const char* op, const Compute& compute) noexcept {
  try {
    compute();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::invalid_argument& error) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, (std::string(op) + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_RUNTIME_EXCEPTION, (std::string(op) + ": " + error.what()).c_str());
  }
}

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_OP_H_
