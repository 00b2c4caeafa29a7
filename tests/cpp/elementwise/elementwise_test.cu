// Masked copies and roundings, element by element against the host's.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "device_memory.hpp"
#include "elementwise/elements.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

bool has_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

struct Shape {
  Blocking blocking;
  int64_t in_ld;
  int64_t out_ld;
};

// NaN stands in what is dropped, and a number of its own behind the ends of the rows.
template <class In, class Out>
void copy_and_compare(Shape const& shape, DataType in_dtype, DataType out_dtype) {
  Blocking const& of = shape.blocking;
  int64_t const grid_cols = ceil_div(of.cols, of.block_cols);
  std::mt19937 engine(7);
  std::vector<uint8_t> live(size_t(ceil_div(of.rows, of.block_rows) * grid_cols));
  for (uint8_t& cell : live) {
    cell = engine() % 2;
  }
  auto const is_live = [&](int64_t row, int64_t col) {
    return live[size_t(row / of.block_rows * grid_cols + col / of.block_cols)] != 0;
  };
  std::vector<In> in(size_t(of.rows * shape.in_ld));
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int64_t col = 0; col < shape.in_ld; ++col) {
      bool const is_kept = col < of.cols && is_live(row, col);
      in[size_t(row * shape.in_ld + col)] = In(is_kept ? float(int(engine() % 33) - 16) : NAN);
    }
  }
  Out* const out = to_device(std::vector<Out>(size_t(of.rows * shape.out_ld), Out(-77.0f)));
  MaskedCopy const copy{in_dtype, out_dtype,       to_device(in), shape.in_ld, out, shape.out_ld,
                        of,       to_device(live), grid_cols,     1,           0.5};
  ASSERT_EQ(masked_copy(copy, nullptr), cudaSuccess);
  std::vector<Out> const found = to_host(out, size_t(of.rows * shape.out_ld));
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int64_t col = 0; col < shape.out_ld; ++col) {
      double truth = -77.0;
      if (col < of.cols) {
        truth = is_live(row, col) ? 0.5 * double(in[size_t(row * shape.in_ld + col)]) : 0.0;
      }
      ASSERT_EQ(double(found[size_t(row * shape.out_ld + col)]), truth)
          << "row " << row << ", column " << col;
    }
  }
}

TEST(MaskedCopy, DropsScalesAndRounds) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (Shape const& shape : {Shape{{256, 512, 128, 128}, 512, 512}, Shape{{70, 80, 7, 13}, 80, 80},
                             Shape{{33, 65, 32, 32}, 65, 65}, Shape{{1, 8, 64, 64}, 16, 24},
                             Shape{{130, 264, 64, 4}, 272, 264}}) {
    copy_and_compare<__nv_bfloat16, __nv_bfloat16>(shape, DataType::bf16, DataType::bf16);
    copy_and_compare<__half, float>(shape, DataType::fp16, DataType::fp32);
    copy_and_compare<float, __nv_bfloat16>(shape, DataType::fp32, DataType::bf16);
    copy_and_compare<float, __half>(shape, DataType::fp32, DataType::fp16);
    copy_and_compare<float, float>(shape, DataType::fp32, DataType::fp32);
    copy_and_compare<double, double>(shape, DataType::fp64, DataType::fp64);
  }
}

// As if the grid had been drawn before; the same grid is left behind.
TEST(MaskedCopy, DrawsItsGrid) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (Blocking const& of :
       {Blocking{300, 512, 128, 128}, Blocking{70, 80, 7, 13}, Blocking{33, 65, 32, 32},
        Blocking{130, 264, 1, 4}, Blocking{5000, 16, 64, 8}}) {
    int64_t const grid_cols = ceil_div(of.cols, of.block_cols);
    auto const blocks = size_t(ceil_div(of.rows, of.block_rows) * grid_cols);
    auto const elements = size_t(of.rows * of.cols);
    BernoulliDraw const draw{0.6, 1234567, 40};
    float* const in = to_device(std::vector<float>(elements, 2.0f));
    auto* const given = to_device(std::vector<uint8_t>(blocks, 7));
    auto* const drawn = to_device(std::vector<uint8_t>(blocks, 7));
    float *const expected = to_device(std::vector<float>(elements)), *const out = to_device(
                                                                         std::vector<float>(
                                                                             elements));
    ASSERT_EQ(bernoulli_mask(draw, of, given, nullptr, nullptr, nullptr), cudaSuccess);
    MaskedCopy copy{DataType::fp32, DataType::fp32, in, of.cols, expected, of.cols, of,
                    given,          grid_cols,      1,  3.0};
    ASSERT_EQ(masked_copy(copy, nullptr), cudaSuccess);
    copy.out = out;
    copy.live = nullptr;
    copy.drawn = drawn;
    copy.draw = draw;
    ASSERT_EQ(masked_copy(copy, nullptr), cudaSuccess);
    EXPECT_EQ(to_host(drawn, blocks), to_host(given, blocks));
    EXPECT_EQ(to_host(out, elements), to_host(expected, elements));
  }
}

