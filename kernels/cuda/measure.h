// The elliptical metric of one head of one sequence, by one warp: each lane has every 32nd channel.

#ifndef ATTNSERVE_KERNELS_CUDA_MEASURE_H_
#define ATTNSERVE_KERNELS_CUDA_MEASURE_H_

#include <cmath>

#include "attend.h"

namespace attnserve::cuda {

constexpr int kMostChannels = 256;

// Sums of how much this lane's channels have changed, by Kahan: thousands of steps lose no more digits than one.
struct Changes {
  static constexpr int kCount = kMostChannels / 32;
  float sums[kCount] = {};
  float errors[kCount] = {};

  ATTNSERVE_DEVICE void Add(int slot, float change) {
    const float term = change - errors[slot];
    const float total = sums[slot] + term;
    errors[slot] = (total - sums[slot]) - term;
    sums[slot] = total;
  }

  // What they are divided by: the largest or the mean of all channels, of every lane.
  ATTNSERVE_DEVICE float FindNorm(bool is_mean, int size) const {
    float norm = 0;
#pragma unroll
    for (int slot = 0; slot < kCount; ++slot) norm = is_mean ? norm + sums[slot] : fmaxf(norm, sums[slot]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = ShuffleXor(norm, mask);
      norm = is_mean ? norm + other : fmaxf(norm, other);
    }
    return is_mean ? norm / static_cast<float>(size) : norm;
  }
};

template <typename T>
ATTNSERVE_DEVICE void MeasureHead(const MetricCall& call, int head, int index) {
  const Sequence sequence = FindSequence(call.slots, index);
  const auto value = RowsOf(static_cast<const T*>(call.value), call.num_heads, head, call.head_size, sequence);
  const auto previous =
      RowsOf(static_cast<const T*>(call.previous_value), call.num_heads, head, call.head_size, sequence);
  const auto output = RowsOf(static_cast<T*>(call.output), call.num_heads, head, call.head_size, sequence);
  const int lane = ThreadIndex() % 32;
  Changes changes;
  const auto write = [&](int first_step, int end_step) {
    const float norm = changes.FindNorm(call.is_mean, call.head_size);
#pragma unroll
    for (int slot = 0; slot < Changes::kCount; ++slot) {
      const int channel = lane + 32 * slot;
      if (channel >= call.head_size) continue;
      // Where nothing has changed, all channels are alike.
      const float metric = norm > 0 ? changes.sums[slot] / norm : 1;
      for (int step = first_step; step < end_step; ++step)
        FromFloat(metric, output.first + step * output.stride + channel);
    }
  };
  for (int step = 0; step < sequence.num_steps; ++step) {
#pragma unroll
    for (int slot = 0; slot < Changes::kCount; ++slot) {
      const int channel = lane + 32 * slot;
      if (channel < call.head_size)
        changes.Add(slot, fabsf(ToFloat(value.first[step * value.stride + channel]) -
                                ToFloat(previous.first[step * previous.stride + channel])));
    }
    if (call.is_prefix) write(step, step + 1);
  }
  if (!call.is_prefix) write(0, sequence.num_steps);
}

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_MEASURE_H_
