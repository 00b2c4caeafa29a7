// The named barriers of a CTA, beside the one of __syncthreads().

#pragma once

#include "gemm/sm90/config.hpp"

#include <cutlass/arch/barrier.h>

namespace sparsedrop::sm90 {

enum class Barrier : uint32_t {
  warp_group = 0,  // of the first consumer; one more for each further one
  consumers = kConsumerWarpGroups,
};

// A barrier's assembly does not tell the compiler that it orders memory accesses.
CUTLASS_DEVICE void keep_order() { asm volatile("" ::: "memory"); }

// All threads of one consumer warp group.
CUTLASS_DEVICE void meet(int warp_group) {
  keep_order();
  cutlass::arch::NamedBarrier::sync(cutlass::NumThreadsPerWarpGroup,
                                    uint32_t(Barrier::warp_group) + warp_group);
  keep_order();
}

// All threads of all consumer warp groups.
CUTLASS_DEVICE void meet_all_consumers() {
  keep_order();
  cutlass::arch::NamedBarrier::sync(kConsumerWarpGroups * cutlass::NumThreadsPerWarpGroup,
                                    uint32_t(Barrier::consumers));
  keep_order();
}

}  // namespace sparsedrop::sm90
