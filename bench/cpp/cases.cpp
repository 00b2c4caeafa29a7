#include "cases.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <utility>

namespace sparsedrop::bench {
namespace {

constexpr int32_t kBlock = 128;
constexpr int32_t kBlockColsOfY = 256;

constexpr Extents kShapes[] = {
    {1024, 1024, 1024},  {2048, 2048, 2048},  {4096, 4096, 4096},  {8192, 8192, 8192},
    {16384, 4096, 1024}, {16384, 1024, 4096}, {8192, 4096, 1024},  {8192, 1024, 4096},
    {12608, 3072, 768},  {8192, 11008, 4096}, {16384, 4096, 4096},
};
constexpr double kRates[] = {0.0, 0.1, 0.3, 0.5, 0.7};
constexpr std::pair<DataType, char const*> kTypes[] = {{DataType::bf16, "bf16"},
                                                       {DataType::fp32, "tf32"}};
constexpr int kSplits[] = {1, 2, 4, 8};  // enough to see a trend
constexpr std::pair<Product, char const*> kProducts[] = {{Product::forward, "forward"},
                                                         {Product::dx, "dX"},
                                                         {Product::dw, "dW"},
                                                         {Product::both, "both"}};

// Stand for what is on the device when a case is only described.
alignas(16) char no_data[16];
constexpr uint32_t kNoWords[1] = {0};

int64_t shrunk_extent(int64_t extent, double share) {
  auto const units = std::max<int64_t>(1, std::llround(double(extent) * share / kBlock));
  return std::min(extent, units * kBlock);
}

// Every tile of every architecture, either way round, whole and split along k.
std::vector<Choice> all_choices() {
  std::vector<Choice> choices;
  for (int i = 0; i < architecture_count(); ++i) {
    for (int id = 0; id < tile_count(architecture(i)); ++id) {
      for (bool const swap : {false, true}) {
        for (int const split_k : kSplits) {
          choices.push_back({id, swap, split_k, architecture(i)});
        }
      }
    }
  }
  return choices;
}

Mask mask_of(Product product, bool y) {
  return !y                         ? Mask{kNoWords, kNoWords, kBlock, kBlock}
         : product == Product::both ? Mask{kNoWords, kNoWords, kBlock, kBlockColsOfY}
                                    : Mask{};
}

}  // namespace

std::string Case::name() const {
  Tile const t = tile(choice.architecture, choice.tile);
  std::ostringstream text;
  for (auto const& [of, word] : kProducts) {
    text << (of == product ? word : "");
  }
  text << "/";
  for (auto const& [of, word] : kTypes) {
    text << (of == type ? word : "");
  }
  text << "/" << extents.m << "x" << extents.n << "x" << extents.k << "/p=" << p << "/"
       << sparsedrop::name(choice.architecture) << "/tile=" << choice.tile << ":" << t.m << "x"
       << t.n << "x" << t.k << (choice.swap ? "/swap" : "");
  if (choice.split_k > 1) {
    text << "/split_k=" << choice.split_k;
  }
  return text.str();
}

int64_t Grid::live_cols(int64_t r) const {
  int64_t sum = 0;
  for (int64_t c = 0; c < grid_cols(); ++c) {
    int64_t const extent = std::min<int64_t>(block_cols, cols - c * block_cols);
    sum += live[r * grid_cols() + c] ? extent : 0;
  }
  return sum;
}

int64_t Grid::rows_of(int64_t r) const {
  return std::min<int64_t>(block_rows, rows - r * block_rows);
}

std::vector<Case> all_cases() {
  Matrices const data{no_data, no_data, no_data, no_data};
  std::vector<Case> cases;
  for (auto const& [type, type_word] : kTypes) {
    for (auto const& [product, word] : kProducts) {
      Masks const masks{mask_of(product, false), mask_of(product, true)};
      for (Extents const& extents : kShapes) {
        Problem const problem = describe(type, product, extents, data, masks);
        for (Choice const& choice : all_choices()) {
          if (refusal(problem, choice) != nullptr) {
            continue;
          }
          for (double const p : kRates) {
            cases.push_back({type, product, extents, p, choice});
          }
        }
      }
    }
  }
  return cases;
}

std::vector<Grid> draw(Case const& c, uint32_t seed) {
  auto const [m, n, k] = c.extents;
  std::vector<Grid> grids{{m, k, kBlock, kBlock, {}}};
  if (c.product == Product::both) {
    grids.push_back({m, n, kBlock, kBlockColsOfY, {}});
  }
  std::mt19937 engine(seed);
  std::bernoulli_distribution is_live(1.0 - c.p);
  for (Grid& grid : grids) {
    grid.live.resize(grid.grid_rows() * grid.grid_cols());
    std::generate(grid.live.begin(), grid.live.end(), [&] { return uint8_t(is_live(engine)); });
  }
  return grids;
}

Problem describe(DataType type, Product product, Extents const& extents, Matrices const& data,
                 Masks const& masks) {
  auto const [m, n, k] = extents;
  Problem problem;
  problem.dtype = type;
  switch (product) {
    case Product::both:
    case Product::forward:  // X Wᵀ
      problem.m = m, problem.n = n, problem.k = k;
      problem.a = {data.x, k, Order::row_major};
      problem.b = {data.w, k, Order::col_major};
      problem.a_mask = masks.x;
      problem.d_mask = masks.y;
      break;
    case Product::dx:  // dY W
      problem.m = m, problem.n = k, problem.k = n;
      problem.a = {data.dy, n, Order::row_major};
      problem.b = {data.w, k, Order::row_major};
      problem.d_mask = masks.x;
      break;
    case Product::dw:  // dYᵀ X
      problem.m = n, problem.n = k, problem.k = m;
      problem.a = {data.dy, n, Order::col_major};
      problem.b = {data.x, k, Order::row_major};
      problem.b_mask = masks.x;
      break;
  }
  problem.d = data.out;
  problem.d_ld = problem.n;
  return problem;
}

Extents shrunk(Product product, Extents const& extents, double p) {
  Extents few = extents;
  if (product == Product::dw) {
    few.m = shrunk_extent(few.m, 1.0 - p);
  } else {
    few.k = shrunk_extent(few.k, 1.0 - p);
  }
  if (product == Product::both) {
    few.n = shrunk_extent(few.n, 1.0 - p);
  }
  return few;
}

double dense_flops(Extents const& extents) {
  return 2.0 * double(extents.m) * double(extents.n) * double(extents.k);
}

double live_flops(Case const& c, std::vector<Grid> const& grids) {
  Grid const& x = grids.front();
  double flops = 0.0;
  for (int64_t r = 0; r < x.grid_rows(); ++r) {
    // The block rows of Y are those of X.
    int64_t const outputs = c.product == Product::both ? grids[1].live_cols(r) : c.extents.n;
    flops += 2.0 * double(x.rows_of(r)) * double(x.live_cols(r)) * double(outputs);
  }
  return flops;
}

}  // namespace sparsedrop::bench
