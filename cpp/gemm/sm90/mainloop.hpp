// Loads the live K tiles of an output tile and multiplies them.

#pragma once

#include "gemm/sm90/config.hpp"

#include "mask/k_tiles.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
struct Mainloop {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using Layouts = typename Traits::Layouts;
  using Pipeline = cutlass::PipelineTmaAsync<Config::kStages>;
  using State = cutlass::PipelineState<Config::kStages>;
  using StrideA = typename Traits::template Stride<Layouts::kA>;
  using StrideB = typename Traits::template Stride<Layouts::kB>;

  struct SharedStorage {
    alignas(1024) cute::array<Element, cute::cosize_v<typename Traits::SmemA>> a;
    alignas(1024) cute::array<Element, cute::cosize_v<typename Traits::SmemB>> b;
  };

  struct Arguments {
    Element const* a;
    StrideA a_stride;
    Element const* b;
    StrideB b_stride;
    int32_t m;
    int32_t n;
    int32_t k;
  };

  static auto make_tma_a(Element const* a, int32_t m, int32_t k, StrideA stride) {
    return cute::make_tma_copy(
        cute::SM90_TMA_LOAD{},
        cute::make_tensor(cute::make_gmem_ptr(a), cute::make_shape(m, k), stride),
        typename Traits::SmemA{}(cute::_, cute::_, cute::Int<0>{}));
  }
  static auto make_tma_b(Element const* b, int32_t n, int32_t k, StrideB stride) {
    return cute::make_tma_copy(
        cute::SM90_TMA_LOAD{},
        cute::make_tensor(cute::make_gmem_ptr(b), cute::make_shape(n, k), stride),
        typename Traits::SmemBSlots{}(cute::_, cute::_, cute::Int<0>{}));
  }

  struct Params {
    decltype(make_tma_a(nullptr, 0, 0, StrideA{})) tma_a;
    decltype(make_tma_b(nullptr, 0, 0, StrideB{})) tma_b;
    int32_t m;
    int32_t n;
    int32_t k;
  };

  static Params to_underlying_arguments(Arguments const& args) {
    return {make_tma_a(args.a, args.m, args.k, args.a_stride),
            make_tma_b(args.b, args.n, args.k, args.b_stride), args.m, args.n, args.k};
  }

  CUTLASS_DEVICE static void prefetch(Params const& params) {
    cute::prefetch_tma_descriptor(params.tma_a.get_tma_descriptor());
    cute::prefetch_tma_descriptor(params.tma_b.get_tma_descriptor());
  }

  CUTLASS_DEVICE static Pipeline make_pipeline(typename Pipeline::SharedStorage& shared,
                                               int warp_group, bool loads) {
    typename Pipeline::Params params;
    params.transaction_bytes = Traits::kStageBytes;
    params.role =
        warp_group == 0 ? Pipeline::ThreadCategory::Producer : Pipeline::ThreadCategory::Consumer;
    params.is_leader = loads;
    // One arrival a warp for each stage.
    params.num_consumers = kConsumerWarpGroups * cutlass::NumWarpsPerWarpGroup;
    return Pipeline(shared, params, cute::Shape<cute::_1, cute::_1, cute::_1>{});
  }

  // One thread issues the loads of the K tiles that an iterator gives and returns the state behind
  // them. `begun()` is called for each K tile.
  template <class KTileIterator, class Begun>
  CUTLASS_DEVICE static State load(Params const& params, TileRecord const& record,
                                   KTileIterator k_tiles, Pipeline& pipeline, State write,
                                   SharedStorage& shared, Begun const& begun) {
    using namespace cute;
    Tensor sA = make_tensor(make_smem_ptr(shared.a.data()), typename Traits::SmemA{});
    Tensor sB = make_tensor(make_smem_ptr(shared.b.data()), typename Traits::SmemBSlots{});

    Tensor mA = params.tma_a.get_tma_tensor(make_shape(params.m, params.k));  // (m,k)
    Tensor mB = params.tma_b.get_tma_tensor(make_shape(params.n, params.k));  // (n,k)
    Tensor gA = local_tile(mA, Shape<typename Traits::TileM, typename Traits::TileK>{},
                           make_coord(record.m, _));  // (M,K,k)
    Tensor gB = local_tile(mB, Shape<typename Traits::SlotN, typename Traits::TileK>{},
                           make_coord(_, _));  // (SLOT_N,K,n,k)

    auto [tAgA, tAsA] = tma_partition(params.tma_a, Int<0>{}, Layout<_1>{}, group_modes<0, 2>(sA),
                                      group_modes<0, 2>(gA));  // (TMA,k), (TMA,PIPE)
    auto [tBgB, tBsB] = tma_partition(params.tma_b, Int<0>{}, Layout<_1>{}, group_modes<0, 2>(sB),
                                      group_modes<0, 2>(gB));  // (TMA,n,k), (TMA,SLOT*PIPE)

    for (int32_t k_tile = k_tiles.next(); k_tile != kNoKTile; k_tile = k_tiles.next()) {
      pipeline.producer_acquire(write);
      auto* barrier = pipeline.producer_get_barrier(write);
      int32_t const stage = write.index();
      copy(params.tma_a.with(*barrier), tAgA(_, k_tile), tAsA(_, stage));
      CUTLASS_PRAGMA_UNROLL
      for (int s = 0; s < Config::kSlots; ++s) {
        if (record.slot[s] != kNoSlot) {
          copy(params.tma_b.with(*barrier), tBgB(_, record.slot[s], k_tile),
               tBsB(_, stage * Config::kSlots + s));
        } else {
          // The stage waits for the bytes of all slots.
          cutlass::arch::ClusterTransactionBarrier::complete_transaction(
              reinterpret_cast<uint64_t*>(barrier), 0, Traits::kSlotBytes);
        }
      }
      ++write;
      begun();
    }
    return write;
  }

