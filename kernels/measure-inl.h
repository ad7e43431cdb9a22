// The elliptical metric, head by head.

#if defined(ATTNSERVE_KERNELS_MEASURE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTNSERVE_KERNELS_MEASURE_INL_H_
#undef ATTNSERVE_KERNELS_MEASURE_INL_H_
#else
#define ATTNSERVE_KERNELS_MEASURE_INL_H_
#endif

#include <algorithm>
#include <vector>

#include "metric.h"
#include "rows.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attnserve {
namespace HWY_NAMESPACE {

// Sums of how much every channel of a head has changed.
class Changes {
 public:
  explicit Changes(Index size) : sums_(size), errors_(size) {}

  template <typename T>
  void Add(const T* value, const T* previous) {
    Index channel = 0;
    for (; channel + kLanes <= Size(); channel += kLanes)
      AddVector(D(), hn::AbsDiff(LoadFloats(D(), value + channel), LoadFloats(D(), previous + channel)), channel);
    const hn::CappedTag<float, 1> one;
    for (; channel < Size(); ++channel)
      AddVector(one, hn::Abs(hn::Set(one, ToFloat(value[channel]) - ToFloat(previous[channel]))), channel);
  }

  // Writes them divided by their largest or mean, or 1 where there was no change.
  template <typename T>
  void Write(bool is_mean, T* output) const {
    float norm = 0;
    if (is_mean) {
      for (const float sum : sums_) norm += sum;
      norm /= static_cast<float>(sums_.size());
    } else {
      for (const float sum : sums_) norm = std::max(norm, sum);
    }
    if (!(norm > 0)) {
      for (Index channel = 0; channel < Size(); ++channel) FromFloat(1, output + channel);
      return;
    }
    Index channel = 0;
    for (; channel + kLanes <= Size(); channel += kLanes)
      StoreFloats(hn::Div(hn::LoadU(D(), &sums_[channel]), hn::Set(D(), norm)), output + channel);
    for (; channel < Size(); ++channel) FromFloat(sums_[channel] / norm, output + channel);
  }

 private:
  Index Size() const { return static_cast<Index>(sums_.size()); }

  // Kahan's sum: thousands of steps lose no more digits than one.
  template <class Tag>
  HWY_INLINE void AddVector(Tag tag, hn::Vec<Tag> change, Index channel) {
    const auto sum = hn::LoadU(tag, &sums_[channel]);
    const auto term = hn::Sub(change, hn::LoadU(tag, &errors_[channel]));
    const auto total = hn::Add(sum, term);
    hn::StoreU(hn::Sub(hn::Sub(total, sum), term), tag, &errors_[channel]);
    hn::StoreU(total, tag, &sums_[channel]);
  }

  std::vector<float> sums_;
  std::vector<float> errors_;
};

template <typename T>
void MeasureHead(const Metric& metric, const Sequence& sequence, Index head) {
  const auto rows = [&](auto* tensor) { return RowsOf(tensor, metric.num_heads, head, metric.head_size, sequence); };
  const auto value = rows(static_cast<const T*>(metric.value));
  const auto previous = rows(static_cast<const T*>(metric.previous_value));
  const auto output = rows(static_cast<T*>(metric.output));
  Changes changes(metric.head_size);
  for (Index step = 0; step < sequence.num_steps; ++step) {
    changes.Add(value[step], previous[step]);
    if (metric.is_prefix) changes.Write(metric.is_mean, output[step]);
  }
  if (metric.is_prefix) return;
  changes.Write(metric.is_mean, output[0]);
  for (Index step = 1; step < sequence.num_steps; ++step) std::copy_n(output[0], metric.head_size, output[step]);
}

void RunMeasure(const Metric& metric, Index task) {
  const Sequence& sequence = metric.sequences[task / metric.num_heads];
  const bool is_half = metric.storage == Storage::kFloat16;
  (is_half ? MeasureHead<hwy::float16_t> : MeasureHead<float>)(metric, sequence, task % metric.num_heads);
}

}  // namespace HWY_NAMESPACE
}  // namespace attnserve
HWY_AFTER_NAMESPACE();

#endif  // ATTNSERVE_KERNELS_MEASURE_INL_H_
