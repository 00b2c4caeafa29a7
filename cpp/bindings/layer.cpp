#include "bindings/layer.hpp"

#include <algorithm>
#include <string>

#include "bindings/call.hpp"

namespace sparsedrop {
namespace {

std::string describe(char const* what, Blocking const& of) {
  return std::string("sparsedrop.") + what + " for a [" + std::to_string(of.rows) + ", " +
         std::to_string(of.cols) + "] matrix in blocks of " + std::to_string(of.block_rows) + "x" +
         std::to_string(of.block_cols);
}

struct Grid {
  uint8_t* live;
  uint32_t* row_words;
  uint32_t* col_words;
};

void draw_grid(Draw const& draw, Blocking const& blocking, Grid const& grid, cudaStream_t stream) {
  if (draw.offset >= 0) {
    check(bernoulli_mask({draw.keep, draw.seed, uint64_t(draw.offset)}, blocking, grid.live,
                         grid.row_words, grid.col_words, stream),
          [&] { return describe("bernoulli_mask", blocking); });
  }
}

// Collects what has to be rounded, and rounds it in one launch.
class Roundings {
 public:
  void add(void const* from, void* to, int64_t count) {
    if (to != nullptr) {
      arrays_[count_++] = {static_cast<float const*>(from), to, count};
    }
  }
  void run(DataType dtype, cudaStream_t stream) const {
    if (count_ > 0) {
      check(round_to(dtype, arrays_, count_, stream),
            [&] { return "sparsedrop.round_to for " + std::to_string(count_) + " arrays"; });
    }
  }

 private:
  Rounding arrays_[kMaxRoundings] = {};
  int count_ = 0;
};

// The gradient of a bias, if it is wanted: of a contiguous matrix of `grad.ld` columns.
void sum_columns(Matrix const& grad, DataType dtype, int64_t rows, Sums const& sums,
                 cudaStream_t stream) {
  if (sums.data != nullptr) {
    check(column_sums(dtype, grad, rows, grad.ld, {}, sums, stream), [&] {
      return "sparsedrop.column_sums for a [" + std::to_string(rows) + ", " +
             std::to_string(grad.ld) + "] matrix";
    });
  }
}

void const* either(void const* rounded, void const* given) {
  return rounded != nullptr ? rounded : given;
}

}  // namespace

Launch::Words Layer::words(char const* mask) const {
  return {reinterpret_cast<uint32_t const*>(mask),
          reinterpret_cast<uint32_t const*>(mask + facts_.col_words_at)};
}

size_t Layer::backward_workspace_bytes() const {
  return std::max(grad_x_.workspace_bytes(), grad_weight_.workspace_bytes());
}

void Layer::forward(Forward const& call) const {
  OnDevice const guard(forward_.device());
  Blocking const& blocking = facts_.blocking;
  Problem const& product = forward_.problem();
  char* const mask = call.mask;
  draw_grid(call.draw, blocking,
            {reinterpret_cast<uint8_t*>(mask + facts_.live_at), reinterpret_cast<uint32_t*>(mask),
             reinterpret_cast<uint32_t*>(mask + facts_.col_words_at)},
            call.stream);
  Roundings roundings;
  roundings.add(call.x, call.rounded.x, blocking.rows * blocking.cols);
  roundings.add(call.weight, call.rounded.weight, product.n * product.k);
  roundings.add(call.bias, call.rounded.bias, product.n);
  roundings.run(product.dtype, call.stream);
  Launch::Call launch;
  launch.a = either(call.rounded.x, call.x);
  launch.b = either(call.rounded.weight, call.weight);
  launch.d = call.out;
  launch.a_words = words(mask);
  launch.alpha = call.alpha;
  launch.bias = either(call.rounded.bias, call.bias);
  launch.workspace = call.workspace;
  launch.stream = call.stream;
  forward_.run(launch);
}

void Layer::backward(Backward const& call) const {
  OnDevice const guard(forward_.device());
  Problem const& product = forward_.problem();
  Launch::Call launch;
  launch.alpha = call.alpha;
  launch.workspace = call.workspace;
  launch.stream = call.stream;
  if (call.grad_x != nullptr) {
    launch.a = call.grad;
    launch.b = call.weight;
    launch.d = call.grad_x;
    launch.d_words = words(call.mask);
    grad_x_.run(launch);
    launch.d_words = {};
  }
  if (call.grad_weight != nullptr) {
    launch.a = call.grad;
    launch.b = call.x;
    launch.d = call.grad_weight;
    launch.b_words = words(call.mask);
    launch.accumulates = call.accumulates_weight;
    grad_weight_.run(launch);
  }
  sum_columns({call.grad, product.n, Order::row_major}, product.dtype, product.m,
              {call.grad_bias, facts_.bias_dtype, call.accumulates_bias}, call.stream);
}

void DenseLayer::copy_live(MaskedCopy const& copy, cudaStream_t stream) const {
  check(masked_copy(copy, stream), [&] { return describe("masked_copy", copy.blocking); });
}

void DenseLayer::forward(Forward const& call) const {
  OnDevice const guard(device);
  int64_t const rows = blocking.rows, cols = blocking.cols;
  draw_grid(call.draw, blocking, {call.live, nullptr, nullptr}, call.stream);
  int64_t const grid_cols = (cols + blocking.block_cols - 1) / blocking.block_cols;
  copy_live(
      {x_dtype, dtype, call.x, cols, call.masked_x, cols, blocking, call.live, grid_cols, 1, 1.0},
      call.stream);
  Roundings roundings;
  roundings.add(call.weight, call.rounded_weight, outputs * cols);
  roundings.run(dtype, call.stream);
  if (call.out == nullptr) {
    return;
  }
  if (call.bias != nullptr) {
    // The product is added to it.
    copy_live({bias_dtype,
               dtype,
               call.bias,
               0,
               call.out,
               outputs,
               {rows, outputs, 1, 1},
               nullptr,
               0,
               0,
               1.0},
              call.stream);
  }
  multiply({rows,
            outputs,
            cols,
            {call.masked_x, cols, false},
            {either(call.rounded_weight, call.weight), cols, true},
            dtype,
            call.out,
            dtype,
            call.alpha,
            call.bias != nullptr ? 1.0 : 0.0},
           call.blas);
}

void DenseLayer::backward(Backward const& call) const {
  OnDevice const guard(device);
  int64_t const rows = blocking.rows, cols = blocking.cols;
  if (call.grad_x != nullptr) {
    multiply({rows,
              cols,
              outputs,
              {call.grad, outputs, false},
              {call.weight, cols, false},
              dtype,
              call.product,
              dtype,
              call.alpha,
              0.0},
             call.blas);
    int64_t const grid_cols = (cols + blocking.block_cols - 1) / blocking.block_cols;
    copy_live({dtype, x_dtype, call.product, cols, call.grad_x, cols, blocking, call.live,
               grid_cols, 1, 1.0},
              call.stream);
  }
  if (call.grad_weight != nullptr) {
    multiply({outputs,
              cols,
              rows,
              {call.grad, outputs, true},
              {call.masked_x, cols, false},
              dtype,
              call.grad_weight,
              weight_dtype,
              call.alpha,
              call.accumulates_weight ? 1.0 : 0.0},
             call.blas);
  }
  sum_columns({call.grad, outputs, Order::row_major}, dtype, rows,
              {call.grad_bias, bias_dtype, call.accumulates_bias}, call.stream);
}

}  // namespace sparsedrop