TEST(MaskedCopy, RepeatsARowWithoutAMask) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t kRows = 50, kCols = 24;
  std::vector<float> row;
  for (int64_t col = 0; col < kCols; ++col) {
    row.push_back(float(col) / 4);
  }
  auto* const out = to_device(std::vector<__half>(kRows * kCols));
  MaskedCopy const copy{DataType::fp32,
                        DataType::fp16,
                        to_device(row),
                        0,
                        out,
                        kCols,
                        {kRows, kCols, 1, 1},
                        nullptr,
                        0,
                        0,
                        1.0};
  ASSERT_EQ(masked_copy(copy, nullptr), cudaSuccess);
  std::vector<__half> const found = to_host(out, kRows * kCols);
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(float(found[i]), row[i % kCols]);
  }
}

TEST(RoundTo, RoundsSeveralArraysOfAnyLength) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  std::vector<float> from;
  for (int i = 0; i < 1003; ++i) {
    from.push_back(float(i) / 7);
  }
  constexpr int64_t kCounts[] = {1003, 5, 0};
  __half* to[] = {to_device(std::vector<__half>(1003)), to_device(std::vector<__half>(8)),
                  to_device(std::vector<__half>(8))};
  float* const given = to_device(from);
  Rounding arrays[3];
  for (int i = 0; i < 3; ++i) {
    arrays[i] = {given, DataType::fp32, to[i], kCounts[i]};
  }
  ASSERT_EQ(round_to(DataType::fp16, arrays, 3, nullptr), cudaSuccess);
  std::vector<__half> const all = to_host(to[0], 1003), few = to_host(to[1], 8);
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(float(all[i]), float(__half(from[i])));
  }
  for (size_t i = 0; i < few.size(); ++i) {
    ASSERT_EQ(float(few[i]), i < 5 ? float(__half(from[i])) : 0.0f);
  }
}

TEST(RoundTo, ScalesArraysOfEitherType) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr size_t kCount = 77;
  std::vector<float> wide;
  std::vector<__half> narrow;
  for (size_t i = 0; i < kCount; ++i) {
    wide.push_back(float(i) / 7);
    narrow.push_back(__half(float(i) / 4));
  }
  __half* to[] = {to_device(std::vector<__half>(kCount)), to_device(std::vector<__half>(kCount))};
  Rounding const arrays[] = {{to_device(wide), DataType::fp32, to[0], kCount, 1.5f},
                             {to_device(narrow), DataType::fp16, to[1], kCount, 2.0f}};
  ASSERT_EQ(round_to(DataType::fp16, arrays, 2, nullptr), cudaSuccess);
  std::vector<__half> const of_wide = to_host(to[0], kCount), of_narrow = to_host(to[1], kCount);
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(float(of_wide[i]), float(__half(1.5f * wide[i])));
    ASSERT_EQ(float(of_narrow[i]), 2.0f * float(narrow[i]));
  }
}

// Before the GPU is asked for anything.
TEST(Elementwise, RefusesWhatItCannotDo) {
  alignas(16) static char memory[64];
  MaskedCopy copy{DataType::bf16, DataType::bf16, memory, 8, memory, 8,
                  {1, 8, 1, 1},   nullptr,        0,      0, 1.0};
  copy.out_dtype = DataType::fp16;
  EXPECT_EQ(masked_copy(copy, nullptr), cudaErrorInvalidValue);
  copy.out_dtype = DataType::bf16;
  copy.out_ld = 4;
  EXPECT_EQ(masked_copy(copy, nullptr), cudaErrorInvalidValue);
  copy.out_ld = 8;
  copy.blocking.block_cols = 0;
  EXPECT_EQ(masked_copy(copy, nullptr), cudaErrorInvalidValue);
  copy.blocking.block_cols = 1;
  copy.draw.keep = 1.5;
  EXPECT_EQ(masked_copy(copy, nullptr), cudaErrorInvalidValue);
  Rounding const misplaced{memory + 4, DataType::fp32, memory, 1};
  Rounding const foreign{memory, DataType::fp64, memory, 1};
  EXPECT_EQ(round_to(DataType::bf16, &foreign, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(round_to(DataType::bf16, &misplaced, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(round_to(DataType::fp32, &misplaced, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace sparsedrop
