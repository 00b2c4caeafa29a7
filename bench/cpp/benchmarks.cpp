// Microbenchmarks of the library alone: shapes x p x products x tiles, GPU time by CUDA events.
//
//     benchmarks --benchmark_filter='forward/bf16/4096x4096x4096/p=0.5'
//
// The time is that of one call. live_TFLOPs counts live FLOPs only. x_dense is the speed-up over
// the dense product, and of_shrunk compares rates with the dense product of the live extent: by
// cuBLAS, where it is in the build, and for the kernels of sm80 by the fastest of CUTLASS's own
// of 8.0. All take turns, replay by replay.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "cublas.h"
#include "device.h"
#include "stock.h"

namespace sparsedrop::bench {
namespace {

constexpr uint32_t kSeed = 0;
constexpr int kMostSets = 32;
constexpr double kReplaySeconds =
    500e-6;                          // short calls are repeated: launching a graph costs some 5 us
constexpr double kPeakFlops = 1e15;  // of the fastest GPU that this runs on, dense bf16

size_t bytes_of(DataType type) { return type == DataType::fp32 ? 4 : 2; }

// The matrices of one call. Calls rotate over several sets.
struct Set {
  Buffer x, w, dy, out;

  Set(DataType type, Extents const& e, uint32_t seed)
      : x(normal(type, e.m * e.k, seed)),
        w(normal(type, e.n * e.k, seed + 1)),
        dy(normal(type, e.m * e.n, seed + 2)),
        out(bytes_of(type) * std::max({e.m * e.n, e.m * e.k, e.n * e.k})) {}

  Matrices matrices() const { return {x.data(), w.data(), dy.data(), out.data()}; }
};

// As many that twice the L2 cache has gone by before one is read again.
std::vector<Set> make_sets(DataType type, Extents const& e) {
  int device = 0;
  int l2_bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device), "size of the L2 cache");
  double const bytes = double(bytes_of(type)) * double(e.m * e.k + e.n * e.k + e.m * e.n);
  int const count = std::clamp(int(std::ceil(2.0 * l2_bytes / bytes)), 1, kMostSets);
  std::vector<Set> sets;
  sets.reserve(count);
  for (int i = 0; i < count; ++i) {
    sets.emplace_back(type, e, kSeed + 3 * i);
  }
  return sets;
}

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(Stream const&) = delete;
  Stream& operator=(Stream const&) = delete;

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A candidate: its replays, and the time they took so far.
struct Candidate {
  Replay replay;
  double seconds = 0.0;
};

// Who makes the dense product that a case is compared to.
std::vector<std::unique_ptr<DenseProduct>> rivals_of(Case const& c) {
  if (c.choice.architecture == Architecture::sm80) {
    return stock_products(c.type);
  }
  std::vector<std::unique_ptr<DenseProduct>> rivals;
  if (auto cublas = dense_product()) {
    rivals.push_back(std::move(cublas));
  }
  return rivals;
}

void measure(benchmark::State& state, Case const& c) {
  std::vector<Grid> const grids = draw(c, kSeed);
  std::vector<DeviceMask> const device_masks(grids.begin(), grids.end());
  Masks masks{device_masks[0].mask(), {}};
  if (device_masks.size() > 1) {
    masks.y = device_masks[1].mask();
  }
  std::vector<Set> const sets = make_sets(c.type, c.extents);
  Extents const few = shrunk(c.product, c.extents, c.p);
  double const flops = live_flops(c, grids);
  int const rounds =
      std::max(1, int(std::ceil(kReplaySeconds * kPeakFlops / (flops * double(sets.size())))));
  int const calls = std::min(rounds, 64) * int(sets.size());
  Problem const first = describe(c.type, c.product, c.extents, sets[0].matrices(), masks);
  Buffer const workspace(workspace_bytes(first, c.choice));
  std::vector<std::unique_ptr<DenseProduct>> const rivals = rivals_of(c);

  Stream const stream;
  auto const calls_of = [&](auto&& call) {
    std::vector<std::function<void(cudaStream_t)>> all;
    for (int i = 0; i < calls; ++i) {
      all.push_back([&, i](cudaStream_t s) { call(sets[i % sets.size()].matrices(), s); });
    }
    return all;
  };
  std::vector<std::unique_ptr<Candidate>> candidates;
  auto const add = [&](auto&& call) {
    candidates.emplace_back(new Candidate{Replay(calls_of(call), stream)});
  };
  for (auto const& rival : rivals) {
    for (Extents const& extents : {c.extents, few}) {
      add([&rival, &c, extents](Matrices const& data, cudaStream_t s) {
        (*rival)(describe(c.type, c.product, extents, data, {}), s);
      });
    }
  }
  add([&](Matrices const& data, cudaStream_t s) {
    Problem const problem = describe(c.type, c.product, c.extents, data, masks);
    check(matmul(problem, c.choice, workspace.data(), s), "sparsedrop::matmul");
  });

  int64_t replays = 0;
  while (state.KeepRunningBatch(calls)) {
    for (auto const& candidate : candidates) {
      candidate->replay.launch(stream);
    }
    check(cudaStreamSynchronize(stream), "a replay");
    for (auto const& candidate : candidates) {
      candidate->seconds += candidate->replay.seconds();
    }
    state.SetIterationTime(candidates.back()->replay.seconds());
    ++replays;
  }
  double const ours = candidates.back()->seconds;
  state.counters["live_TFLOPs"] = flops * double(calls * replays) / ours * 1e-12;
  if (!rivals.empty()) {
    double dense = candidates[0]->seconds;
    double on_few = candidates[1]->seconds;
    for (size_t i = 1; i < rivals.size(); ++i) {
      dense = std::min(dense, candidates[2 * i]->seconds);
      on_few = std::min(on_few, candidates[2 * i + 1]->seconds);
    }
    state.counters["x_dense"] = dense / ours;
    state.counters["of_shrunk"] = flops / dense_flops(few) * on_few / ours;
  }
}

void run(benchmark::State& state, Case const& c) {
  try {
    measure(state, c);
  } catch (std::exception const& error) {
    state.SkipWithError(error.what());
  }
}

}  // namespace
}  // namespace sparsedrop::bench

int main(int argc, char** argv) {
  using namespace sparsedrop::bench;
  for (Case const& c : all_cases()) {
    benchmark::RegisterBenchmark(c.name().c_str(), run, c)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
