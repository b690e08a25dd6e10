// One step of the coupling for all layers of a model (Table I, step 2), and their energies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "softq/pull.h"
#include "softq/scalar.h"

namespace softq {

enum class Method { scan, fft };

// Weights that interact with each other: a layer, or a segment of one.
struct Layer {
  const void* theta;
  void* gradient;
  std::size_t size;
  Scalar scalar;
  double width;         // w_l
  double strength;      // h_l, and any scale of the gradient
  std::uint64_t index;  // of the layer in the model: the key of its random numbers
  std::int32_t bins;
  std::uint64_t first = 0;  // position in the layer of the segment's first weight
};

// Layers below have 16-bit counts, and energies that are sums of integers.
inline constexpr std::uint64_t narrow_size = std::uint64_t{1} << 16;

struct CouplingStep {
  Method method;
  double fraction;  // share of the weights in the histogram, in (0, 1]
  std::uint64_t seed;
  std::uint64_t step;
  Potential potential = Potential::linear;

  // Of a layer, or segment.
  Pull pull(const Layer& layer) const { return {potential, layer.strength, fraction}; }
};

struct Refusal {
  std::size_t layer;
  std::string reason;
};

// The layers that add_force() refuses.
std::vector<Refusal> check(const std::vector<Layer>& layers);

// gradient += strength * dV/dtheta at each weight's bin midpoint, V from a histogram of the sample
// scaled by 1 / fraction; over |V| of the log potential (pull.h). When a layer is refused (weights
// that are not finite), no gradient of any layer has been touched; the list, in no order, is empty
// when all is well. Nor can the step be interrupted once it writes gradients. Layers are best given
// largest first: then the threads finish together.
std::vector<Refusal> add_force(const std::vector<Layer>& layers, const CouplingStep& step);

// energies[l] = strength times mean_field_energy() of layer l (Eq. 6); its gradient is not used.
// When a layer is refused, no energy is written.
std::vector<Refusal> energies(const std::vector<Layer>& layers, Potential potential,
                              double* energies);

}  // namespace softq
