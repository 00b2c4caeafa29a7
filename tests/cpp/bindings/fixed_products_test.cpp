// What is kept of dense products that come again, and what happens where cuBLASLt has no way.

#include "bindings/fixed_products.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/fake_blas_lt.hpp"
#include "bindings/host_product.hpp"

namespace sparsedrop {
namespace {

constexpr int kInvalidValue = 7, kNotSupported = 15;
constexpr int kNotInitialized = 1, kExecutionFailed = 13;
constexpr uint32_t kAsAllocated = 256, kBy16Bytes = 16;
constexpr int64_t kBy16 = 4, kByAnElement = 1;  // elements behind what is allocated

// Numbers that start so many elements behind an address as torch allocates it.
struct Lying {
  Lying(std::vector<float> const& values, int64_t offset = 0)
      : room(static_cast<float*>(std::aligned_alloc(
                 kAsAllocated, (values.size() * sizeof(float) / kAsAllocated + 2) * kAsAllocated)),
             std::free),
        data(room.get() + offset),
        count(values.size()) {
    std::copy(values.begin(), values.end(), data);
  }
  std::vector<float> values() const { return {data, data + count}; }

  std::unique_ptr<float, decltype(&std::free)> room;
  float* data;
  size_t count;
};

class FixedProductsTest : public testing::Test {
 protected:
  void SetUp() override {
    fake_blas_lt() = {};
    load_blas_lt(kFakeRelease);
  }

  // One with a bias and rows of 16 bytes.
  DenseProduct product(int64_t offset = 0) {
    a = std::make_unique<Lying>(numbers<float>(3 * 8, 1), offset);
    b = std::make_unique<Lying>(numbers<float>(5 * 8, 2), offset);
    bias = std::make_unique<Lying>(numbers<float>(5, 3), offset);
    out = std::make_unique<Lying>(std::vector<float>(3 * 8, NAN), offset);
    return {3,
            5,
            8,
            {a->data, 8, false},
            {b->data, 8, true},
            DataType::fp32,
            out->data,
            8,
            DataType::fp32,
            2.0,
            0.0,
            bias->data,
            false};
  }

  // `of` by the products, and whether they had a way; it is compared to the host's.
  bool run(DenseProduct const& of) {
    Lying truth(out->values());
    DenseProduct on_host = of;
    on_host.out = truth.data;
    multiply_on_host<float>(on_host);
    bool const is_done = products->run(of, &handle, &workspace, nullptr);
    auto const found = out->values(), wanted = truth.values();
    for (int64_t i = 0; i < of.m; ++i) {
      for (int64_t j = 0; j < of.out_ld; ++j) {
        auto const at = size_t(i * of.out_ld + j);
        bool const is_written = is_done && j < of.n;
        EXPECT_TRUE(is_written ? found[at] == wanted[at] : std::isnan(found[at]) || of.beta != 0)
            << i << ", " << j;
      }
    }
    return is_done;
  }

