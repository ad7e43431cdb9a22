// A node of an attention op and its inputs, checked: what kernels have in common whatever they run on.

#ifndef ATTNSERVE_KERNELS_ATTENTION_NODE_H_
#define ATTNSERVE_KERNELS_ATTENTION_NODE_H_

#include "attention.h"
#include "op.h"

namespace attnserve {

enum AttentionInput : std::size_t { kQuery, kKey, kValue, kSlots };

constexpr const char* NameOf(Weighting weighting) {
  return weighting == Weighting::kExpressive ? "ExpressiveAttention" : "DotProductAttention";
}

// Its attributes.
//
// Raises:
//   Mismatch: one of them is no number that it can be.
Attention ReadAttributes(const Ort::ConstKernelInfo& node, Weighting weighting, Storage storage);

// Adds sizes and addresses of query, key and value. Returns the number of packed rows.
//
// Raises:
//   Mismatch: shapes that do not belong together.
Index ReadTensors(const Ort::KernelContext& context, Attention& attention);

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_ATTENTION_NODE_H_
