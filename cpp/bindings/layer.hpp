// What a layer launches, dropout and the linear layer behind it: Y = alpha · (X ∘ M) Wᵀ + bias. All
// of its forward pass is one call, and all of its backward pass another, since the host's time of a
// call from Python is that of a launch.

#pragma once

#include <cstdint>

#include "bindings/blas.hpp"
#include "bindings/launch.hpp"

namespace sparsedrop {

// A grid that is drawn by the call; an offset below 0: it was drawn before.
struct Draw {
  double keep;
  uint64_t seed;
  int64_t offset;
};

// fp32 operands that are rounded before they are used, and where to; null where they are not.
struct Rounded {
  void* x;
  void* weight;
  void* bias;
};

// By the kernels that skip what is dropped. Only what is used of X, M, W and the gradients differs
// from call to call.
class Layer {
 public:
  // The mask is one buffer: the words of the block rows, from `col_words_at` those of the block
  // columns and from `live_at` the grid, in bytes.
  struct Facts {
    Blocking blocking;
    int64_t col_words_at;
    int64_t live_at;
    DataType bias_dtype;  // of the bias as it is given, and of its gradient
  };

  Layer(Facts const& facts, Launch const& forward, Launch const& grad_x, Launch const& grad_weight)
      : facts_(facts), forward_(forward), grad_x_(grad_x), grad_weight_(grad_weight) {}

  size_t forward_workspace_bytes() const { return forward_.workspace_bytes(); }
  size_t backward_workspace_bytes() const;

  struct Forward {
    void const* x;
    void const* weight;
    void const* bias;  // or null
    Rounded rounded;
    void* out;
    char* mask;
    void* workspace;
    Draw draw;
    float alpha;
    cudaStream_t stream;
  };

  void forward(Forward const& call) const;

  // Gradients that are null are not wanted. Those that `accumulate` are added to what is there.
  struct Backward {
    void const* grad;
    void const* x;
    void const* weight;
    char const* mask;
    void* grad_x;
    void* grad_weight;
    void* grad_bias;
    void* workspace;
    float alpha;
    bool accumulates_weight;
    bool accumulates_bias;
    cudaStream_t stream;
  };

  void backward(Backward const& call) const;

 private:
  Launch::Words words(char const* mask) const;

  Facts facts_;
  Launch forward_;
  Launch grad_x_;
  Launch grad_weight_;
};

// By dense products of masked operands. What of X is dropped is 0 in a masked copy, and the
// gradient of X is masked in place.
struct DenseLayer {
  Blocking blocking;
  int64_t outputs;
  DataType x_dtype;
  DataType dtype;  // of the products
  DataType weight_dtype;
  DataType bias_dtype;
  int device;

  struct Forward {
    void const* x;
    void* masked_x;
    void const* weight;
    void* rounded_weight;  // or null
    void const* bias;      // or null
    void* out;             // or null: only what comes before the product is done
    uint8_t* live;
    Draw draw;
    double alpha;
    BlasSettings blas;
    cudaStream_t stream;
  };

  void forward(Forward const& call) const;

  // Gradients that are null are not wanted.
  struct Backward {
    void const* grad;
    void const* masked_x;
    void const* weight;
    uint8_t const* live;
    void* product;  // the gradient of the masked x: grad_x itself, where that has the dtype
    void* grad_x;
    void* grad_weight;
    void* grad_bias;
    double alpha;
    bool accumulates_weight;
    bool accumulates_bias;
    BlasSettings blas;
    cudaStream_t stream;
  };

  void backward(Backward const& call) const;

 private:
  void copy_live(MaskedCopy const& copy, cudaStream_t stream) const;
};

}  // namespace sparsedrop
