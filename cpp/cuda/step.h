// How a step adds a force to gradients, and ends.
#pragma once

#include "block.h"
#include "model.h"
#include "packs.h"

namespace softq::cuda {

// What a thread has fetched of the arrays.
template <class Storage, unsigned size>
struct Fetched {
  Pack<Storage, size> theta, gradient;
};

// gradient[i] += force(theta[i]). Called by all threads of the team.
template <class Team, unsigned batch, Walk walk, class Storage, class Force>
__device__ void add_to_gradient(const Storage* theta, Storage* gradient, std::uint64_t begin,
                                std::uint64_t end, const Force& force) {
  for_packs<Team, batch, walk>(
      begin, end, theta, gradient,
      [&]<unsigned n>(Size<n>, std::uint64_t i) {
        return Fetched<Storage, n>{load_once<n>(theta + i), load_once<n>(gradient + i)};
      },
      [&]<unsigned n>(Size<n>, std::uint64_t i, Fetched<Storage, n> at, bool inside) {
        if (!inside) return;
#pragma unroll
        for (unsigned j = 0; j < n; ++j) {
          const auto x = computed(at.theta.at[j]);
          at.gradient.at[j] = rounded<Storage>(computed(at.gradient.at[j]) + force(x));
        }
        store_once(gradient + i, at.gradient);
      });
}

// Ends the step: the next one draws a new sample, in a replayed graph too. All blocks have read
// progress.refused before. Called by all threads of each block.
__device__ inline void end_step(const Model& model) {
  if (model.blocks == 0) return;
  if (!last_block(&model.progress->ticket, model.blocks) || threadIdx.x != 0) return;
  model.progress->refused = 0;
  ++model.progress->finished;
  ++model.control->step;
}

}  // namespace softq::cuda
