// Live units gathered, and whole matrices filled, element by element against the host's.

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

// What stands there before: none of it is among what is filled in.
constexpr float kStale = -77.0f;

template <class Element>
std::vector<Element> stale(int64_t count) {
  return std::vector<Element>(size_t(count), Element(kStale));
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
      {from, from_dtype, kUnits, to[1], to_ld, kOther, units.count, UnitsAlong::cols, 0.5f},
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
                float(given[size_t(other * kUnits + unit)]) / 2);
    }
    for (int64_t i = units.count; i < to_ld; ++i) {
      ASSERT_EQ(float(cols[size_t(other * to_ld + i)]), 0.0f);
    }
  }
  for (int64_t i = 0; i < kUnits * kOther; ++i) {
    ASSERT_EQ(float(all[size_t(i)]), float(given[size_t(i + 1)]));
  }
}

// Rows that are units, and columns that are those of another layer; with padding or without.
template <class From, class Narrow>
void gather_both_and_compare(LiveUnits const& units, LiveUnits const& across, int64_t padding,
                             DataType from_dtype, DataType dtype) {
  std::vector<From> const given = counted<From>(kUnits * kUnits);
  From const* const from = to_device(given);
  int64_t const rows = units.count + padding, cols = across.count + padding;
  int64_t const ld = ceil_div(cols, 8) * 8;
  Narrow* const to = to_device(stale<Narrow>(rows * ld));
  Gathering const array{from, from_dtype, kUnits, to, ld, rows, cols, UnitsAlong::both};
  ASSERT_EQ(gather_units(dtype, units, &array, 1, nullptr, across), cudaSuccess);
  auto const found = to_host(to, size_t(rows * ld));
  UnitMap const map(units), map_across(across);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < ld; ++col) {
      float expected = col < cols ? 0.0f : kStale;
      if (row < units.count && col < across.count) {
        expected =
            float(given[size_t(map.unit(int32_t(row)) * kUnits + map_across.unit(int32_t(col)))]);
      }
      ASSERT_EQ(float(found[size_t(row * ld + col)]), expected) << row << ", " << col;
    }
  }
}

TEST(GatherUnits, CopiesWhatLivesAlongBothExtents) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : kLive) {
    for (LiveUnits const& across : kLive) {
      for (int64_t const padding : {0, 4, 5}) {
        auto const compare = [&](auto from, DataType from_dtype, auto to, DataType dtype) {
          gather_both_and_compare<decltype(from), decltype(to)>(units, across, padding, from_dtype,
                                                                dtype);
        };
        compare(float(), DataType::fp32, __nv_bfloat16(), DataType::bf16);
        compare(__half(), DataType::fp16, __half(), DataType::fp16);
      }
    }
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
    gather_and_compare<float, float>(units, DataType::fp32, DataType::fp32);
  }
}

// By rows, by columns twice, the second time with half the values, and a vector.
template <class Element, class Live>
void fill_and_compare(LiveUnits const& units, DataType dtype, DataType live_dtype, bool has_live,
                      Dropped dropped) {
  std::vector<Live> const given = counted<Live>(units.count * kOther);
  Live const* const live = has_live ? to_device(given) : nullptr;
  Element* const to[] = {
      to_device(stale<Element>(kUnits * kOther)), to_device(stale<Element>(kUnits * kOther)),
      to_device(stale<Element>(kUnits * kOther)), to_device(stale<Element>(kUnits))};
  auto const filling = [&](int i, int64_t rows, int64_t cols, UnitsAlong along, float factor) {
    return Filling{to[i], dtype, rows, cols, along, live, live_dtype, factor, dropped};
  };
  Filling const arrays[] = {filling(0, kUnits, kOther, UnitsAlong::rows, 1.0f),
                            filling(1, kOther, kUnits, UnitsAlong::cols, 1.0f),
                            filling(2, kOther, kUnits, UnitsAlong::cols, 0.5f),
                            filling(3, 1, kUnits, UnitsAlong::cols, 1.0f)};
  ASSERT_EQ(fill_units(units, arrays, 4, nullptr), cudaSuccess);
  auto const rows = to_host(to[0], size_t(kUnits * kOther));
  auto const cols = to_host(to[1], size_t(kUnits * kOther));
  auto const halves = to_host(to[2], size_t(kUnits * kOther));
  auto const vector = to_host(to[3], size_t(kUnits));
  float const rest = dropped == Dropped::zeroed ? 0.0f : kStale;
  UnitMap const map(units);
  for (int64_t unit = 0; unit < kUnits; ++unit) {
    int32_t const place = map.place(int32_t(unit));
    auto const expected = [&](int64_t from, float factor) {
      if (place < 0) {
        return rest;
      }
      return has_live ? float(given[size_t(from)]) * factor : kStale;
    };
    for (int64_t other = 0; other < kOther; ++other) {
      auto const at_col = size_t(other * kUnits + unit);
      int64_t const in_cols = other * units.count + place;
      ASSERT_EQ(float(rows[size_t(unit * kOther + other)]), expected(place * kOther + other, 1.0f));
      ASSERT_EQ(float(cols[at_col]), expected(in_cols, 1.0f));
      ASSERT_EQ(float(halves[at_col]), expected(in_cols, 0.5f));
    }
    ASSERT_EQ(float(vector[size_t(unit)]), expected(place, 1.0f));
  }
}

