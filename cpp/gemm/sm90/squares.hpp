// D is stored in squares of 64x64: from a warp group's registers through shared memory, from where
// the copy engine takes them.

#pragma once

#include "gemm/sm90/config.hpp"

#include "gemm/sm90/barriers.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
struct Squares {
  using Element = typename Traits::Element;
  using Layouts = typename Traits::Layouts;
  using StrideD = typename Traits::template Stride<Layouts::kD>;
  static constexpr int kStore = Traits::kStore;
  static constexpr int kSize = kStore * kStore;
  static constexpr int kValues = kSize / cutlass::NumThreadsPerWarpGroup;

  using Square = cutlass::Array<Element, kValues>;  // one thread's values

  static auto make_tma(Element* d, int32_t m, int32_t n, StrideD stride) {
    return cute::make_tma_copy(
        cute::SM90_TMA_STORE{},
        cute::make_tensor(cute::make_gmem_ptr(d), cute::make_shape(m, n), stride),
        typename Traits::SmemSquare{});
  }

  using TmaD = decltype(make_tma(nullptr, 0, 0, StrideD{}));

  // One thread of a warp group.
  CUTLASS_DEVICE static bool issues() { return threadIdx.x % cutlass::NumThreadsPerWarpGroup == 0; }

  // A thread's values into the square in shared memory.
  CUTLASS_DEVICE static void write(Square& square, Element* at) {
    using namespace cute;
    using StoreMatrix =
        conditional_t<Layouts::kD == Major::MN, SM90_U16x8_STSM_T, SM90_U32x4_STSM_N>;
    auto copy_to_smem = make_tiled_copy_C(Copy_Atom<StoreMatrix, Element>{}, square_mma());
    auto thread_copy = copy_to_smem.get_slice(threadIdx.x % cutlass::NumThreadsPerWarpGroup);
    Tensor values =
        make_tensor(make_rmem_ptr(square.data()),
                    partition_fragment_C(square_mma(), Shape<Int<kStore>, Int<kStore>>{}).layout());
    copy(copy_to_smem, thread_copy.retile_S(values), thread_copy.partition_D(in_smem(at)));
  }

  // The extents of D, and where the square stands in it.
  struct Corner {
    int32_t m;
    int32_t n;
    int32_t row;
    int32_t column;
  };

  // The copy engine takes the square from there, once the whole warp group has written it.
  CUTLASS_DEVICE static void send(TmaD const& tma, Corner const& corner, Element* at,
                                  int warp_group) {
    using namespace cute;
    tma_store_fence();
    meet(warp_group);
    if (issues()) {
      Tensor mD = tma.get_tma_tensor(make_shape(corner.m, corner.n));
      Tensor gD = local_tile(mD, Shape<Int<kStore>, Int<kStore>>{},
                             make_coord(corner.row / kStore, corner.column / kStore));  // (64,64)
      auto block = tma.get_slice(Int<0>{});
      copy(tma, block.partition_S(in_smem(at)), block.partition_D(gD));
      tma_store_arrive();
    }
  }

  // Row and column within the square of each of a thread's values.
  CUTLASS_DEVICE static auto coordinates() {
    using namespace cute;
    return square_mma()
        .get_slice(threadIdx.x % cutlass::NumThreadsPerWarpGroup)
        .partition_C(make_identity_tensor(Shape<Int<kStore>, Int<kStore>>{}));
  }

 private:
  CUTLASS_DEVICE static auto in_smem(Element* at) {
    return cute::make_tensor(cute::make_smem_ptr(at), typename Traits::SmemSquare{});  // (64,64)
  }

  CUTLASS_HOST_DEVICE static auto square_mma() {
    using namespace cute;
    return make_tiled_mma(
        GMMA::ss_op_selector<Element, Element, float, Shape<Int<kStore>, Int<kStore>, Int<64>>>());
  }
};

}  // namespace sparsedrop::sm90
