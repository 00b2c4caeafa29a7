#include "stock.h"

#include <cutlass/bfloat16.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm.h>

#include <stdexcept>
#include <string>

namespace sparsedrop::bench {
namespace {

using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
template <int M, int N, int K>
using Shape = cutlass::gemm::GemmShape<M, N, K>;

// What one mma.sync multiplies; float is multiplied as TF32.
template <class Element>
using Instruction = Shape<16, 8, 32 / sizeof(Element)>;

template <class Element, class Tile, int kStages, class LayoutA, class LayoutB>
void run(Problem const& p, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(Element);
  using Gemm = cutlass::gemm::device::Gemm<
      Element, LayoutA, Element, LayoutB, Element, RowMajor, float, cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80, Tile, Shape<64, 64, Tile::kK>, Instruction<Element>,
      cutlass::epilogue::thread::LinearCombination<Element, kVector, float, float>,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, kStages>;
  auto* const d = static_cast<Element*>(p.d);
  typename Gemm::Arguments const arguments(
      {int(p.m), int(p.n), int(p.k)}, {static_cast<Element const*>(p.a.data), p.a.ld},
      {static_cast<Element const*>(p.b.data), p.b.ld}, {d, p.d_ld}, {d, p.d_ld}, {1.0f, 0.0f});
  cutlass::Status const status = Gemm()(arguments, nullptr, stream);
  if (status != cutlass::Status::kSuccess) {
    throw std::runtime_error(std::string("a stock kernel: ") + cutlassGetStatusString(status));
  }
}

template <class Element, class Tile, int kStages>
class StockProduct final : public DenseProduct {
 public:
  // The layouts of a training step's products.
  void operator()(Problem const& p, cudaStream_t stream) override {
    bool const a_by_rows = p.a.order == Order::row_major;
    bool const b_by_rows = p.b.order == Order::row_major;
    if (a_by_rows && !b_by_rows) {
      run<Element, Tile, kStages, RowMajor, ColumnMajor>(p, stream);
    } else if (a_by_rows) {
      run<Element, Tile, kStages, RowMajor, RowMajor>(p, stream);
    } else if (b_by_rows) {
      run<Element, Tile, kStages, ColumnMajor, RowMajor>(p, stream);
    } else {
      throw std::runtime_error("no product of a training step has this layout");
    }
  }
};

// Tiles are as deep in bytes in every dtype.
template <class Element>
std::vector<std::unique_ptr<DenseProduct>> products_of() {
  constexpr int kDeep = 128 / sizeof(Element);
  constexpr int kFlat = kDeep / 2;
  std::vector<std::unique_ptr<DenseProduct>> all;
  all.push_back(std::make_unique<StockProduct<Element, Shape<128, 256, kDeep>, 3>>());
  all.push_back(std::make_unique<StockProduct<Element, Shape<256, 128, kDeep>, 3>>());
  all.push_back(std::make_unique<StockProduct<Element, Shape<128, 128, kDeep>, 3>>());
  all.push_back(std::make_unique<StockProduct<Element, Shape<128, 128, kFlat>, 4>>());
  return all;
}

}  // namespace

std::vector<std::unique_ptr<DenseProduct>> stock_products(DataType type) {
  return type == DataType::fp32 ? products_of<float>() : products_of<cutlass::bfloat16_t>();
}

}  // namespace sparsedrop::bench
