// Live units gathered, and what is dropped filled, element by element against the host's.

#include <gtest/gtest.h>

#include <vector>

#include "device_memory.hpp"
#include "elementwise/elements.hpp"
#include "elementwise/unit_map.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {
namespace {

bool has_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

constexpr int64_t kUnits = 40, kOther = 24;

LiveUnits const kLive[] = {{24, 1, 8, 24, 0}, {24, 1, 32, 8, 0}, {11, 1, 35, 5, 0},
                           {20, 2, 1, 20, 0}, {13, 3, 1, 13, 0}, {1, 8, 39, 1, 0}};

template <class From>
std::vector<From> counted(int64_t count) {
  std::vector<From> found;
  for (int64_t i = 0; i < count; ++i) {
    found.push_back(From(float(i % 251)));
  }
  return found;
}

// One matrix of each kind: rows, columns, and all of one, which starts at an odd address.
template <class From, class Narrow>
void gather_and_compare(LiveUnits const& units, DataType from_dtype, DataType dtype) {
  std::vector<From> const given = counted<From>(kUnits * kOther + 1);
  From* const from = to_device(given);
  int64_t const to_ld = ceil_div(units.count, 8) * 8;
  Narrow* const to[] = {to_device(std::vector<Narrow>(size_t(kUnits * kOther))),
                        to_device(std::vector<Narrow>(size_t(kOther * to_ld))),
                        to_device(std::vector<Narrow>(size_t(kUnits * kOther)))};
  Gathering const arrays[] = {
      {from, from_dtype, kOther, to[0], kOther, units.count, kOther, UnitsAlong::rows},
      {from, from_dtype, kUnits, to[1], to_ld, kOther, units.count, UnitsAlong::cols},
      {from + 1, from_dtype, kOther, to[2], kOther, kUnits, kOther, UnitsAlong::neither}};
  ASSERT_EQ(gather_units(dtype, units, arrays, 3, nullptr), cudaSuccess);
  auto const rows = to_host(to[0], size_t(kUnits * kOther));
  auto const cols = to_host(to[1], size_t(kOther * to_ld));
  auto const all = to_host(to[2], size_t(kUnits * kOther));
  UnitMap const map(units);
  for (int64_t other = 0; other < kOther; ++other) {
    for (int64_t i = 0; i < units.count; ++i) {
      int64_t const unit = map.unit(int32_t(i));
      ASSERT_EQ(float(rows[size_t(i * kOther + other)]),
                float(given[size_t(unit * kOther + other)]));
      ASSERT_EQ(float(cols[size_t(other * to_ld + i)]),
                float(given[size_t(other * kUnits + unit)]));
    }
    for (int64_t i = units.count; i < to_ld; ++i) {
      ASSERT_EQ(float(cols[size_t(other * to_ld + i)]), 0.0f);
    }
  }
  for (int64_t i = 0; i < kUnits * kOther; ++i) {
    ASSERT_EQ(float(all[size_t(i)]), float(given[size_t(i + 1)]));
  }
}

TEST(GatherUnits, CopiesWhatLives) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : kLive) {
    gather_and_compare<float, __nv_bfloat16>(units, DataType::fp32, DataType::bf16);
    gather_and_compare<float, __half>(units, DataType::fp32, DataType::fp16);
    gather_and_compare<__half, __half>(units, DataType::fp16, DataType::fp16);
  }
}

template <class Element>
void fill_and_compare(LiveUnits const& units, DataType dtype) {
  std::vector<Element> const before = counted<Element>(kUnits * kOther);
  Element* const to[] = {to_device(before), to_device(before),
                         to_device(std::vector<Element>(size_t(kUnits), Element(-77.0f)))};
  std::vector<float> sums;
  for (int64_t i = 0; i < units.count; ++i) {
    sums.push_back(float(i) / 4);
  }
  Filling const arrays[] = {{to[0], dtype, kUnits, kOther, UnitsAlong::rows, nullptr},
                            {to[1], dtype, kOther, kUnits, UnitsAlong::cols, nullptr},
                            {to[2], dtype, 1, kUnits, UnitsAlong::cols, to_device(sums)}};
  ASSERT_EQ(fill_dropped(units, arrays, 3, nullptr), cudaSuccess);
  auto const rows = to_host(to[0], size_t(kUnits * kOther));
  auto const cols = to_host(to[1], size_t(kUnits * kOther));
  auto const vector = to_host(to[2], size_t(kUnits));
  UnitMap const map(units);
  for (int64_t unit = 0; unit < kUnits; ++unit) {
    int32_t const place = map.place(int32_t(unit));
    for (int64_t other = 0; other < kOther; ++other) {
      auto const at_row = size_t(unit * kOther + other), at_col = size_t(other * kUnits + unit);
      ASSERT_EQ(float(rows[at_row]), place < 0 ? 0.0f : float(before[at_row]));
      ASSERT_EQ(float(cols[at_col]), place < 0 ? 0.0f : float(before[at_col]));
    }
    ASSERT_EQ(float(vector[size_t(unit)]), place < 0 ? 0.0f : sums[size_t(place)]);
  }
}

TEST(FillDropped, ZeroesTheRestAndPlacesSums) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : kLive) {
    fill_and_compare<__nv_bfloat16>(units, DataType::bf16);
    fill_and_compare<__half>(units, DataType::fp16);
    fill_and_compare<float>(units, DataType::fp32);
  }
}

// Before the GPU is asked for anything.
TEST(LiveUnits, RefuseWhatCannotBe) {
  alignas(16) static char memory[64];
  LiveUnits const units{4, 1, 0, 4, 0};
  Gathering const good{memory, DataType::fp32, 8, memory, 8, 4, 8, UnitsAlong::rows};
  Gathering array = good;
  array.rows = 3;
  EXPECT_EQ(gather_units(DataType::bf16, units, &array, 1, nullptr), cudaErrorInvalidValue);
  array = good;
  array.from_dtype = DataType::fp16;
  EXPECT_EQ(gather_units(DataType::bf16, units, &array, 1, nullptr), cudaErrorInvalidValue);
  array = good;
  array.to_ld = 4;
  EXPECT_EQ(gather_units(DataType::bf16, units, &array, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::fp32, units, &good, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::bf16, {4, 0, 0, 4, 0}, &good, 1, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::bf16, units, &good, 0, nullptr), cudaSuccess);
  Filling filling{memory, DataType::bf16,   2,
                  8,      UnitsAlong::cols, reinterpret_cast<float const*>(memory)};
  EXPECT_EQ(fill_dropped(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.live = nullptr;
  filling.along = UnitsAlong::neither;
  EXPECT_EQ(fill_dropped(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.along = UnitsAlong::rows;
  filling.dtype = DataType::fp64;
  EXPECT_EQ(fill_dropped(units, &filling, 1, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace sparsedrop
