// Kernels on a stream: no memory is allocated and nothing is waited for, so that a CUDA graph can record it.

#ifndef ATTNSERVE_KERNELS_CUDA_LAUNCH_H_
#define ATTNSERVE_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "../attention.h"
#include "call.h"

namespace attnserve::cuda {

// Of queries, keys and values.
constexpr Index kMostHeadSize = 128;
constexpr Index kMostMetricSize = 256;
// Of heads, and of sequences.
constexpr Index kMostBlocks = 65535;

cudaError_t LaunchAttention(const AttentionCall& call, Weighting weighting, Storage storage, cudaStream_t stream);
cudaError_t LaunchMetric(const MetricCall& call, Storage storage, cudaStream_t stream);

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_KERNELS_CUDA_LAUNCH_H_
