// The coupling of layers of which each process holds a piece: the step and the energies in phases.
//
// Each process finds the ranges of its pieces; their extremes are those of the layer. Each counts
// its own weights over that range; the sum of the counts is the layer's histogram. Each computes
// the same force table from it, for its own gradient. All that is exchanged is extremes and
// integers, so the gradients are those of add_force() (coupling.h), bit by bit, however a layer is
// divided.
#pragma once

#include <cstdint>
#include <vector>

#include "softq/coupling.h"
#include "softq/density.h"
#include "softq/sampling.h"

namespace softq {

// A process's part of a layer, or of a segment of one: consecutive weights of a block.
struct Piece {
  Layer own;            // its weights; `first` is not used
  std::uint64_t total;  // number of weights in all pieces
  Block block;
  std::uint64_t begin;  // number in the block of the first weight
};

// Of no weights: inf and -inf. They mean nothing unless `nonfinite` is 0.
struct Range {
  double low, high;
  std::uint64_t nonfinite;
};

std::vector<Range> piece_ranges(const std::vector<Piece>& pieces);

// The number of sampled weights in each bin over the ranges of the layers, piece after piece; zeros
// of those left out. Throws std::invalid_argument for ranges that the weights' type cannot hold.
void count_pieces(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                  const std::vector<bool>& included, const CouplingStep& step, Count* counts);

// The force from the counts of all pieces; pieces without a gradient are left out. The ranges have
// been counted over.
void add_piece_force(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                     const CouplingStep& step, const Count* counts);

// As energies(), from the counts of all pieces.
void piece_energies(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                    const Count* counts, Potential potential, double* energies);

}  // namespace softq
