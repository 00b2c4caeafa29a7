// The instructions of 8.0 that C++ has no words for, by addresses in shared memory.

#pragma once

#include <cute/arch/mma_sm80.hpp>

#include <cstdint>

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include "common/host_device.hpp"

namespace sparsedrop::sm80 {

// It is read where it is used, and what follows from it is worked out there: the registers of a
// tile's accumulators leave none to keep it in.
SPARSEDROP_DEVICE int32_t thread_id() {
  int32_t id;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
  return id;
}

SPARSEDROP_DEVICE uint32_t shared_address(void const* data) {
  return uint32_t(__cvta_generic_to_shared(data));
}

// 16 bytes from global to shared memory, past L1; zeros, and nothing is read, where not
// `is_inside`.
SPARSEDROP_DEVICE void copy_chunk(uint32_t to, void const* from, bool is_inside) {
  int const bytes = is_inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(from), "r"(bytes));
}

SPARSEDROP_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;"); }

// Until all groups of this thread's copies but the newest `kNewest` have landed.
template <int kNewest>
SPARSEDROP_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kNewest));
}

SPARSEDROP_DEVICE void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

SPARSEDROP_DEVICE void load_transposed(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

SPARSEDROP_DEVICE uint32_t load_word(uint32_t from) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from));
  return word;
}

// The 8x8 matrix of 16-bit elements of which lane l has row l / 4, columns 2 (l % 4) and the next.
SPARSEDROP_DEVICE uint32_t transpose_matrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// To the nearest: mma.sync cuts off what tf32 has no bits for.
SPARSEDROP_DEVICE uint32_t round_to_tf32(uint32_t fp32) {
  uint32_t tf32;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(tf32) : "f"(__uint_as_float(fp32)));
  return tf32;
}

template <class Element>
struct MmaOf;
template <>
struct MmaOf<cutlass::bfloat16_t> {
  using Type = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};
template <>
struct MmaOf<cutlass::half_t> {
  using Type = cute::SM80_16x8x16_F32F16F16F32_TN;
};
template <>
struct MmaOf<float> {
  using Type = cute::SM80_16x8x8_F32TF32TF32F32_TN;
};

}  // namespace sparsedrop::sm80
