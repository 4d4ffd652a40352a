// Matrices in the words of GPTQ and compressed-tensors, which hold consecutive inputs of one output, to our panels without loss.
#pragma once
#include "kernels.h"

namespace qwenbox {

// Zeros and scales of a whole matrix of n outputs, each for as many inputs as go into `groups` groups.
struct WordNumbers {
  bool by_rows;  // numbers of an output stand together, as its words do (compressed-tensors); otherwise those of a group (GPTQ)
  int groups;
  const uint32_t* zeros;  // words of consecutive outputs; nullptr: the middle of the codes
  uint32_t plus;          // to each word of zeros
  const uint16_t* scales;
};

// Bits of a code of a kind that is packed from words; 0 for others.
int word_bits(Kind kind);
// Group `group` of 128 inputs, from rows of words [32 * bits / 8][n], to its place in every panel; `dst` is that in the first. False where
// a scale is NaN or infinite.
bool pack_word_group(Kind kind, int n, int k, int group, const uint32_t* words, const WordNumbers& numbers, uint8_t* dst,
                     size_t panel_bytes);
// Panel `panel`, from rows of words [outputs][k * bits / 32]; `dst` is the panel.
bool pack_word_panel(Kind kind, int n, int k, int panel, const uint32_t* words, const WordNumbers& numbers, uint8_t* dst);

}  // namespace qwenbox
