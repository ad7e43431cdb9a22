// Attention of a block of queries of one head of one sequence, by four warps, each of 16 queries.
//
// Keys and values go through shared memory tile by tile; scores, weights and sums of a warp are in its registers. The
// order of sums is that of the keys, whoever else is in the batch.

#ifndef ATTNSERVE_KERNELS_CUDA_ATTEND_H_
#define ATTNSERVE_KERNELS_CUDA_ATTEND_H_

#include <cfloat>
#include <cmath>

#include "elements.h"
#include "sequence.h"

namespace attnserve::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpQueries = 16;
constexpr int kBlockQueries = kWarps * kWarpQueries;

// Channels are padded to kSize, a multiple of 32.
template <typename T, int kSize>
struct Tiles {
  static constexpr int kKeys = Elements<T>::kTileKeys;
  static constexpr int kStride = kSize + Elements<T>::kPadding;
  alignas(16) T keys[kKeys * kStride];
  alignas(16) T values[kKeys * kStride];
  Sequence sequence;
};

// Of rows [T, heads, size]: those of one head of one sequence.
template <typename T>
struct HeadRows {
  T* first;
  std::int64_t stride;
  int count;
  int size;
};

template <typename T>
ATTNSERVE_DEVICE HeadRows<T> RowsOf(T* tensor, int num_heads, int head, int size, const Sequence& sequence) {
  const std::int64_t stride = static_cast<std::int64_t>(num_heads) * size;
  return {tensor + sequence.first_row * stride + static_cast<std::int64_t>(head) * size, stride, sequence.num_steps,
          size};
}

// A tile of rows from `first` on, 0 beyond the last row and the last channel.
template <typename T, int kSize>
ATTNSERVE_DEVICE void LoadTile(const HeadRows<const T>& rows, int first, T* tile) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kRowVectors = kSize / kVector;
  const bool is_aligned = rows.size % kVector == 0 && reinterpret_cast<std::uintptr_t>(rows.first) % 16 == 0;
  for (int index = ThreadIndex(); index < Tiles<T, kSize>::kKeys * kRowVectors; index += kThreads) {
    const int row = index / kRowVectors, channel = index % kRowVectors * kVector;
    T* to = tile + row * Tiles<T, kSize>::kStride + channel;
    const T* from = rows.first + (first + row) * rows.stride + channel;
    const int count = first + row < rows.count ? rows.size - channel : 0;
    if (is_aligned && count >= kVector) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (i < count) {
          to[i] = from[i];
        } else {
          FromFloat(0, to + i);
        }
      }
    }
  }
}

// Of the four lanes that hold a row between them.
ATTNSERVE_DEVICE float SumOfRow(float number) {
  number += ShuffleXor(number, 1);
  return number + ShuffleXor(number, 2);
}
ATTNSERVE_DEVICE float LargestOfRow(float number) {
  number = fmaxf(number, ShuffleXor(number, 1));
  return fmaxf(number, ShuffleXor(number, 2));
}

// Sums of a warp's rows g and g + 8, as its lanes hold them.
template <typename T, int kSize>
struct WarpRows {
  static constexpr int kKeys = Tiles<T, kSize>::kKeys;
  float output[kSize / 8][4] = {};
  float total[2] = {};                      // of the weights, by lane
  float largest[2] = {-FLT_MAX, -FLT_MAX};  // softmax: score so far

  // Similarities u = z^2 / (1 + z^2) in the place of scores z; 0 where a key is not seen.
  ATTNSERVE_DEVICE void WeighExpressive(float (&scores)[kKeys / 8][4], const KeyRange (&seen)[2], int first_key) {
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + 8 * group + i % 2;
        float square = scores[group][i] * scores[group][i];
        // From 2^46 on 1 + z^2 rounds to z^2; inf / inf would be NaN. Not `fminf`, which hides a NaN.
        square = square > 70368744177664.0f ? 70368744177664.0f : square;
        const bool is_seen = key >= seen[i / 2].first && key <= seen[i / 2].last;
        scores[group][i] = is_seen ? DivideFast(square, 1 + square) : 0;
        total[i / 2] += scores[group][i];
      }
    }
  }

  // e^(z - largest) in the place of scores z; 0 where a key is not seen. A score that is larger than all before scales
  // down what there is.
  ATTNSERVE_DEVICE void WeighSoftmax(float (&scores)[kKeys / 8][4], const KeyRange (&seen)[2], int first_key) {
    float top[2] = {largest[0], largest[1]};
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + 8 * group + i % 2;
        const bool is_seen = key >= seen[i / 2].first && key <= seen[i / 2].last;
        if (!is_seen) scores[group][i] = -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], scores[group][i]);
      }
    }
    float shrink[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = LargestOfRow(top[row]);
      shrink[row] = expf(largest[row] - top[row]);
      largest[row] = top[row];
      total[row] *= shrink[row];
    }
#pragma unroll
    for (int group = 0; group < kSize / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output[group][i] *= shrink[i / 2];
    }
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[group][i] = expf(scores[group][i] - largest[i / 2]);
        total[i / 2] += scores[group][i];
      }
    }
  }
};

