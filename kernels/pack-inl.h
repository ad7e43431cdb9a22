// Laying queries, keys and values out for the tiles, in float32.
//
//   queries [chunks of kChunk channels, kBlockQueries, kChunk], scaled
//   keys    [panels of kPanelKeys, E, kPanelKeys], 0 beyond the last key
//   values  [keys, V up to whole vectors], 0 beyond the last channel

#if defined(ATTNSERVE_KERNELS_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_PACK_INL_H_
#undef ATTNSERVE_KERNELS_PACK_INL_H_
#else
#define ATTNSERVE_KERNELS_PACK_INL_H_
#endif

#include <algorithm>

#include "plan.h"
#include "rows.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

constexpr Index kChunk = 32;
constexpr Index kPanelKeys = kVectors * kLanes;
static_assert(kTileKeys % kPanelKeys == 0 && kChunk % kLanes == 0 && kBlockQueries % kRows == 0);

template <typename T>
void PackQueries(Rows<const T> queries, float scale, float* packed) {
  const Vector factor = hn::Set(D(), scale);
  for (Index query = 0; query < queries.count; ++query, packed += kChunk) {
    float* to = packed;
    for (Index first = 0; first < queries.size; first += kChunk, to += kBlockQueries * kChunk) {
      const T* from = queries[query] + first;
      const Index count = std::min(queries.size - first, kChunk);
      Index channel = 0;
      for (; channel + kLanes <= count; channel += kLanes)
        hn::Store(hn::Mul(LoadFloats(D(), from + channel), factor), D(), to + channel);
      for (; channel < count; ++channel) to[channel] = ToFloat(from[channel]) * scale;
    }
  }
}

// Transposes up to four keys into columns of a panel.
template <typename T>
HWY_INLINE void PackFourKeys(Rows<const T> keys, float* packed) {
  if (keys.count < 4) {
    for (Index channel = 0; channel < keys.size; ++channel, packed += kPanelKeys)
      for (Index key = 0; key < 4; ++key) packed[key] = key < keys.count ? ToFloat(keys[key][channel]) : 0.0f;
    return;
  }
  const hn::FixedTag<float, 4> four;
  Index channel = 0;
  for (; channel + 4 <= keys.size; channel += 4, packed += 4 * kPanelKeys) {
    const auto row0 = LoadFloats(four, keys[0] + channel), row1 = LoadFloats(four, keys[1] + channel);
    const auto row2 = LoadFloats(four, keys[2] + channel), row3 = LoadFloats(four, keys[3] + channel);
    const auto low02 = hn::InterleaveLower(four, row0, row2), high02 = hn::InterleaveUpper(four, row0, row2);
    const auto low13 = hn::InterleaveLower(four, row1, row3), high13 = hn::InterleaveUpper(four, row1, row3);
    hn::StoreU(hn::InterleaveLower(four, low02, low13), four, packed);
    hn::StoreU(hn::InterleaveUpper(four, low02, low13), four, packed + kPanelKeys);
    hn::StoreU(hn::InterleaveLower(four, high02, high13), four, packed + 2 * kPanelKeys);
    hn::StoreU(hn::InterleaveUpper(four, high02, high13), four, packed + 3 * kPanelKeys);
  }
  for (; channel < keys.size; ++channel, packed += kPanelKeys)
    for (Index key = 0; key < 4; ++key) packed[key] = ToFloat(keys[key][channel]);
}

// Where the four keys from `key` on begin, in packed keys of `size` channels.
constexpr Index PackedKey(Index key, Index size) { return key / kPanelKeys * kPanelKeys * size + key % kPanelKeys; }

template <typename T>
HWY_INLINE void PackValue(const T* value, Index size, float* packed) {
  Index channel = 0;
  for (; channel + kLanes <= size; channel += kLanes)
    hn::Store(LoadFloats(D(), value + channel), D(), packed + channel);
  if (channel < size) hn::Store(hn::Zero(D()), D(), packed + channel);
  for (; channel < size; ++channel) packed[channel] = ToFloat(value[channel]);
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_PACK_INL_H_
