#include "bindings/live_product.hpp"

#include <stdexcept>
#include <string>
#include <type_traits>

namespace sparsedrop {
namespace {

struct Part {
  int64_t begin;  // among the live units
  int64_t count;
  int64_t first;  // among all
};

// How a matrix's part lies: bytes from its start, and its leading dimension.
struct Found {
  int64_t bytes;
  int64_t ld;
};

// `rows` and `cols` are the extents that run along the matrix's rows and columns.
Found find(Lie const& lie, Extent rows, Extent cols, Shape const& shape, Part const& part,
           int64_t step, DataType dtype) {
  if (shape.live == Extent::none || (rows != shape.live && cols != shape.live)) {
    return {0, lie.ld};
  }
  int64_t const at = lie.is_whole ? part.first : part.begin;
  int64_t const stride = lie.is_whole ? step : 1;
  // Of the matrix as it lies, whether its neighbours in memory are units.
  bool const is_contiguous = (cols == shape.live) != lie.is_transposed;
  if (!is_contiguous) {
    return {at * lie.ld * size_of(dtype), lie.ld * stride};
  }
  if (stride != 1) {
    throw std::invalid_argument("every " + std::to_string(stride) +
                                "-th unit is live, and units lie side by side: a product reads "
                                "neighbours only");
  }
  return {at * size_of(dtype), lie.ld};
}

template <class T>
T* moved(T* data, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, char const, char>;
  return static_cast<T*>(static_cast<Byte*>(data) + bytes);
}

DenseProduct product_of(Shape const& shape, Part const& part, int64_t step,
                        DenseProduct const& whole) {
  DenseProduct made = whole;
  made.m = shape.live == Extent::m ? part.count : shape.m;
  made.n = shape.live == Extent::n ? part.count : shape.n;
  made.k = shape.live == Extent::k ? part.count : shape.k;
  Found const a = find(shape.a, Extent::m, Extent::k, shape, part, step, whole.dtype);
  Found const b = find(shape.b, Extent::k, Extent::n, shape, part, step, whole.dtype);
  Found const out = find(shape.out, Extent::m, Extent::n, shape, part, step, whole.out_dtype);
  made.a = {moved(whole.a.data, a.bytes), a.ld, shape.a.is_transposed};
  made.b = {moved(whole.b.data, b.bytes), b.ld, shape.b.is_transposed};
  made.out = moved(whole.out, out.bytes);
  made.out_ld = out.ld;
  if (shape.live == Extent::k && part.begin > 0) {
    made.beta = 1.0;
    made.bias = nullptr;
  }
  if (shape.live == Extent::n && whole.bias != nullptr) {
    made.bias = moved(whole.bias, part.begin * size_of(whole.out_dtype));
  }
  return made;
}

}  // namespace

std::vector<DenseProduct> parts_of(Shape const& shape, LiveUnits const& units,
                                   DenseProduct const& whole) {
  if (shape.live == Extent::none || units.first_count == units.count ||
      !(shape.a.is_whole || shape.b.is_whole || shape.out.is_whole)) {
    return {product_of(shape, {0, units.count, units.first}, units.step, whole)};
  }
  Part const parts[] = {{0, units.first_count, units.first},
                        {units.first_count, units.count - units.first_count, units.second}};
  return {product_of(shape, parts[0], units.step, whole),
          product_of(shape, parts[1], units.step, whole)};
}

}  // namespace sparsedrop