template <typename T, bool is_softmax, int kSize>
ATTNSERVE_DEVICE void AttendBlock(const AttentionCall& call, Tiles<T, kSize>& tiles, int block, int head, int index) {
  using Element = Elements<T>;
  constexpr int kKeys = Tiles<T, kSize>::kKeys, kStride = Tiles<T, kSize>::kStride;
  if (ThreadIndex() == 0) tiles.sequence = FindSequence(call.slots, index);
  Synchronise();
  const Sequence sequence = tiles.sequence;
  const int first_query = block * kBlockQueries;
  if (first_query >= sequence.num_steps) return;

  const int key_head = head / (call.num_heads / call.num_key_heads);
  const auto query = RowsOf(static_cast<const T*>(call.query), call.num_heads, head, call.head_size, sequence);
  const auto key = RowsOf(static_cast<const T*>(call.key), call.num_key_heads, key_head, call.head_size, sequence);
  const auto value = RowsOf(static_cast<const T*>(call.value), call.num_key_heads, key_head, call.value_size, sequence);
  const auto output = RowsOf(static_cast<T*>(call.output), call.num_heads, head, call.value_size, sequence);

  const int warp = ThreadIndex() / 32, group = ThreadIndex() % 32 / 4, lane = ThreadIndex() % 4;
  const int warp_query = first_query + warp * kWarpQueries;
  const auto query_at = [&](int row, int channel) {
    T element;
    FromFloat(0, &element);
    if (warp_query + row < query.count && channel < query.size)
      element = query.first[(warp_query + row) * query.stride + channel];
    return element;
  };
  Left queries[kSize / Element::kStep];
#pragma unroll
  for (int step = 0; step < kSize / Element::kStep; ++step)
    queries[step] = Element::MakeLeft(
        group, lane, [&](int row, int channel) { return query_at(row, step * Element::kStep + channel); });

  // Rows beyond the last see nothing.
  KeyRange seen[2] = {{0, -1}, {0, -1}};
#pragma unroll
  for (int row = 0; row < 2; ++row)
    if (warp_query + group + 8 * row < sequence.num_steps)
      seen[row] = SeenKeys(call, sequence.num_steps, warp_query + group + 8 * row);
  const int last_query = min(first_query + kBlockQueries, sequence.num_steps) - 1;
  const KeyRange all = {SeenKeys(call, sequence.num_steps, first_query).first,
                        SeenKeys(call, sequence.num_steps, last_query).last};
  KeyRange own{0, -1};
  if (warp_query < sequence.num_steps)
    own = {SeenKeys(call, sequence.num_steps, warp_query).first,
           SeenKeys(call, sequence.num_steps, min(warp_query + kWarpQueries, sequence.num_steps) - 1).last};

  WarpRows<T, kSize> rows;
  for (int first_key = all.first / kKeys * kKeys; first_key <= all.last; first_key += kKeys) {
    // Of the tile before.
    Synchronise();
    LoadTile<T, kSize>(key, first_key, tiles.keys);
    LoadTile<T, kSize>(value, first_key, tiles.values);
    Synchronise();
    if (own.first >= first_key + kKeys || own.last < first_key) continue;

    float scores[kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSize / Element::kStep; ++step) {
#pragma unroll
      for (int pair = 0; pair < kKeys / 16; ++pair) {
        Right keys[2];
        Element::LoadKeys(tiles.keys, kStride, 16 * pair, step * Element::kStep, keys);
        Element::Multiply(scores[2 * pair], queries[step], keys[0]);
        Element::Multiply(scores[2 * pair + 1], queries[step], keys[1]);
      }
    }
#pragma unroll
    for (int pair = 0; pair < kKeys / 8; ++pair) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[pair][i] *= call.scale;
        if (call.softcap > 0) scores[pair][i] = call.softcap * tanhf(scores[pair][i] / call.softcap);
      }
    }
    if constexpr (is_softmax) {
      rows.WeighSoftmax(scores, seen, first_key + 2 * lane);
    } else {
      rows.WeighExpressive(scores, seen, first_key + 2 * lane);
    }
#pragma unroll
    for (int step = 0; step < kKeys / Element::kStep; ++step) {
      const Left weights = Element::MakeLeft(scores, step);
#pragma unroll
      for (int pair = 0; pair < kSize / 16; ++pair) {
        Right values[2];
        Element::LoadValues(tiles.values, kStride, step * Element::kStep, 16 * pair, values);
        Element::Multiply(rows.output[2 * pair], weights, values[0]);
        Element::Multiply(rows.output[2 * pair + 1], weights, values[1]);
      }
    }
  }

#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float total = SumOfRow(rows.total[row]);
    if (!is_softmax) total += call.epsilon;
    // Where every weight is 0, so is the output.
    if (total == 0) total = 1;
    const int step = warp_query + group + 8 * row;
    if (step >= sequence.num_steps) continue;
#pragma unroll
    for (int channels = 0; channels < kSize / 8; ++channels) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = 8 * channels + 2 * lane + i;
        if (channel < output.size)
          FromFloat(rows.output[channels][2 * row + i] / total, output.first + step * output.stride + channel);
      }
    }
  }
}

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_ATTEND_H_
