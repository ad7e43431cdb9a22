#include "op.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>

namespace attnserve {

std::string Describe(const Shape& shape) {
  std::string text = "[";
  for (std::size_t index = 0; index < shape.size(); ++index) text += (index ? ", " : "") + std::to_string(shape[index]);
  return text + "]";
}

Shape ShapeOf(const Ort::KernelContext& context, std::size_t input, const char* name, std::size_t num_dimensions) {
  Shape shape = context.GetInput(input).GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != num_dimensions)
    throw Mismatch(name, std::to_string(num_dimensions) + " dimensions", Describe(shape));
  return shape;
}

std::vector<Sequence> ReadSequences(const Ort::KernelContext& context, std::size_t input, Index num_rows) {
  const Shape shape = ShapeOf(context, input, "slots", 2);
  const std::int64_t* slots = context.GetInput(input).GetTensorData<std::int64_t>();
  std::vector<Sequence> sequences;
  sequences.reserve(shape[0]);
  std::vector<char> is_taken(num_rows);
  for (Index index = 0; index < shape[0]; ++index, slots += shape[1]) {
    Index num_steps = 0;
    for (Index step = 0; step < shape[1]; ++step) {
      const Index row = slots[step];
      if (row == num_rows) continue;
      const auto refuse = [&](const std::string& expected) {
        const std::string place = "slots[" + std::to_string(index) + ", " + std::to_string(step) + "]";
        throw Mismatch(place.c_str(), expected, std::to_string(row));
      };
      if (row < 0 || row > num_rows) refuse("a row from 0 to " + std::to_string(num_rows));
      if (step != num_steps || row != slots[0] + step)
        refuse("one ascending run of rows and then " + std::to_string(num_rows) + " only");
      if (is_taken[row]) refuse("a row of no other sequence");
      is_taken[row] = true;
      ++num_steps;
    }
    if (num_steps > 0) sequences.push_back({slots[0], num_steps});
  }
  return sequences;
}

void* MakeOutput(const Ort::KernelContext& context, const Shape& shape, Storage storage,
                 const std::vector<Sequence>& sequences) {
  char* output = static_cast<char*>(context.GetOutput(0, shape).GetTensorMutableRawData());
  Index row_bytes = SizeOf(storage);
  for (std::size_t axis = 1; axis < shape.size(); ++axis) row_bytes *= shape[axis];
  std::vector<char> is_written(shape[0]);
  for (const Sequence& sequence : sequences)
    std::fill_n(is_written.begin() + sequence.first_row, sequence.num_steps, true);
  for (Index row = 0; row < shape[0]; ++row)
    if (!is_written[row]) std::fill_n(output + row * row_bytes, row_bytes, 0);
  return output;
}

Scratch::Scratch(const Ort::KernelContext& context, Index size) {
  if (size == 0) return;
  const auto cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  allocator_ = context.GetAllocator(*cpu);
  floats_ = static_cast<float*>(allocator_->Alloc(allocator_, static_cast<std::size_t>(size) * sizeof(float)));
  if (floats_ == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() {
  if (allocator_ == nullptr) return;
  allocator_->Free(allocator_, floats_);
  Ort::GetApi().ReleaseAllocator(allocator_);
}

namespace {

// Exceptions must not leave a function that ONNX Runtime calls.
struct Tasks {
  const std::function<void(Index)>& run;
  std::atomic<bool> has_failed;
  std::exception_ptr failure;

  static void Run(void* data, std::size_t task) {
    Tasks& tasks = *static_cast<Tasks*>(data);
    if (tasks.has_failed) return;
    try {
      tasks.run(static_cast<Index>(task));
    } catch (...) {
      if (!tasks.has_failed.exchange(true)) tasks.failure = std::current_exception();
    }
  }
};

}  // namespace

void RunTasks(const Ort::KernelContext& context, Index num_tasks, const std::function<void(Index)>& run) {
  if (num_tasks == 0) return;
  Tasks tasks{run, {false}, nullptr};
  // As many batches as tasks: they take unequal times, and whoever is free takes the next one.
  context.ParallelFor(Tasks::Run, static_cast<std::size_t>(num_tasks), static_cast<std::size_t>(num_tasks), &tasks);
  if (tasks.failure) std::rethrow_exception(tasks.failure);
}

}  // namespace attnserve
