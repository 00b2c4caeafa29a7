#include "bindings/program.hpp"

#include <memory>
#include <string>

#include "bindings/blas.hpp"
#include "bindings/call.hpp"
#include "bindings/fixed_products.hpp"

namespace sparsedrop {
namespace {

std::string describe(char const* what, Blocking const& of) {
  return std::string("sparsedrop.") + what + " for a [" + std::to_string(of.rows) + ", " +
         std::to_string(of.cols) + "] matrix in blocks of " + std::to_string(of.block_rows) + "x" +
         std::to_string(of.block_cols);
}

constexpr uintptr_t kAligned = 256;
constexpr int32_t kWhole = 1 << 30;  // rows or columns of a block: no blocks

// The product with its bias in the result already, to which it is added.
DenseProduct biased_first(DenseProduct product, cudaStream_t stream) {
  if (product.bias == nullptr) {
    return product;
  }
  Blocking const blocking{product.m, product.n, kWhole, kWhole};
  check(masked_copy({product.out_dtype, product.out_dtype, product.bias, 0, product.out,
                     product.out_ld, blocking, nullptr, 0, 0, 1.0},
                    stream),
        [&] { return describe("masked_copy", blocking); });
  product.bias = nullptr;
  product.beta = 1.0;
  return product;
}

}  // namespace

struct Program::Call {
  std::vector<uint64_t> const& places;
  std::vector<double> const& numbers;
  cudaStream_t stream;

