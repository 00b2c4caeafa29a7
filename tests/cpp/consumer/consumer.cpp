// What a C++ user's program looks like: it draws a mask, launches the forward product of a training
// step on a stream of its own, and checks the result. Without a GPU it says what it would run.

#include <sparsedrop/sparsedrop.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

void check(cudaError_t status, char const* what) {
  if (status != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
  }
}

// Device memory for `count` values; the process's end frees it.
template <class T>
T* allocate(size_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, sizeof(T) * count), "cudaMalloc");
  return static_cast<T*>(data);
}

// bfloat16 is the upper half of a float.
uint16_t to_bf16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return uint16_t(bits >> 16);
}
float from_bf16(uint16_t value) {
  uint32_t const bits = uint32_t(value) << 16;
  float result = 0;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// [rows, cols] of -1, 0 and 1, of which sums of 256 products are exact in bfloat16.
std::vector<uint16_t> draw(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 engine(seed);
  std::uniform_int_distribution<int> sign(-1, 1);
  std::vector<uint16_t> values(size_t(rows * cols));
  for (uint16_t& value : values) {
    value = to_bf16(float(sign(engine)));
  }
  return values;
}

uint16_t* to_device(std::vector<uint16_t> const& values) {
  auto* const data = allocate<uint16_t>(values.size());
  check(cudaMemcpy(data, values.data(), 2 * values.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  return data;
}

constexpr int64_t kM = 512, kN = 384, kK = 256;  // Y [m, n] = X [m, k] Wᵀ, W [n, k]
constexpr int32_t kBlock = 128;
constexpr int64_t kGridRows = kM / kBlock, kGridCols = kK / kBlock;

int run(sparsedrop::Architecture architecture) {
  std::vector<uint16_t> const x = draw(kM, kK, 1), w = draw(kN, kK, 2);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");

  // A mask over X, each block dropped with probability 0.5.
  auto* const live = allocate<uint8_t>(kGridRows * kGridCols);
  auto* const row_words = allocate<uint32_t>(kGridRows * sparsedrop::mask_line_words(kK));
  auto* const col_words = allocate<uint32_t>(kGridCols * sparsedrop::mask_line_words(kM));
  check(sparsedrop::bernoulli_mask({0.5, /*seed=*/7, /*offset=*/0}, {kM, kK, kBlock, kBlock}, live,
                                   row_words, col_words, stream),
        "bernoulli_mask");

  sparsedrop::Problem problem;
  problem.m = kM;
  problem.n = kN;
  problem.k = kK;
  problem.a = {to_device(x), kK, sparsedrop::Order::row_major};
  problem.b = {to_device(w), kK, sparsedrop::Order::col_major};  // Wᵀ as it lies
  problem.d = allocate<uint16_t>(kM * kN);
  problem.d_ld = kN;
  problem.a_mask = {row_words, col_words, kBlock, kBlock};
  problem.alpha = 2.0f;

  // Of the ways that can run it, the first.
  sparsedrop::Choice choice;
  choice.architecture = architecture;
  while (char const* const reason = sparsedrop::refusal(problem, choice)) {
    std::printf("tile %d: %s\n", choice.tile, reason);
    if (++choice.tile == sparsedrop::tile_count(architecture)) {
      return 1;
    }
  }
  void* const workspace = allocate<char>(sparsedrop::workspace_bytes(problem, choice) + 1);
  check(sparsedrop::matmul(problem, choice, workspace, stream), "matmul");

  std::vector<uint16_t> y(size_t(kM * kN));
  std::vector<uint8_t> grid(size_t(kGridRows * kGridCols));
  check(cudaMemcpyAsync(y.data(), problem.d, 2 * y.size(), cudaMemcpyDeviceToHost, stream), "copy");
  check(cudaMemcpyAsync(grid.data(), live, grid.size(), cudaMemcpyDeviceToHost, stream), "copy");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

  int64_t wrong = 0;
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      float sum = 0.0f;
      for (int64_t l = 0; l < kK; ++l) {
        bool const is_live = grid[size_t(i / kBlock * kGridCols + l / kBlock)] != 0;
        sum += is_live ? from_bf16(x[size_t(i * kK + l)]) * from_bf16(w[size_t(j * kK + l)]) : 0.0f;
      }
      wrong += from_bf16(y[size_t(i * kN + j)]) != 2.0f * sum;
    }
  }
  std::printf("tile %d: %lld of %lld values are wrong\n", choice.tile,
              static_cast<long long>(wrong), static_cast<long long>(kM * kN));
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main() {
  for (int i = 0; i < sparsedrop::architecture_count(); ++i) {
    sparsedrop::Architecture const architecture = sparsedrop::architecture(i);
    for (int id = 0; id < sparsedrop::tile_count(architecture); ++id) {
      sparsedrop::Tile const t = sparsedrop::tile(architecture, id);
      std::printf("%s, tile %d: %dx%dx%d, slots of %d\n", sparsedrop::name(architecture), id, t.m,
                  t.n, t.k, t.slot_n);
    }
  }
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) != cudaSuccess) {
    std::printf("no GPU: nothing is launched\n");
    return 0;
  }
  for (int i = 0; i < sparsedrop::architecture_count(); ++i) {
    if (sparsedrop::runs_on(sparsedrop::architecture(i), major, minor)) {
      return run(sparsedrop::architecture(i));
    }
  }
  std::printf("no kernels for compute capability %d.%d\n", major, minor);
  return 0;
}
