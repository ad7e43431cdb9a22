// A block of threads on one processor: a fibre per thread, which runs until it must wait for the others. What
// kernels/cuda/lanes.h takes from PTX is here from its documentation, number by number.

#ifndef ATTNSERVE_TESTS_EMULATED_LANES_H_
#define ATTNSERVE_TESTS_EMULATED_LANES_H_

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define ATTNSERVE_DEVICE inline

namespace attnserve::cuda {

using std::min;

class EmulatedBlock {
 public:
  EmulatedBlock(int num_threads, std::function<void()> run) : run_(std::move(run)), fibres_(num_threads) {
    for (Fibre& fibre : fibres_) {
      getcontext(&fibre.context);
      fibre.stack.reset(new char[kStackSize]);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStackSize;
      fibre.context.uc_link = &main_;
      makecontext(&fibre.context, &EmulatedBlock::Enter, 0);
    }
  }

  // Every thread from its beginning to its end. Says whether they came there: a barrier that only some of them reach is
  // waited at for ever.
  bool Run() {
    current_block = this;
    long num_moves = -1;
    for (std::size_t num_done = 0; num_done < fibres_.size();) {
      if (num_moves == num_moves_) return false;
      num_moves = num_moves_;
      num_done = 0;
      for (thread_ = 0; thread_ < num_threads(); ++thread_) {
        if (!fibres_[thread_].is_done) swapcontext(&main_, &fibres_[thread_].context);
        num_done += fibres_[thread_].is_done;
      }
    }
    return true;
  }

  int thread() const { return thread_; }
  int num_threads() const { return static_cast<int>(fibres_.size()); }

  // Barriers: of all threads, and of the lanes of a warp.
  void WaitForBlock() { Wait(0, num_threads(), &Fibre::num_block_waits); }
  void WaitForWarp() { Wait(thread_ / 32 * 32, 32, &Fibre::num_warp_waits); }

  // What each lane of a warp gives to the others.
  template <typename T>
  std::vector<T> Exchange(const T& given) {
    const int first = thread_ / 32 * 32;
    fibres_[thread_].given = &given;
    WaitForWarp();
    std::vector<T> all;
    for (int lane = 0; lane < 32; ++lane) all.push_back(*static_cast<const T*>(fibres_[first + lane].given));
    WaitForWarp();
    return all;
  }

  static EmulatedBlock* current_block;

 private:
  static constexpr std::size_t kStackSize = 1 << 18;
  struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool is_done = false;
    long num_block_waits = 0;
    long num_warp_waits = 0;
    const void* given = nullptr;
  };

  static void Enter() {
    EmulatedBlock& block = *current_block;
    block.run_();
    block.fibres_[block.thread_].is_done = true;
    ++block.num_moves_;
  }

  void Wait(int first_thread, int num_threads, long Fibre::* num_waits) {
    Fibre& own = fibres_[thread_];
    const long arrival = ++(own.*num_waits);
    ++num_moves_;
    const auto begin = fibres_.begin() + first_thread;
    const auto is_here = [&](const Fibre& fibre) { return fibre.*num_waits >= arrival; };
    while (!std::all_of(begin, begin + num_threads, is_here)) swapcontext(&own.context, &main_);
  }

  const std::function<void()> run_;
  std::vector<Fibre> fibres_;
  ucontext_t main_;
  int thread_ = 0;
  long num_moves_ = 0;
};

inline EmulatedBlock* EmulatedBlock::current_block = nullptr;

inline int ThreadIndex() { return EmulatedBlock::current_block->thread(); }
inline void Synchronise() { EmulatedBlock::current_block->WaitForBlock(); }
inline float DivideFast(float number, float by) { return number / by; }
inline float ShuffleXor(float number, int mask) {
  return EmulatedBlock::current_block->Exchange(number)[ThreadIndex() % 32 ^ mask];
}

template <bool transposed>
void LoadMatrices(const void* row, std::uint32_t (&parts)[4]) {
  const std::vector<const void*> rows = EmulatedBlock::current_block->Exchange(row);
  const int lane = ThreadIndex() % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int first = lane / 4, second = lane % 4 * 2 + i;
      const void* from = rows[8 * matrix + (transposed ? second : first)];
      pair[i] = static_cast<const std::uint16_t*>(from)[transposed ? first : second];
    }
    std::memcpy(&parts[matrix], pair, sizeof(pair));
  }
}

// Lane by lane what each holds of three matrices, to whole matrices and back.
template <int depth, typename LeftAt, typename RightAt>
void MultiplyMatrices(float (&sums)[4], const Left& left, const Right& right, const LeftAt& left_at,
                      const RightAt& right_at) {
  const std::vector<Left> lefts = EmulatedBlock::current_block->Exchange(left);
  const std::vector<Right> rights = EmulatedBlock::current_block->Exchange(right);
  const int group = ThreadIndex() % 32 / 4, lane = ThreadIndex() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = 2 * lane + i % 2;
    double sum = sums[i];
    for (int k = 0; k < depth; ++k) sum += left_at(lefts, row, k) * right_at(rights, k, column);
    sums[i] = static_cast<float>(sum);
  }
}

template <typename T>
double HalfOf(std::uint32_t bits, int which) {
  const auto part = static_cast<std::uint16_t>(bits >> (16 * which));
  T number;
  std::memcpy(static_cast<void*>(&number), &part, sizeof(number));
  return static_cast<float>(number);
}

template <typename T>
void MultiplyAdd(float (&sums)[4], const Left& left, const Right& right, T) {
  const auto left_at = [](const std::vector<Left>& lanes, int row, int k) {
    return HalfOf<T>(lanes[row % 8 * 4 + k % 8 / 2].parts[row / 8 + k / 8 * 2], k % 2);
  };
  const auto right_at = [](const std::vector<Right>& lanes, int k, int column) {
    return HalfOf<T>(lanes[column * 4 + k % 8 / 2].parts[k / 8], k % 2);
  };
  MultiplyMatrices<16>(sums, left, right, left_at, right_at);
}

// Tensor cores read the upper 19 bits.
inline double Truncated(std::uint32_t bits) {
  bits &= 0xffffe000u;
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

inline void MultiplyAddTruncated(float (&sums)[4], const Left& left, const Right& right) {
  const auto left_at = [](const std::vector<Left>& lanes, int row, int k) {
    return Truncated(lanes[row % 8 * 4 + k % 4].parts[row / 8 + k / 4 * 2]);
  };
  const auto right_at = [](const std::vector<Right>& lanes, int k, int column) {
    return Truncated(lanes[column * 4 + k % 4].parts[k / 4]);
  };
  MultiplyMatrices<8>(sums, left, right, left_at, right_at);
}

}  // namespace attnserve::cuda

#endif  // ATTNSERVE_TESTS_EMULATED_LANES_H_
