// What a feed-forward block does between its products, against the host's doubles.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "common/host_device.hpp"
#include "device_memory.hpp"
#include "elementwise/elements.hpp"
#include "elementwise/unit_map.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {
namespace {

double act(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0.0 ? 0.0 : x;
    case Activation::gelu:
      return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5)));
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return NAN;
}

double slope(Activation activation, double x) {
  if (activation == Activation::relu) {
    return x <= 0.0 ? 0.0 : 1.0;
  }
  double const step = 1e-5;
  return (act(activation, x + step) - act(activation, x - step)) / (2.0 * step);
}

constexpr Blocking kBlockings[] = {{70, 72, 64, 64}, {128, 256, 64, 128}, {33, 8, 7, 8}};

// The value of one element, and of the second result; what is dropped stays as it was.
struct Truth {
  double out;
  double out_b;
};

Truth truth_of(PointwiseKind kind, Activation activation, double a, double b, double grad) {
  switch (kind) {
    case PointwiseKind::activate:
      return {act(activation, a), 0.0};
    case PointwiseKind::activation_grad:
      return {grad * slope(activation, a), 0.0};
    case PointwiseKind::gate:
      return {act(activation, a) * b, 0.0};
    case PointwiseKind::gate_grad:
      return {grad * b * slope(activation, a), grad * act(activation, a)};
    case PointwiseKind::add:
      return {a + b, 0.0};
  }
  return {NAN, NAN};
}

template <class Element>
void compare(PointwiseKind kind, Activation activation, DataType dtype, Blocking const& of) {
  std::mt19937 engine(7);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  int64_t const grid_cols = ceil_div(of.cols, of.block_cols);
  std::vector<uint8_t> live(size_t(ceil_div(of.rows, of.block_rows) * grid_cols));
  for (uint8_t& cell : live) {
    cell = engine() % 2;
  }
  auto const count = size_t(of.rows * of.cols);
  std::vector<Element> given[3];
  for (auto& matrix : given) {
    for (size_t i = 0; i < count; ++i) {
      matrix.push_back(Element(normal(engine)));
    }
  }
  Element* const a = to_device(given[0]);
  Element* const b = to_device(given[1]);
  Element* const grad = to_device(given[2]);
  // In place of the gradient, and of b.
  Pointwise const call{kind, activation, dtype, a, b, grad, grad, b, of, to_device(live)};
  ASSERT_EQ(pointwise(call, nullptr), cudaSuccess);
  std::vector<Element> const out = to_host(grad, count), out_b = to_host(b, count);
  double const tolerance = dtype == DataType::bf16 ? 1.0 / 128 : 1.0 / 1024;
  for (size_t i = 0; i < count; ++i) {
    int64_t const row = int64_t(i) / of.cols, col = int64_t(i) % of.cols;
    Truth truth{float(given[2][i]), float(given[1][i])};
    if (live[size_t(row / of.block_rows * grid_cols + col / of.block_cols)] != 0) {
      Truth const computed =
          truth_of(kind, activation, float(given[0][i]), float(given[1][i]), float(given[2][i]));
      truth.out = computed.out;
      truth.out_b = kind == PointwiseKind::gate_grad ? computed.out_b : truth.out_b;
    }
    ASSERT_NEAR(double(float(out[i])), truth.out, tolerance * (1e-2 + std::abs(truth.out)));
    ASSERT_NEAR(double(float(out_b[i])), truth.out_b, tolerance * (1e-2 + std::abs(truth.out_b)));
  }
}

TEST(Pointwise, IsTheHostsInLiveBlocksAndLeavesTheRest) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "no GPU";
  }
  for (Blocking const& blocking : kBlockings) {
    for (int kind = 0; kind <= int(PointwiseKind::add); ++kind) {
      for (int activation = 0; activation <= int(Activation::gelu_tanh); ++activation) {
        compare<__nv_bfloat16>(PointwiseKind(kind), Activation(activation), DataType::bf16,
                               blocking);
        compare<__half>(PointwiseKind(kind), Activation(activation), DataType::fp16, blocking);
      }
    }
  }
}