  int handle = 0, workspace = 0;
  std::unique_ptr<Lying> a, b, bias, out;
  std::unique_ptr<FixedProducts> products = std::make_unique<FixedProducts>();
};

TEST_F(FixedProductsTest, MultipliesHoweverTheMatricesLie) {
  for (bool a_transposed : {false, true}) {
    for (bool b_transposed : {false, true}) {
      for (bool has_bias : {false, true}) {
        for (double beta : {0.0, 1.0}) {
          a = std::make_unique<Lying>(numbers<float>(8 * 12, 1));
          b = std::make_unique<Lying>(numbers<float>(8 * 12, 2));
          bias = std::make_unique<Lying>(numbers<float>(5, 3));
          out = std::make_unique<Lying>(std::vector<float>(3 * 8, beta == 0.0 ? NAN : 4.0f));
          DenseProduct const of{3,
                                5,
                                7,
                                {a->data, 12, a_transposed},
                                {b->data, 12, b_transposed},
                                DataType::fp32,
                                out->data,
                                8,
                                DataType::fp32,
                                2.0,
                                beta,
                                has_bias ? bias->data : nullptr,
                                false};
          EXPECT_TRUE(run(of)) << a_transposed << b_transposed << has_bias << beta;
        }
      }
    }
  }
}

TEST_F(FixedProductsTest, AsksOnceAndReadsAddressesAndAlphaEachTime) {
  for (double alpha : {2.0, 0.5}) {
    DenseProduct of = product();
    of.alpha = alpha;
    EXPECT_TRUE(run(of));
  }
  EXPECT_EQ(fake_blas_lt().finds, 1);
  EXPECT_EQ(fake_blas_lt().handle, &handle);
  EXPECT_EQ(fake_blas_lt().workspace, &workspace);
}

TEST_F(FixedProductsTest, KnowsAWayForEachAlignment) {
  int finds = 0;
  for (int64_t offset : {int64_t(0), kBy16, int64_t(0), kBy16}) {
    EXPECT_TRUE(run(product(offset)));
    if (++finds <= 2) {
      EXPECT_EQ(fake_blas_lt().alignment, offset == 0 ? kAsAllocated : kBy16Bytes);
    }
  }
  EXPECT_EQ(fake_blas_lt().finds, 2);
  EXPECT_FALSE(run(product(kByAnElement)));
  EXPECT_EQ(fake_blas_lt().finds, 2);
}

TEST_F(FixedProductsTest, ABiasThatLiesOtherwiseHasAWayOfItsOwn) {
  Lying const other(numbers<float>(5, 9), kBy16);
  DenseProduct of = product();
  EXPECT_TRUE(run(of));
  of.bias = other.data;
  EXPECT_TRUE(run(of));
  EXPECT_EQ(fake_blas_lt().finds, 2);
}

TEST_F(FixedProductsTest, MultipliesFp32AsItIsToldAtTheTime) {
  constexpr int kCompute32f = 68, kComputeTf32 = 77;
  for (bool tf32 : {false, true, false}) {
    DenseProduct of = product();
    of.tf32 = tf32;
    EXPECT_TRUE(run(of));
    EXPECT_EQ(fake_blas_lt().compute_type, tf32 ? kComputeTf32 : kCompute32f);
  }
  EXPECT_EQ(fake_blas_lt().finds, 2);
}

TEST_F(FixedProductsTest, OtherProductsMakeDoWithTheWorkspaceThatIsThere) {
  fake_blas_lt().wanted_workspace = 4096;
  DenseProduct of = product();
  EXPECT_TRUE(products->prepare(of, &handle));
  EXPECT_EQ(fake_blas_lt().workspace_limit, size_t(32) << 20);
  EXPECT_EQ(products->workspace_bytes(), 4096u);
  fake_blas_lt().wanted_workspace = 1024;
  EXPECT_TRUE(run(product(kBy16)));
  EXPECT_EQ(fake_blas_lt().workspace_limit, 4096u);
  EXPECT_EQ(fake_blas_lt().workspace_bytes, 1024u);
  EXPECT_TRUE(run(product()));
  EXPECT_EQ(fake_blas_lt().workspace_bytes, 4096u);
}

// With room to align its rows first, a product is rounded before the bias is added.
TEST_F(FixedProductsTest, OddRowsWithABiasHaveNoWorkspaceAndInFp32NoWay) {
  fake_blas_lt().wanted_workspace = 4096;
  DenseProduct of = product();
  of.out_ld = 7;
  EXPECT_FALSE(products->prepare(of, &handle));
  EXPECT_EQ(fake_blas_lt().workspace_limit, 0u);
  EXPECT_EQ(products->workspace_bytes(), 0u);
  EXPECT_FALSE(products->run(of, &handle, &workspace, nullptr));
  of.bias = nullptr;
  EXPECT_TRUE(products->prepare(of, &handle));
}

TEST_F(FixedProductsTest, SumsOfSixteenBitsAreAddedUpInFp32) {
  constexpr uint32_t kInResult = 1, kInFp32 = 2;
  DenseProduct of = product();
  products->prepare(of, &handle);
  EXPECT_EQ(fake_blas_lt().reductions, kInResult | kInFp32);
  of.dtype = of.out_dtype = DataType::bf16;
  products->prepare(of, &handle);
  EXPECT_EQ(fake_blas_lt().reductions, kInFp32);
}

TEST_F(FixedProductsTest, WhatHasNoWayIsAskedForOnce) {
  for (auto const& [status, found] :
       {std::pair{kNotSupported, 0}, std::pair{kInvalidValue, 0}, std::pair{0, 0}}) {
    fake_blas_lt() = {};
    fake_blas_lt().find_status = status;
    fake_blas_lt().found = found;
    products = std::make_unique<FixedProducts>();
    EXPECT_FALSE(run(product()));
    EXPECT_FALSE(run(product()));
    EXPECT_EQ(fake_blas_lt().finds, 1);
    EXPECT_EQ(fake_blas_lt().multiplies, 0);
  }
}

TEST_F(FixedProductsTest, WhatCouldNotBeSaidIsAskedAgain) {
  fake_blas_lt().find_status = kNotInitialized;
  EXPECT_FALSE(products->prepare(product(), &handle));
  EXPECT_FALSE(run(product()));
  fake_blas_lt().find_status = 0;
  fake_blas_lt().wanted_workspace = 4096;
  EXPECT_TRUE(run(product()));
  EXPECT_LE(fake_blas_lt().workspace_bytes, products->workspace_bytes());
  EXPECT_EQ(fake_blas_lt().workspace_bytes, 4096u);
}

TEST_F(FixedProductsTest, AWayThatFailsIsLeftToAnother) {
  fake_blas_lt().multiply_status = kExecutionFailed;
  EXPECT_FALSE(run(product()));
  fake_blas_lt().multiply_status = 0;
  EXPECT_FALSE(run(product()));
  EXPECT_EQ(fake_blas_lt().multiplies, 1);
  EXPECT_TRUE(run(product(kBy16)));
}

TEST_F(FixedProductsTest, WhatMayHaveBeenAddedIsNotAddedAgain) {
  DenseProduct of = product();
  of.beta = 1.0;
  of.bias = nullptr;
  fake_blas_lt().multiply_status = kExecutionFailed;
  try {
    products->run(of, &handle, &workspace, nullptr);
    FAIL() << "it should have thrown";
  } catch (std::runtime_error const& error) {
    EXPECT_STREQ(error.what(), "cublasLtMatmul for [3, 8] times [8, 5]: status 13");
  }
  products = std::make_unique<FixedProducts>();
  fake_blas_lt().multiply_status = kNotSupported;
  EXPECT_FALSE(products->run(of, &handle, &workspace, nullptr));
}

TEST_F(FixedProductsTest, KeepsSixteenWays) {
  for (int64_t m = 1; m <= 3; ++m) {
    for (int64_t n = 1; n <= 5; ++n) {
      DenseProduct of = product();
      of.m = m;
      of.n = n;
      EXPECT_TRUE(run(of));
    }
  }
  DenseProduct of = product();
  of.k = 7;
  EXPECT_TRUE(run(of));
  of = product();
  of.k = 6;
  EXPECT_FALSE(run(of));
  EXPECT_EQ(fake_blas_lt().finds, 16);
  EXPECT_EQ(fake_blas_lt().alive, 16 * 4);
  products = nullptr;
  EXPECT_EQ(fake_blas_lt().alive, 0);
}

TEST_F(FixedProductsTest, HasNoWayInFp64) {
  DenseProduct of = product();
  of.dtype = of.out_dtype = DataType::fp64;
  EXPECT_FALSE(products->prepare(of, &handle));
  EXPECT_FALSE(products->run(of, &handle, &workspace, nullptr));
  EXPECT_EQ(fake_blas_lt().finds, 0);
}

}  // namespace
}  // namespace sparsedrop
