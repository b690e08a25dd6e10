// Where the counts and forces of units are, and which blocks work on them.
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace softq::cuda {

struct Layout {
  // Units of so many layers, layer by layer. Those of layers with several units are narrow where
  // they fit into shared memory, unless all are to be wide.
  Layout(std::vector<Unit> all, std::uint32_t layers, bool all_wide,
         Potential potential = Potential::linear);

  // Of one array of weights.
  static Layout single(std::uint64_t size, Scalar scalar, std::int32_t bins);

  // The number of blocks with which a step ends.
  unsigned blocks() const;

  std::vector<Unit> units;
  std::uint32_t layers;
  Potential potential;
  std::vector<std::uint32_t> narrow, wide;
  std::vector<Share> shares;    // of the wide ones
  std::vector<Group> groups;    // without addresses
  std::uint64_t slots = 0;      // bins of the wide ones, rounded up so that each is aligned
  std::uint64_t exchanged = 0;  // of the shared ones
  std::int32_t bins = 1;        // the most that a wide unit has

 private:
  void choose(bool all_wide);
  void place();
  void share_out();
  Group group_of(std::uint32_t first_layer);
  void order(Group& group);
};

}  // namespace softq::cuda
