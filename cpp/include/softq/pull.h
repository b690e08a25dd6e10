// How strongly the weights in a bin are pulled, given what is in the bin's window: the two
// potentials.
#pragma once

#include <cstdint>

#include "softq/well.h"

namespace softq {

// The loss of a layer, times its strength h: the sum of V over its weights (linear, Eq. 6), or the
// length of its code in nats, -sum_i log(|V(theta_i)| / (N w)) (log).
enum class Potential { linear, log };

// The force is h F (linear) or h F / |V| (log); the counts are those of a fraction of the weights.
struct Pull {
  Potential potential = Potential::linear;
  double strength = 1;  // h
  double fraction = 1;

  // Of the integer force, with the linear potential.
  SOFTQ_HD double scale() const { return strength / fraction; }
};

// The log potential on bins. The occupancy of a bin is |V| / w: the weights in its window, each
// less by its distance over w. That of a weight's bin is 1 or more, since the weight itself is in
// it, drawn or not: nothing is divided by 0.
struct LogPull {
  double scale;  // of the integer force
  double ratio;  // of the distance between bins to the width
  double least;  // occupancy: 1, of the counts of a fraction

  SOFTQ_HD LogPull(const Pull& pull, double width, double spacing, std::int64_t reach)
      : scale(pull.strength / width),
        ratio(reach > 0 ? spacing / width : 0.0),
        least(pull.fraction) {}

  // distance: the sum of those of the window's weights, in bins.
  SOFTQ_HD double occupancy(double population, double distance) const {
    return at_least(population - ratio * distance);
  }
  SOFTQ_HD double at_least(double occupancy) const { return occupancy > least ? occupancy : least; }

  SOFTQ_HD double force(double slope, double occupancy) const {
    return scale * (slope / occupancy);
  }
};

}  // namespace softq
