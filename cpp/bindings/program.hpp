// What one direction of a layer or a block launches, in order. It is made once for its shapes, and
// run by one call from Python with the addresses and numbers of that call: the host's time of a
// call from Python is that of a launch.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/launch.hpp"
#include "bindings/live_product.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {

// An address: that of this number among the call's, and so many bytes from there. None, or a call's
// address of 0: null.
using Place = std::optional<std::pair<int, int64_t>>;

// A factor: that of this number among the call's. None: 1.
using Number = std::optional<int>;

// The live units of a call: from that number on stand `step`, `first`, `first_count` and `second`
// of LiveUnits.
struct UnitsPlace {
  int number;
  int64_t count;
};

// The words of a mask, of its block rows and its block columns.
using WordPlaces = std::optional<std::pair<Place, Place>>;

class Program {
 public:
  explicit Program(int device) : device_(device) {}

  // Each step is left out where what it writes has no place.

  // Draws a grid by the seed in one place and the offset, plus 1, in the next; where that is 0, the
  // grid was drawn before.
  void draw(Blocking const& blocking, Place live, WordPlaces words, int keep, int seed);

  struct Rounded {
    Place from;
    DataType from_dtype;
    Place to;
    int64_t count;
    Number factor;
  };
  void round(DataType dtype, std::vector<Rounded> arrays);

  struct Product {
    Place a;
    Place b;
    Place d;
    WordPlaces a_words;
    WordPlaces b_words;
    WordPlaces d_words;
    Number alpha;
    Place bias;
    Place workspace;
    bool accumulates;
  };
  void product(Launch const& launch, Product const& of);

  struct Copy {
    DataType in_dtype;
    DataType out_dtype;
    Place in;
    int64_t in_ld;
    Place out;
    Blocking blocking;
    Place live;
    Number factor;
    // By which the grid is drawn and written to `live`, if they are there: as for `draw`.
    Number keep;
    std::optional<int> seed;
  };
  void masked_copy(Copy const& of);

  struct Dense {
    Shape shape;
    Place a;
    Place b;
    Place out;
    DataType dtype;
    DataType out_dtype;
    Number alpha;
    bool accumulates;
    Place bias;  // of the result's dtype
    Place workspace;
    int handle;  // and in the place behind it, whether parts of sums may be added in 16 bits
    std::optional<int> units;  // of one extent, where the shape says of which
    void* handle_now;          // torch's at the moment
  };
  // cuBLASLt's, or cuBLAS's where that has no way, and in two parts of the units, whose extents
  // differ from call to call. Returns bytes of workspace. std::invalid_argument for a bias of what
  // is accumulated.
  size_t dense_product(Dense const& of);

  struct Gathered {
    Place from;
    DataType from_dtype;
    int64_t from_ld;
    Place to;
    int64_t to_ld;
    int64_t rows;
    int64_t cols;
    UnitsAlong along;
    Number factor;
  };
  // `across`: the units of columns, of matrices whose rows are units too.
  void gather(DataType dtype, UnitsPlace const& units, std::optional<UnitsPlace> const& across,
              std::vector<Gathered> arrays);

  struct Filled {
    Place to;
    DataType dtype;
    int64_t rows;
    int64_t cols;
    UnitsAlong along;
    Place live;
    DataType live_dtype;
    Number factor;
    Dropped dropped;
    int64_t live_ld;
  };
  void fill_units(UnitsPlace const& units, std::optional<UnitsPlace> const& across,
                  std::vector<Filled> arrays);

  struct ColumnSums {
    DataType dtype;
    Place matrix;
    Blocking blocking;  // blocks of 0: no mask
    WordPlaces words;
    Place out;
    DataType out_dtype;
    bool accumulates;
    Number factor;
  };
  void column_sums(ColumnSums const& of);

  struct Between {
    PointwiseKind kind;
    Activation activation;
    DataType dtype;
    Place a;
    Place b;
    Place grad;
    Place out;
    Place out_b;
    Blocking blocking;
    Place live;
    // Of units: all null, or what is added to a and b.
    Place bias_a;
    Place bias_b;
    DataType bias_dtype;
    std::optional<UnitsPlace> units;
  };
  void pointwise(Between const& of);

  // std::runtime_error, with the values, where a step cannot be launched; std::out_of_range where a
  // place or a number is missing.
  void run(std::vector<uint64_t> const& places, std::vector<double> const& numbers,
           cudaStream_t stream) const;

 private:
  struct Call;
  using Step = std::function<void(Call const&)>;

  int device_;
  std::vector<Step> steps_;
};

}  // namespace sparsedrop
