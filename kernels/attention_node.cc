#include "attention_node.h"

#include <cmath>
#include <string>

namespace attnserve {
namespace {

float ReadNumber(const Ort::ConstKernelInfo& node, const char* name, bool may_be_negative) {
  const float number = node.GetAttribute<float>(name);
  if (!std::isfinite(number) || (number < 0 && !may_be_negative))
    throw Mismatch(name, may_be_negative ? "a finite number" : "a finite number >= 0", std::to_string(number));
  return number;
}

}  // namespace

Attention ReadAttributes(const Ort::ConstKernelInfo& node, Weighting weighting, Storage storage) {
  Attention attention{};
  attention.weighting = weighting;
  attention.storage = storage;
  attention.causal = node.GetAttribute<std::int64_t>("causal") != 0;
  attention.window = node.GetAttribute<std::int64_t>("window");
  attention.scale = ReadNumber(node, "scale", true);
  attention.epsilon = ReadNumber(node, "epsilon", false);
  attention.softcap = ReadNumber(node, "softcap", false);
  if (attention.window < 0) throw Mismatch("window", "a number >= 0", std::to_string(attention.window));
  return attention;
}

Index ReadTensors(const Ort::KernelContext& context, Attention& attention) {
  const Shape query = ShapeOf(context, kQuery, "query", 3);
  const Shape key = ShapeOf(context, kKey, "key", 3);
  const Shape value = ShapeOf(context, kValue, "value", 3);
  const Index num_rows = query[0], num_heads = query[1], num_key_heads = key[1];
  if (num_key_heads == 0 || num_heads % num_key_heads != 0)
    throw Mismatch("key", "a number of heads that divides " + std::to_string(num_heads), std::to_string(num_key_heads));
  const Shape expected_key = {num_rows, num_key_heads, query[2]};
  if (key != expected_key) throw Mismatch("key", Describe(expected_key), Describe(key));
  const Shape expected_value = {num_rows, num_key_heads, value[2]};
  if (value != expected_value) throw Mismatch("value", Describe(expected_value), Describe(value));

  attention.num_heads = num_heads;
  attention.num_key_heads = num_key_heads;
  attention.head_size = query[2];
  attention.value_size = value[2];
  attention.query = context.GetInput(kQuery).GetTensorRawData();
  attention.key = context.GetInput(kKey).GetTensorRawData();
  attention.value = context.GetInput(kValue).GetTensorRawData();
  return num_rows;
}

}  // namespace attnserve
