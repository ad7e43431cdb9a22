#include "attend.h"
#include "launch.h"
#include "measure.h"

namespace attnserve::cuda {
namespace {

template <typename T, bool is_softmax, int kSize>
__global__ void __launch_bounds__(kThreads) Attend(const AttentionCall call) {
  __shared__ Tiles<T, kSize> tiles;
  // The last queries first: in a causal model they see the most, and the longest block should not begin last.
  AttendBlock<T, is_softmax, kSize>(call, tiles, gridDim.x - 1 - blockIdx.x, blockIdx.y, blockIdx.z);
}

template <typename T>
__global__ void __launch_bounds__(32) Measure(const MetricCall call) {
  MeasureHead<T>(call, blockIdx.x, blockIdx.y);
}

template <typename T, bool is_softmax>
void LaunchSized(const AttentionCall& call, cudaStream_t stream) {
  const dim3 blocks((call.slots.num_steps + kBlockQueries - 1) / kBlockQueries, call.num_heads,
                    call.slots.num_sequences);
  const int size = max(call.head_size, call.value_size);
  if (size <= 32) {
    Attend<T, is_softmax, 32><<<blocks, kThreads, 0, stream>>>(call);
  } else if (size <= 64) {
    Attend<T, is_softmax, 64><<<blocks, kThreads, 0, stream>>>(call);
  } else {
    Attend<T, is_softmax, 128><<<blocks, kThreads, 0, stream>>>(call);
  }
}

template <typename T>
void LaunchWeighting(const AttentionCall& call, Weighting weighting, cudaStream_t stream) {
  if (weighting == Weighting::kSoftmax) {
    LaunchSized<T, true>(call, stream);
  } else {
    LaunchSized<T, false>(call, stream);
  }
}

}  // namespace

cudaError_t LaunchAttention(const AttentionCall& call, Weighting weighting, Storage storage, cudaStream_t stream) {
  switch (storage) {
    case Storage::kFloat32:
      LaunchWeighting<float>(call, weighting, stream);
      break;
    case Storage::kFloat16:
      LaunchWeighting<__half>(call, weighting, stream);
      break;
    case Storage::kBFloat16:
      LaunchWeighting<__nv_bfloat16>(call, weighting, stream);
      break;
  }
  return cudaGetLastError();
}

cudaError_t LaunchMetric(const MetricCall& call, Storage storage, cudaStream_t stream) {
  const dim3 blocks(call.num_heads, call.slots.num_sequences);
  switch (storage) {
    case Storage::kFloat32:
      Measure<float><<<blocks, 32, 0, stream>>>(call);
      break;
    case Storage::kFloat16:
      Measure<__half><<<blocks, 32, 0, stream>>>(call);
      break;
    case Storage::kBFloat16:
      Measure<__nv_bfloat16><<<blocks, 32, 0, stream>>>(call);
      break;
  }
  return cudaGetLastError();
}

}  // namespace attnserve::cuda
