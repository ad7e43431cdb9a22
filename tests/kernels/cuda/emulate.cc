// The kernels for GPUs, thread by thread on this processor: their sources are those of the library.

#include "attend.h"
#include "measure.h"

namespace attnserve::cuda {
namespace {

// Says whether every thread of every block came to its end.
template <typename T, bool is_softmax, int kSize>
bool AttendAll(const AttentionCall& call) {
  bool is_sound = true;
  const int num_blocks = (call.slots.num_steps + kBlockQueries - 1) / kBlockQueries;
  for (int index = 0; index < call.slots.num_sequences; ++index)
    for (int head = 0; head < call.num_heads; ++head)
      for (int block = 0; block < num_blocks; ++block) {
        Tiles<T, kSize> tiles;
        is_sound &=
            EmulatedBlock(kThreads, [&] { AttendBlock<T, is_softmax, kSize>(call, tiles, block, head, index); }).Run();
      }
  return is_sound;
}

template <typename T, bool is_softmax>
bool AttendSized(const AttentionCall& call) {
  const int size = std::max(call.head_size, call.value_size);
  if (size <= 32) return AttendAll<T, is_softmax, 32>(call);
  if (size <= 64) return AttendAll<T, is_softmax, 64>(call);
  return AttendAll<T, is_softmax, 128>(call);
}

template <typename T>
bool MeasureAll(const MetricCall& call) {
  bool is_sound = true;
  for (int index = 0; index < call.slots.num_sequences; ++index)
    for (int head = 0; head < call.num_heads; ++head)
      is_sound &= EmulatedBlock(32, [&] { MeasureHead<T>(call, head, index); }).Run();
  return is_sound;
}

}  // namespace
}  // namespace attnserve::cuda

// Types: 0 float32, 1 float16, 2 bfloat16.
extern "C" bool emulate_attention(const attnserve::cuda::AttentionCall* call, int type, bool is_softmax) {
  using namespace attnserve::cuda;
  if (type == 0) return is_softmax ? AttendSized<float, true>(*call) : AttendSized<float, false>(*call);
  if (type == 1) return is_softmax ? AttendSized<__half, true>(*call) : AttendSized<__half, false>(*call);
  return is_softmax ? AttendSized<__nv_bfloat16, true>(*call) : AttendSized<__nv_bfloat16, false>(*call);
}

extern "C" bool emulate_metric(const attnserve::cuda::MetricCall* call, int type) {
  using namespace attnserve::cuda;
  if (type == 0) return MeasureAll<float>(*call);
  return type == 1 ? MeasureAll<__half>(*call) : MeasureAll<__nv_bfloat16>(*call);
}
