#include "statistics_op.h"

#include <cmath>
#include <limits>
#include <string>

namespace attnserve {
namespace {

enum Input : std::size_t { kQuery, kKey, kToken, kStep, kFirstKey, kLastKey, kScale, kSoftcap, kEpsilon };
enum Output : std::size_t { kMass, kEntropy, kDistance, kSink, kPrevious, kSelf, kDuplicate, kInduction, kReceived };

Weighting ReadWeighting(const Ort::ConstKernelInfo& node) {
  const std::string name = node.GetAttribute<std::string>("weighting");
  if (name == "expressive") return Weighting::kExpressive;
  if (name == "softmax") return Weighting::kSoftmax;
  throw Mismatch("weighting", "expressive or softmax", name);
}

float ReadScalar(const Ort::KernelContext& context, std::size_t input, const char* name) {
  ShapeOf(context, input, name, 0);
  const float number = *context.GetInput(input).GetTensorData<float>();
  if (!std::isfinite(number)) throw Mismatch(name, "a finite number", std::to_string(number));
  return number;
}

// As many numbers, each from 0 to `largest`.
const Index* ReadNumbers(const Ort::KernelContext& context, std::size_t input, const char* name, Index count,
                         Index largest) {
  const Shape shape = ShapeOf(context, input, name, 1);
  if (shape[0] != count) throw Mismatch(name, Describe({count}), Describe(shape));
  const Index* numbers = context.GetInput(input).GetTensorData<std::int64_t>();
  for (Index index = 0; index < count; ++index)
    if (numbers[index] < 0 || numbers[index] > largest)
      throw Mismatch(name, "numbers from 0 to " + std::to_string(largest), std::to_string(numbers[index]));
  return numbers;
}

}  // namespace

StatisticsKernel::StatisticsKernel(const Ort::ConstKernelInfo& node, const Target& target)
    : target_(target), weighting_(ReadWeighting(node)) {}

OrtStatusPtr StatisticsKernel::ComputeV2(OrtKernelContext* raw) {
  return Guard("AttentionStatistics", [&] {
    const Ort::KernelContext context(raw);
    const Shape query = ShapeOf(context, kQuery, "query", 3), key = ShapeOf(context, kKey, "key", 3);
    if (key[0] != query[0] || key[2] != query[2])
      throw Mismatch("key", Describe({query[0], key[1], query[2]}), Describe(key));

    Statistics statistics{};
    statistics.weighting = weighting_;
    statistics.scale = ReadScalar(context, kScale, "scale");
    statistics.softcap = ReadScalar(context, kSoftcap, "softcap");
    // A softmax has none.
    const float epsilon = ReadScalar(context, kEpsilon, "epsilon");
    if (weighting_ == Weighting::kExpressive) statistics.epsilon = epsilon;
    statistics.num_heads = query[0];
    statistics.num_queries = query[1];
    statistics.num_keys = key[1];
    statistics.head_size = query[2];
    statistics.query = context.GetInput(kQuery).GetTensorData<float>();
    statistics.key = context.GetInput(kKey).GetTensorData<float>();
    statistics.token = ReadNumbers(context, kToken, "token", key[1], std::numeric_limits<std::int32_t>::max());
    statistics.step = ReadNumbers(context, kStep, "step", query[1], key[1] - 1);
    statistics.first_key = ReadNumbers(context, kFirstKey, "first_key", query[1], key[1] - 1);
    statistics.last_key = ReadNumbers(context, kLastKey, "last_key", query[1], key[1] - 1);
    const auto output = [&](std::size_t index, Index size) {
      return context.GetOutput(index, {query[0], size}).GetTensorMutableData<float>();
    };
    statistics.mass = output(kMass, query[1]);
    statistics.entropy = output(kEntropy, query[1]);
    statistics.distance = output(kDistance, query[1]);
    statistics.sink = output(kSink, query[1]);
    statistics.previous = output(kPrevious, query[1]);
    statistics.self = output(kSelf, query[1]);
    statistics.duplicate = output(kDuplicate, query[1]);
    statistics.induction = output(kInduction, query[1]);
    statistics.received = output(kReceived, key[1]);
    RunTasks(context, query[0], [&](Index head) { target_.describe(statistics, head); });
  });
}

OrtStatusPtr StatisticsOp::CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
  return Guard(GetName(), [&] { *kernel = new StatisticsKernel(Ort::ConstKernelInfo(info), target_); });
}

}  // namespace attnserve