TEST(FillUnits, PlacesWhatLivesAndZeroesTheRest) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : kLive) {
    for (Dropped const dropped : {Dropped::zeroed, Dropped::kept}) {
      for (bool const has_live : {false, true}) {
        auto const compare = [&](auto element, DataType dtype, auto live, DataType live_dtype) {
          fill_and_compare<decltype(element), decltype(live)>(units, dtype, live_dtype, has_live,
                                                              dropped);
        };
        compare(__nv_bfloat16(), DataType::bf16, float(), DataType::fp32);
        compare(__nv_bfloat16(), DataType::bf16, __nv_bfloat16(), DataType::bf16);
        compare(__half(), DataType::fp16, float(), DataType::fp32);
        compare(__half(), DataType::fp16, __half(), DataType::fp16);
        compare(float(), DataType::fp32, float(), DataType::fp32);
        compare(float(), DataType::fp32, __nv_bfloat16(), DataType::bf16);
        compare(float(), DataType::fp32, __half(), DataType::fp16);
      }
    }
  }
}

// From a compact matrix with gaps or without.
template <class Element, class Live>
void fill_both_and_compare(LiveUnits const& units, LiveUnits const& across, int64_t live_ld,
                           DataType dtype, DataType live_dtype) {
  int64_t const ld = live_ld == 0 ? across.count : live_ld;
  std::vector<Live> const given = counted<Live>(units.count * ld);
  Element* const to = to_device(stale<Element>(kUnits * kUnits));
  Filling const array{to,         dtype, kUnits, kUnits, UnitsAlong::both, to_device(given),
                      live_dtype, 0.5f,  {},     live_ld};
  ASSERT_EQ(fill_units(units, &array, 1, nullptr, across), cudaSuccess);
  auto const found = to_host(to, size_t(kUnits * kUnits));
  UnitMap const map(units), map_across(across);
  for (int64_t row = 0; row < kUnits; ++row) {
    for (int64_t col = 0; col < kUnits; ++col) {
      int64_t const place = map.place(int32_t(row)), other = map_across.place(int32_t(col));
      float const expected =
          place < 0 || other < 0 ? 0.0f : float(given[size_t(place * ld + other)]) / 2;
      ASSERT_EQ(float(found[size_t(row * kUnits + col)]), expected) << row << ", " << col;
    }
  }
}

TEST(FillUnits, PlacesWhatLivesAlongBothExtents) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU";
  }
  for (LiveUnits const& units : kLive) {
    for (LiveUnits const& across : kLive) {
      for (int64_t const live_ld : {0, 24, 25}) {
        fill_both_and_compare<__nv_bfloat16, __nv_bfloat16>(units, across, live_ld, DataType::bf16,
                                                            DataType::bf16);
        fill_both_and_compare<float, __half>(units, across, live_ld, DataType::fp32,
                                             DataType::fp16);
      }
    }
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
  array = good;
  array.along = UnitsAlong::both;
  EXPECT_EQ(gather_units(DataType::bf16, units, &array, 1, nullptr, {9, 1, 0, 9, 0}),
            cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::bf16, units, &good, 1, nullptr, {4, 0, 0, 4, 0}),
            cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::fp64, units, &good, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::bf16, {4, 0, 0, 4, 0}, &good, 1, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(gather_units(DataType::bf16, units, &good, 0, nullptr), cudaSuccess);
  Filling filling{memory, DataType::bf16, 4, 8, UnitsAlong::neither};
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.along = UnitsAlong::rows;
  filling.live_ld = 7;
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.live_ld = 0;
  filling.dtype = DataType::fp64;
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.dtype = DataType::fp32;
  filling.live = memory;
  filling.live_dtype = DataType::fp64;
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.dtype = DataType::bf16;
  filling.live_dtype = DataType::fp16;
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.to = nullptr;
  filling.live_dtype = DataType::bf16;
  EXPECT_EQ(fill_units(units, &filling, 1, nullptr), cudaErrorInvalidValue);
  filling.to = memory;
  EXPECT_EQ(fill_units({4, 0, 0, 4, 0}, &filling, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(fill_units(units, &filling, 0, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace sparsedrop