// Biases of units: compact matrices of 24 columns, of which the last may be padding.
template <class Element, class Bias>
void compare_biased(PointwiseKind kind, LiveUnits const& units, DataType dtype, DataType bias) {
  constexpr int64_t kRows = 33, kCols = 24, kUnits = 60;
  std::mt19937 engine(7);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<Element> given[3];
  for (auto& matrix : given) {
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      matrix.push_back(Element(normal(engine)));
    }
  }
  std::vector<Bias> biases[2];
  for (auto& own : biases) {
    for (int64_t i = 0; i < kUnits; ++i) {
      own.push_back(Bias(normal(engine)));
    }
  }
  Element* const a = to_device(given[0]);
  Element* const b = to_device(given[1]);
  Element* const grad = to_device(given[2]);
  Pointwise const call{
      kind,   Activation::silu, dtype, a, b, grad, grad, b, {kRows, kCols, 1 << 30, 1 << 30},
      nullptr};
  UnitBiases const of_units{to_device(biases[0]), to_device(biases[1]), bias, units};
  ASSERT_EQ(pointwise(call, of_units, nullptr), cudaSuccess);
  auto const count = size_t(kRows * kCols);
  auto const out = to_host(grad, count), out_b = to_host(b, count);
  double const tolerance = dtype == DataType::bf16 ? 1.0 / 128 : 1.0 / 1024;
  UnitMap const map(units);
  for (size_t i = 0; i < count; ++i) {
    auto const col = int32_t(i % kCols);
    if (col >= units.count) {
      continue;
    }
    auto const unit = size_t(map.unit(col));
    Truth const truth = truth_of(
        kind, Activation::silu, double(float(given[0][i])) + double(float(biases[0][unit])),
        double(float(given[1][i])) + double(float(biases[1][unit])), float(given[2][i]));
    ASSERT_NEAR(double(float(out[i])), truth.out, tolerance * (1e-2 + std::abs(truth.out)));
    if (kind == PointwiseKind::gate_grad) {
      ASSERT_NEAR(double(float(out_b[i])), truth.out_b, tolerance * (1e-2 + std::abs(truth.out_b)));
    }
  }
}

TEST(Pointwise, AddsTheBiasesOfLiveUnits) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : {LiveUnits{24, 1, 8, 24, 0}, LiveUnits{24, 1, 50, 10, 0},
                                 LiveUnits{20, 3, 2, 20, 0}, LiveUnits{1, 8, 59, 1, 0}}) {
    for (int kind = 0; kind < int(PointwiseKind::add); ++kind) {
      auto const own = PointwiseKind(kind);
      compare_biased<__nv_bfloat16, float>(own, units, DataType::bf16, DataType::fp32);
      compare_biased<__nv_bfloat16, __nv_bfloat16>(own, units, DataType::bf16, DataType::bf16);
      compare_biased<__half, __half>(own, units, DataType::fp16, DataType::fp16);
    }
  }
}

// Before the GPU is asked for anything.
TEST(Pointwise, RefusesWhatItCannotDo) {
  alignas(16) static char memory[64];
  Pointwise const good{PointwiseKind::gate_grad,
                       Activation::relu,
                       DataType::bf16,
                       memory,
                       memory,
                       memory,
                       memory,
                       memory,
                       {1, 8, 64, 64},
                       nullptr};
  Pointwise call = good;
  call.dtype = DataType::fp32;
  EXPECT_EQ(pointwise(call, nullptr), cudaErrorInvalidValue);
  call = good;
  call.out_b = nullptr;
  EXPECT_EQ(pointwise(call, nullptr), cudaErrorInvalidValue);
  call = good;
  call.a = memory + 8;
  EXPECT_EQ(pointwise(call, nullptr), cudaErrorInvalidValue);
  call = good;
  call.blocking.cols = 12;
  EXPECT_EQ(pointwise(call, nullptr), cudaErrorInvalidValue);
  call.blocking.rows = 0;
  EXPECT_EQ(pointwise(call, nullptr), cudaSuccess);
  call = good;
  UnitBiases biases{memory, nullptr, DataType::fp16, {8, 1, 0, 8, 0}};
  EXPECT_EQ(pointwise(call, biases, nullptr), cudaErrorInvalidValue);
  biases.dtype = DataType::bf16;
  biases.units.count = biases.units.first_count = 9;
  EXPECT_EQ(pointwise(call, biases, nullptr), cudaErrorInvalidValue);
  biases.units.count = biases.units.first_count = 8;
  call.kind = PointwiseKind::add;
  EXPECT_EQ(pointwise(call, biases, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace sparsedrop