  template <class T>
  T* address(Place const& place) const {
    uintptr_t const base = place ? places.at(size_t(place->first)) : 0;
    return base == 0 ? nullptr : at<T>(base + uintptr_t(place->second));
  }
  double number(Number const& number) const { return number ? numbers.at(size_t(*number)) : 1.0; }
  Launch::Words words(WordPlaces const& of) const {
    if (!of) {
      return {};
    }
    return {address<uint32_t const>(of->first), address<uint32_t const>(of->second)};
  }
  LiveUnits units(UnitsPlace const& of) const {
    auto const at = [&](int i) { return int64_t(places.at(size_t(of.number + i))); };
    return {of.count, at(0), at(1), at(2), at(3)};
  }
  LiveUnits units(std::optional<UnitsPlace> const& of) const {
    return of ? units(*of) : LiveUnits{};
  }
};

void Program::draw(Blocking const& blocking, Place live, WordPlaces words, int keep, int seed) {
  steps_.emplace_back([=](Call const& call) {
    uint64_t const next = call.places.at(size_t(seed) + 1);
    auto* const grid = call.address<uint8_t>(live);
    if (next == 0 || grid == nullptr) {
      return;
    }
    auto const places = words.value_or(std::pair<Place, Place>());
    check(bernoulli_mask({call.number(keep), call.places.at(size_t(seed)), next - 1}, blocking,
                         grid, call.address<uint32_t>(places.first),
                         call.address<uint32_t>(places.second), call.stream),
          [&] { return describe("bernoulli_mask", blocking); });
  });
}

void Program::round(DataType dtype, std::vector<Rounded> arrays) {
  if (arrays.size() > size_t(kMaxRoundings)) {
    throw std::invalid_argument(std::to_string(arrays.size()) + " arrays are more than " +
                                std::to_string(kMaxRoundings) + ", which one launch rounds");
  }
  steps_.emplace_back([=](Call const& call) {
    Rounding found[kMaxRoundings] = {};
    int count = 0;
    for (Rounded const& array : arrays) {
      auto* const to = call.address<void>(array.to);
      if (to != nullptr) {
        found[count++] = {call.address<void const>(array.from), array.from_dtype, to, array.count,
                          float(call.number(array.factor))};
      }
    }
    if (count > 0) {
      check(round_to(dtype, found, count, call.stream),
            [&] { return "sparsedrop.round_to for " + std::to_string(count) + " arrays"; });
    }
  });
}

void Program::product(Launch const& launch, Product const& of) {
  steps_.emplace_back([=](Call const& call) {
    Launch::Call product;
    product.d = call.address<void>(of.d);
    if (product.d == nullptr) {
      return;
    }
    product.a = call.address<void const>(of.a);
    product.b = call.address<void const>(of.b);
    product.a_words = call.words(of.a_words);
    product.b_words = call.words(of.b_words);
    product.d_words = call.words(of.d_words);
    product.alpha = float(call.number(of.alpha));
    product.bias = call.address<void const>(of.bias);
    product.accumulates = of.accumulates;
    product.workspace = call.address<void>(of.workspace);
    product.stream = call.stream;
    launch.run(product);
  });
}

void Program::masked_copy(Copy const& of) {
  steps_.emplace_back([=](Call const& call) {
    auto* const out = call.address<void>(of.out);
    auto const* const in = call.address<void const>(of.in);
    if (out == nullptr || in == nullptr) {
      return;
    }
    Blocking const& blocking = of.blocking;
    int64_t const grid_cols = (blocking.cols + blocking.block_cols - 1) / blocking.block_cols;
    MaskedCopy copy{of.in_dtype,
                    of.out_dtype,
                    in,
                    of.in_ld,
                    out,
                    blocking.cols,
                    blocking,
                    call.address<uint8_t const>(of.live),
                    grid_cols,
                    1,
                    call.number(of.factor)};
    uint64_t const next = of.seed ? call.places.at(size_t(*of.seed) + 1) : 0;
    if (next != 0) {
      copy.drawn = call.address<uint8_t>(of.live);
      copy.draw = {call.number(of.keep), call.places.at(size_t(*of.seed)), next - 1};
    }
    check(sparsedrop::masked_copy(copy, call.stream),
          [&] { return describe("masked_copy", blocking); });
  });
}

size_t Program::dense_product(Dense const& of) {
  require_blas();
  if (of.bias && of.accumulates) {
    throw std::invalid_argument("a product that is added to what there is has no bias");
  }
  Shape const& shape = of.shape;
  int64_t const extents[] = {shape.m, shape.n, shape.k};
  int64_t const live = shape.live == Extent::none ? 0 : extents[int(shape.live)];
  DenseProduct usual{};
  usual.dtype = of.dtype;
  usual.out_dtype = of.out_dtype;
  usual.beta = of.accumulates ? 1.0 : 0.0;
  // An address that is aligned stands for a bias until there is one.
  usual.bias = of.bias ? at<void const>(kAligned) : nullptr;
  bool const is_fp32 = of.dtype == DataType::fp32;
  usual.tf32 = is_fp32 && multiplies_as_tf32(of.handle_now);
  auto const fixed = std::make_shared<FixedProducts>();
  OnDevice const guard(device_);
  fixed->prepare(parts_of(shape, {live, 1, 0, live, 0}, usual).front(), of.handle_now);
  steps_.emplace_back([=](Call const& call) {
    DenseProduct whole = usual;
    whole.out = call.address<void>(of.out);
    if (whole.out == nullptr) {
      return;
    }
    whole.a.data = call.address<void const>(of.a);
    whole.b.data = call.address<void const>(of.b);
    whole.alpha = call.number(of.alpha);
    whole.bias = call.address<void const>(of.bias);
    void* const workspace = call.address<void>(of.workspace);
    BlasSettings const settings{at<void>(call.places.at(size_t(of.handle))),
                                call.places.at(size_t(of.handle) + 1) != 0};
    whole.tf32 = is_fp32 && multiplies_as_tf32(settings.handle);
    LiveUnits const units = of.units ? call.units({*of.units, live}) : LiveUnits{};
    auto const parts = parts_of(shape, units, whole);
    if (parts.size() == 1 && fixed->run(parts.front(), settings.handle, workspace, call.stream)) {
      return;
    }
    for (DenseProduct const& part : parts) {
      multiply(biased_first(part, call.stream), settings);
    }
  });
  return fixed->workspace_bytes();
}

void Program::gather(DataType dtype, UnitsPlace const& units,
                     std::optional<UnitsPlace> const& across, std::vector<Gathered> arrays) {
  if (arrays.size() > size_t(kMaxGatherings)) {
    throw std::invalid_argument(std::to_string(arrays.size()) + " matrices are more than " +
                                std::to_string(kMaxGatherings) + ", which one launch gathers");
  }
  steps_.emplace_back([=](Call const& call) {
    Gathering found[kMaxGatherings] = {};
    int count = 0;
    for (Gathered const& of : arrays) {
      auto* const to = call.address<void>(of.to);
      if (to != nullptr) {
        found[count++] = {call.address<void const>(of.from),
                          of.from_dtype,
                          of.from_ld,
                          to,
                          of.to_ld,
                          of.rows,
                          of.cols,
                          of.along,
                          float(call.number(of.factor))};
      }
    }
    if (count > 0) {
      check(gather_units(dtype, call.units(units), found, count, call.stream, call.units(across)),
            [&] {
              return "sparsedrop.gather_units of " + std::to_string(units.count) + " units from " +
                     std::to_string(count) + " matrices";
            });
    }
  });
}

void Program::fill_units(UnitsPlace const& units, std::optional<UnitsPlace> const& across,
                         std::vector<Filled> arrays) {
  if (arrays.size() > size_t(kMaxFillings)) {
    throw std::invalid_argument(std::to_string(arrays.size()) + " matrices are more than " +
                                std::to_string(kMaxFillings) + ", which one launch fills");
  }
  steps_.emplace_back([=](Call const& call) {
    Filling found[kMaxFillings] = {};
    int count = 0;
    for (Filled const& of : arrays) {
      auto* const to = call.address<void>(of.to);
      if (to != nullptr) {
        found[count++] = {to,
                          of.dtype,
                          of.rows,
                          of.cols,
                          of.along,
                          call.address<void const>(of.live),
                          of.live_dtype,
                          float(call.number(of.factor)),
                          of.dropped,
                          of.live_ld};
      }
    }
    if (count > 0) {
      check(
          sparsedrop::fill_units(call.units(units), found, count, call.stream, call.units(across)),
          [&] {
            return "sparsedrop.fill_units of " + std::to_string(units.count) + " units of " +
                   std::to_string(count) + " matrices";
          });
    }
  });
}

void Program::column_sums(ColumnSums const& of) {
  steps_.emplace_back([=](Call const& call) {
    auto* const out = call.address<void>(of.out);
    if (out == nullptr) {
      return;
    }
    Blocking const& blocking = of.blocking;
    Launch::Words const words = call.words(of.words);
    Mask const mask{words.rows, words.cols, blocking.block_rows, blocking.block_cols};
    Matrix const matrix{call.address<void const>(of.matrix), blocking.cols, Order::row_major};
    Sums const sums{out, of.out_dtype, of.accumulates, call.number(of.factor)};
    check(sparsedrop::column_sums(of.dtype, matrix, blocking.rows, blocking.cols, mask, sums,
                                  call.stream),
          [&] { return describe("column_sums", blocking); });
  });
}

void Program::pointwise(Between const& of) {
  steps_.emplace_back([=](Call const& call) {
    auto* const out = call.address<void>(of.out);
    if (out == nullptr) {
      return;
    }
    UnitBiases biases;
    if (of.units) {
      biases = {call.address<void const>(of.bias_a), call.address<void const>(of.bias_b),
                of.bias_dtype, call.units(*of.units)};
    }
    check(sparsedrop::pointwise(
              {of.kind, of.activation, of.dtype, call.address<void const>(of.a),
               call.address<void const>(of.b), call.address<void const>(of.grad), out,
               call.address<void>(of.out_b), of.blocking, call.address<uint8_t const>(of.live)},
              biases, call.stream),
          [&] { return describe("pointwise", of.blocking); });
  });
}

void Program::run(std::vector<uint64_t> const& places, std::vector<double> const& numbers,
                  cudaStream_t stream) const {
  OnDevice const guard(device_);
  Call const call{places, numbers, stream};
  for (Step const& step : steps_) {
    step(call);
  }
}

}  // namespace sparsedrop
