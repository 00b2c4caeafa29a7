#include "bindings/launch.hpp"

#include <sstream>
#include <stdexcept>

#include "bindings/call.hpp"

namespace sparsedrop {
namespace {

std::string describe(Problem const& p, Choice choice) {
  std::ostringstream text;
  text << "sparsedrop.matmul with m=" << p.m << ", n=" << p.n << ", k=" << p.k << ", lda=" << p.a.ld
       << ", ldb=" << p.b.ld << ", ldd=" << p.d_ld << ", tile " << choice.tile << " of "
       << name(choice.architecture) << (choice.swap ? ", swapped" : "");
  if (choice.split_k != 1) {
    text << ", split into " << choice.split_k << " along k";
  }
  if (p.d_is_fp32) {
    text << (p.accumulates ? ", added to D in float32" : ", D in float32");
  }
  for (auto const& [name, mask] :
       {std::pair("A", p.a_mask), std::pair("B", p.b_mask), std::pair("D", p.d_mask)}) {
    if (mask.block_rows != 0) {
      text << ", blocks of " << name << " " << mask.block_rows << "x" << mask.block_cols;
    }
  }
  return text.str();
}

void set_words(Mask& mask, Launch::Words const& words) {
  mask.row_words = words.rows;
  mask.col_words = words.cols;
}

}  // namespace

Architecture find_architecture(std::string const& wanted) {
  for (int i = 0; i < architecture_count(); ++i) {
    if (name(architecture(i)) == wanted) {
      return architecture(i);
    }
  }
  throw std::invalid_argument("this build of sparsedrop has no kernels of architecture " + wanted);
}

std::optional<std::string> Launch::refusal() const {
  alignas(16) static char aligned[16] = {};
  Problem problem = problem_;
  problem.a.data = problem.b.data = problem.d = &aligned[0];
  for (Mask* mask : {&problem.a_mask, &problem.b_mask, &problem.d_mask}) {
    if (is_mask(*mask)) {
      auto const* const somewhere = reinterpret_cast<uint32_t const*>(&aligned[0]);
      set_words(*mask, {somewhere, somewhere});
    }
  }
  char const* const reason = sparsedrop::refusal(problem, choice_);
  return reason == nullptr ? std::nullopt : std::optional<std::string>(reason);
}

void Launch::run(Call const& call) const {
  Problem problem = problem_;
  problem.a.data = call.a;
  problem.b.data = call.b;
  problem.d = call.d;
  problem.pre_activation = call.pre_activation;
  set_words(problem.a_mask, call.a_words);
  set_words(problem.b_mask, call.b_words);
  set_words(problem.d_mask, call.d_words);
  problem.alpha = call.alpha;
  problem.bias = call.bias;
  problem.accumulates = problem_.accumulates || call.accumulates;
  check(matmul(problem, choice_, call.workspace, call.stream), [&] {
    char const* const reason = sparsedrop::refusal(problem, choice_);
    return describe(problem, choice_) + (reason == nullptr ? "" : std::string(": ") + reason);
  });
}

}  // namespace sparsedrop
