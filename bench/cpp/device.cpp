#include "device.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace sparsedrop::bench {

void check(cudaError_t status, char const* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // the error is reported here; the next call starts clean
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

Buffer::Buffer(size_t bytes) {
  check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc");
}

Buffer::~Buffer() { cudaFree(data_); }

Buffer::Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}

namespace {

template <class T>
Buffer normal_of(int64_t elements, uint32_t seed) {
  int64_t const period = std::min<int64_t>(elements, 1'000'000);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(period);
  std::generate(values.begin(), values.end(), [&] { return T(normal(engine)); });
  Buffer buffer(elements * sizeof(T));
  auto* const data = buffer.as<T>();
  check(cudaMemcpy(data, values.data(), period * sizeof(*data), cudaMemcpyHostToDevice), "upload");
  for (int64_t filled = period; filled < elements; filled *= 2) {
    int64_t const more = std::min(filled, elements - filled);
    check(cudaMemcpy(data + filled, data, more * sizeof(*data), cudaMemcpyDeviceToDevice), "copy");
  }
  return buffer;
}

}  // namespace

Buffer normal(DataType type, int64_t elements, uint32_t seed) {
  return type == DataType::fp32 ? normal_of<float>(elements, seed)
                                : normal_of<__nv_bfloat16>(elements, seed);
}

DeviceMask::DeviceMask(Grid const& grid)
    : block_rows_(grid.block_rows),
      block_cols_(grid.block_cols),
      row_words_(grid.grid_rows() * mask_line_words(grid.cols) * sizeof(uint32_t)),
      col_words_(grid.grid_cols() * mask_line_words(grid.rows) * sizeof(uint32_t)) {
  Buffer const live(grid.live.size());
  check(cudaMemcpy(live.data(), grid.live.data(), grid.live.size(), cudaMemcpyHostToDevice),
        "upload of a grid");
  check(mask_words(live.as<uint8_t>(), {grid.rows, grid.cols, grid.block_rows, grid.block_cols},
                   row_words_.as<uint32_t>(), col_words_.as<uint32_t>(), nullptr),
        "mask_words");
  check(cudaDeviceSynchronize(), "mask_words");
}

Mask DeviceMask::mask() const {
  return {row_words_.as<uint32_t>(), col_words_.as<uint32_t>(), block_rows_, block_cols_};
}

Replay::Replay(std::vector<std::function<void(cudaStream_t)>> const& calls, cudaStream_t stream) {
  auto const run = [&] {
    for (auto const& call : calls) {
      call(stream);
    }
  };
  run();
  check(cudaStreamSynchronize(stream), "a first run");
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  run();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  cudaError_t const status = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  check(cudaEventCreate(&begin_), "cudaEventCreate");
  check(cudaEventCreate(&end_), "cudaEventCreate");
}

Replay::~Replay() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaGraphExecDestroy(graph_);
}

void Replay::launch(cudaStream_t stream) {
  check(cudaEventRecord(begin_, stream), "cudaEventRecord");
  check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch");
  check(cudaEventRecord(end_, stream), "cudaEventRecord");
}

double Replay::seconds() const {
  float ms = 0.0f;
  check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
  return double(ms) * 1e-3;
}

}  // namespace sparsedrop::bench