  // A consumer warp group adds up its share of one output tile, from the first registers of `acc`
  // on. While a K tile is multiplied, `meanwhile()` is called.
  template <class Accumulator, class Work>
  CUTLASS_DEVICE static State mma(TileRecord const& record, Pipeline& pipeline, State read,
                                  Accumulator& acc, int warp_group, SharedStorage& shared,
                                  Work const& meanwhile) {
    using namespace cute;
    using WarpGroupMma = typename Traits::WarpGroupMma;
    Tensor sA = make_tensor(make_smem_ptr(shared.a.data()), typename Traits::SmemA{});
    // With zeros to start from, an output tile without live K tiles needs no case of its own.
    clear(acc);
    if constexpr (Config::kHasParallelSlots) {
      if (Config::slot_of(record, warp_group, 0) == kNoSlot) {
        return pass_by(record.k_tiles, pipeline, read);
      }
      Tensor sB = make_tensor(make_smem_ptr(shared.b.data()), typename Traits::SmemBSlots{});
      return multiply<WarpGroupMma>(record.k_tiles, pipeline, read, sA, sB,
                                    typename Traits::Slots{}, Config::first_slot(warp_group), acc,
                                    warp_group, meanwhile);
    } else {
      Tensor sB = make_tensor(make_smem_ptr(shared.b.data()), typename Traits::SmemB{});
      if (record.slot[Config::kSlots - 1] != kNoSlot) {
        return multiply<WarpGroupMma>(record.k_tiles, pipeline, read, sA, sB, Int<1>{}, 0, acc,
                                      warp_group, meanwhile);
      }
      using RestMma = typename Traits::RestMma;
      using RestN = typename Traits::RestN;
      Tensor rest_sB = local_tile(sB, Shape<RestN, typename Traits::TileK>{}, make_coord(0, 0, _));
      Tensor rest_acc = make_tensor(
          acc.data(),
          partition_fragment_C(RestMma{}, Shape<typename Traits::TileM, RestN>{}).layout());
      return multiply<RestMma>(record.k_tiles, pipeline, read, sA, rest_sB, Int<1>{}, 0, rest_acc,
                               warp_group, meanwhile);
    }
  }

 private:
  // A warp group without a slot lets the next `k_tiles` stages go.
  CUTLASS_DEVICE static State pass_by(int32_t k_tiles, Pipeline& pipeline, State read) {
    for (int32_t i = 0; i < k_tiles; ++i) {
      pipeline.consumer_wait(read);
      if (threadIdx.x % cutlass::NumThreadsPerWarp == 0) {
        pipeline.consumer_release(read);
      }
      ++read;
    }
    return read;
  }

  // acc += A B over the next `k_tiles` stages; stage s of B is sB(_, _, s * b_step + b_first).
  template <class Mma, class SmemA, class SmemB, class Step, class Accumulator, class Work>
  CUTLASS_DEVICE static State multiply(int32_t k_tiles, Pipeline& pipeline, State read,
                                       SmemA const& sA, SmemB const& sB, Step b_step, int b_first,
                                       Accumulator& acc, int warp_group, Work const& meanwhile) {
    using namespace cute;
    Mma mma;
    auto thread_mma =
        mma.get_slice(Config::row_group(warp_group) * cutlass::NumThreadsPerWarpGroup);
    Tensor tCrA = thread_mma.make_fragment_A(thread_mma.partition_A(sA));  // (MMA,MMA_M,MMA_K,PIPE)
    Tensor tCrB = thread_mma.make_fragment_B(thread_mma.partition_B(sB));  // (MMA,MMA_N,MMA_K,PIPE)

    mma.accumulate_ = GMMA::ScaleOut::One;
    bool const first_lane = threadIdx.x % cutlass::NumThreadsPerWarp == 0;
    State release = read;
    CUTLASS_PRAGMA_NO_UNROLL
    for (int32_t i = 0; i < k_tiles; ++i) {
      pipeline.consumer_wait(read);
      warpgroup_fence_operand(acc);
      warpgroup_arrive();
      cute::gemm(mma, tCrA(_, _, _, read.index()), tCrB(_, _, _, read.index() * b_step + b_first),
                 acc);
      warpgroup_commit_batch();
      ++read;
      meanwhile();
      // The multiplication before this one is done: its stage may be filled again.
      warpgroup_wait<1>();
      warpgroup_fence_operand(acc);
      if (i > 0) {
        if (first_lane) {
          pipeline.consumer_release(release);
        }
        ++release;
      }
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    if (k_tiles > 0 && first_lane) {
      pipeline.consumer_release(release);
    }
    return read;
  }
};

}  // namespace sparsedrop::sm90
