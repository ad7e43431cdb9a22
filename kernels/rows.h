// Rows of one head of a sequence, in a tensor [T, heads, size].

#ifndef ATTNSERVE_KERNELS_ROWS_H_
#define ATTNSERVE_KERNELS_ROWS_H_

#include <algorithm>

#include "attention.h"

namespace attnserve {

template <typename T>
struct Rows {
  T* first;
  Index stride;  // numbers from a row to the next
  Index count;
  Index size;

  T* operator[](Index row) const { return first + row * stride; }
};

template <typename T>
Rows<T> RowsOf(T* tensor, Index num_heads, Index head, Index size, const Sequence& sequence) {
  return {tensor + (sequence.first_row * num_heads + head) * size, num_heads * size, sequence.num_steps, size};
}

// Those from `first` on: `most` of them, or as many as there are.
template <typename T>
Rows<T> Slice(Rows<T> rows, Index first, Index most) {
  return {rows[first], rows.stride, std::min(rows.count - first, most), rows.size};
}

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_ROWS_H_
