// Whether a mask can be read at all.

#pragma once

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// Null where its blocks are legal, or it is no mask; else the reason why not.
inline char const* blocks_refusal(Mask const& mask) {
  bool const are_legal = mask.block_rows > 0 && mask.block_cols > 0 &&
                         mask.block_rows % kMaskUnit == 0 && mask.block_cols % kMaskUnit == 0;
  return !is_mask(mask) || are_legal ? nullptr : "a block extent is no multiple of 64";
}

// Without words dropped blocks would count as live; without blocks words would count for nothing.
inline char const* words_refusal(Mask const& mask) {
  bool const has_all = mask.row_words != nullptr && mask.col_words != nullptr;
  bool const has_any = mask.row_words != nullptr || mask.col_words != nullptr;
  return is_mask(mask) ? (has_all ? nullptr : "a mask has blocks but no words")
                       : (has_any ? "a mask has words but no blocks" : nullptr);
}

}  // namespace sparsedrop
