// Numbers that a task computes with, aligned for any vector and a cache line.

#ifndef ATTNSERVE_KERNELS_FLOATS_H_
#define ATTNSERVE_KERNELS_FLOATS_H_

#include <memory>
#include <new>

#include "attention.h"

namespace attnserve {

class Floats {
 public:
  explicit Floats(Index size) : memory_(new (std::align_val_t{kAlignment}) float[size]) {}
  float* get() const { return memory_.get(); }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(float* memory) const { operator delete[](memory, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<float[], Free> memory_;
};

}  // namespace attnserve

#endif  // ATTNSERVE_KERNELS_FLOATS_H_
