// Products of which one extent is live, part by part, against the whole in one.

#include "bindings/live_product.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bindings/host_product.hpp"

namespace sparsedrop {
namespace {

constexpr int64_t kUnits = 12, kOther = 5, kRows = 4, kLd = 16;

std::vector<int64_t> live_of(LiveUnits const& units) {
  std::vector<int64_t> found;
  for (int64_t i = 0; i < units.count; ++i) {
    found.push_back(i < units.first_count ? units.first + i * units.step
                                          : units.second + (i - units.first_count) * units.step);
  }
  return found;
}

LiveUnits const kSlice{6, 1, 2, 6, 0};
LiveUnits const kWrapped{6, 1, 9, 3, 0};
LiveUnits const kRowsOfThree{4, 3, 1, 4, 0};

DenseProduct product(double const* a, double const* b, double* out, double beta = 0.0) {
  DenseProduct made{};
  made.a.data = a;
  made.b.data = b;
  made.out = out;
  made.dtype = made.out_dtype = DataType::fp64;
  made.alpha = 2.0;
  made.beta = beta;
  return made;
}

int run(Shape const& shape, LiveUnits const& units, DenseProduct const& whole) {
  auto const parts = parts_of(shape, units, whole);
  for (DenseProduct const& part : parts) {
    multiply_on_host<double>(part);
  }
  return int(parts.size());
}

// x [rows, other] times the live rows of a weight [units, other], into a compact matrix.
TEST(LiveProduct, ReadsLiveRowsOfAWeight) {
  auto const x = numbers<double>(kRows * kOther, 1), weight = numbers<double>(kUnits * kOther, 2);
  for (LiveUnits const& units : {kSlice, kWrapped, kRowsOfThree}) {
    std::vector<double> out(kRows * kLd, -77.0);
    Shape const shape{kRows, units.count, kOther, {kOther}, {kOther, true, true}, {kLd}, Extent::n};
    auto const bias = numbers<double>(units.count, 8);
    DenseProduct whole = product(x.data(), weight.data(), out.data());
    whole.bias = bias.data();
    int const parts = run(shape, units, whole);
    EXPECT_EQ(parts, units.first_count == units.count ? 1 : 2);
    auto const live = live_of(units);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kLd; ++j) {
        double truth = j < units.count ? bias[size_t(j)] : -77.0;
        for (int64_t k = 0; k < kOther && j < units.count; ++k) {
          truth += 2.0 * x[size_t(i * kOther + k)] * weight[size_t(live[size_t(j)] * kOther + k)];
        }
        EXPECT_EQ(out[size_t(i * kLd + j)], truth);
      }
    }
  }
}

// A compact matrix times the live columns of a weight [other, units]: parts are added up, also to
// what is there.
TEST(LiveProduct, AddsUpThePartsOfASum) {
  auto const hidden = numbers<double>(kRows * kLd, 3), weight = numbers<double>(kOther * kUnits, 4);
  for (double beta : {0.0, 1.0}) {
    for (LiveUnits const& units : {kSlice, kWrapped}) {
      std::vector<double> out(kRows * kOther, 3.0);
      Shape const shape{kRows,    kOther,   units.count, {kLd}, {kUnits, true, true},
                        {kOther}, Extent::k};
      auto const bias = numbers<double>(kOther, 9);
      DenseProduct whole = product(hidden.data(), weight.data(), out.data(), beta);
      whole.bias = bias.data();
      run(shape, units, whole);
      auto const live = live_of(units);
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kOther; ++j) {
          double truth = beta * 3.0 + bias[size_t(j)];
          for (int64_t k = 0; k < units.count; ++k) {
            truth +=
                2.0 * hidden[size_t(i * kLd + k)] * weight[size_t(j * kUnits + live[size_t(k)])];
          }
          EXPECT_EQ(out[size_t(i * kOther + j)], truth);
        }
      }
    }
  }
}

// The transpose of a compact matrix times another, into the live rows of a gradient [units, other],
// and the other way round into the live columns of one [other, units].
TEST(LiveProduct, WritesIntoThePlacesOfLiveUnits) {
  auto const hidden = numbers<double>(kRows * kLd, 5), x = numbers<double>(kRows * kOther, 6);
  for (bool by_rows : {true, false}) {
    for (LiveUnits const& units : {kSlice, kWrapped, kRowsOfThree}) {
      if (!by_rows && units.step > 1) {
        continue;
      }
      std::vector<double> out(kUnits * kOther, -77.0);
      Shape const shape = by_rows
                              ? Shape{units.count,           kOther,   kRows, {kLd, true}, {kOther},
                                      {kOther, false, true}, Extent::m}
                              : Shape{kOther, units.count,           kRows,    {kOther, true},
                                      {kLd},  {kUnits, false, true}, Extent::n};
      double const* const a = by_rows ? hidden.data() : x.data();
      double const* const b = by_rows ? x.data() : hidden.data();
      run(shape, units, product(a, b, out.data()));
      std::vector<double> truth(kUnits * kOther, -77.0);
      auto const live = live_of(units);
      for (int64_t i = 0; i < units.count; ++i) {
        for (int64_t j = 0; j < kOther; ++j) {
          double sum = 0.0;
          for (int64_t k = 0; k < kRows; ++k) {
            sum += 2.0 * hidden[size_t(k * kLd + i)] * x[size_t(k * kOther + j)];
          }
          int64_t const unit = live[size_t(i)];
          truth[size_t(by_rows ? unit * kOther + j : j * kUnits + unit)] = sum;
        }
      }
      EXPECT_EQ(out, truth);
    }
  }
}

TEST(LiveProduct, IsOneProductWhereAllIsCompactOrNothingIsLive) {
  Shape shape{4, 6, 5, {5}, {5, true}, {8}, Extent::n};
  DenseProduct const whole = product(nullptr, nullptr, nullptr);
  EXPECT_EQ(parts_of(shape, kWrapped, whole).size(), 1u);
  shape.live = Extent::none;
  EXPECT_EQ(parts_of(shape, {}, whole).size(), 1u);
}

TEST(LiveProduct, RefusesUnitsSideBySideThatAreNoNeighbours) {
  Shape const shape{4, 5, 4, {8}, {12, true, true}, {5}, Extent::k};
  EXPECT_THROW(parts_of(shape, kRowsOfThree, product(nullptr, nullptr, nullptr)),
               std::invalid_argument);
}

}  // namespace
}  // namespace sparsedrop
