// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random
// words as a function of a key and a counter, so that whoever needs a draw again computes it again.

#pragma once

#include <cstdint>

#include "common/host_device.hpp"

namespace sparsedrop {

struct Philox4 {
  uint32_t word[4];
};

SPARSEDROP_HOST_DEVICE Philox4 philox_round(Philox4 const& counter, uint32_t key_0,
                                            uint32_t key_1) {
  uint64_t const product_0 = uint64_t(0xD2511F53u) * counter.word[0];
  uint64_t const product_1 = uint64_t(0xCD9E8D57u) * counter.word[2];
  return {{uint32_t(product_1 >> 32) ^ counter.word[1] ^ key_0, uint32_t(product_1),
           uint32_t(product_0 >> 32) ^ counter.word[3] ^ key_1, uint32_t(product_0)}};
}

// The counter of a random stream as torch and cuRAND have it: `position` in units of four words,
// then the number of the subsequence.
SPARSEDROP_HOST_DEVICE Philox4 philox(uint64_t seed, uint64_t position, uint64_t subsequence) {
  Philox4 counter{{uint32_t(position), uint32_t(position >> 32), uint32_t(subsequence),
                   uint32_t(subsequence >> 32)}};
  auto key_0 = uint32_t(seed);
  auto key_1 = uint32_t(seed >> 32);
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    counter = philox_round(counter, key_0, key_1);
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace sparsedrop
