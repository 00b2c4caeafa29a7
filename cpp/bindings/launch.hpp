// A product and how it is run, all but its addresses: made once for a shape, launched many times.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// The architecture of that name; std::invalid_argument where this build has no kernels of it.
Architecture find_architecture(std::string const& wanted);

class Launch {
 public:
  using Block = std::optional<std::pair<int32_t, int32_t>>;

  struct Words {
    uint32_t const* rows = nullptr;
    uint32_t const* cols = nullptr;
  };

  // What differs from one launch to the next.
  struct Call {
    void const* a = nullptr;
    void const* b = nullptr;
    void* d = nullptr;
    void* pre_activation = nullptr;
    Words a_words;
    Words b_words;
    Words d_words;
    float alpha = 1.0f;
    void const* bias = nullptr;
    bool accumulates = false;  // also where the problem does not
    void* workspace = nullptr;
    cudaStream_t stream = nullptr;
  };

  Launch(Problem const& problem, Choice const& choice, int device)
      : problem_(problem), choice_(choice), device_(device) {}

  Problem const& problem() const { return problem_; }
  int device() const { return device_; }
  size_t workspace_bytes() const { return sparsedrop::workspace_bytes(problem_, choice_); }

  // Why it cannot be launched, whatever the addresses; nothing where it can.
  std::optional<std::string> refusal() const;

  // On the current device, which must be its own. std::runtime_error, with the values, where it
  // cannot be launched.
  void run(Call const& call) const;

 private:
  Problem problem_;
  Choice choice_;
  int device_;
};

}  // namespace sparsedrop
