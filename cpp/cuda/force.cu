// The force of each weight's bin, added to the gradients.
#include "model.h"
#include "packs.h"
#include "softq/binning.h"

namespace softq::cuda {
namespace {

template <class T>
struct LayerForce {
  Binning<T> binning;
  const T* table;

  __device__ LayerForce(const Model& model, std::uint32_t layer)
      : table(reinterpret_cast<const T*>(model.tables + std::size_t{layer} * model.bins_stride)) {
    const LayerState& state = model.states[layer];
    binning.factor = static_cast<T>(state.factor);
    binning.low = static_cast<T>(state.low);
    binning.inverse = static_cast<T>(state.inverse);
    binning.bins = model.bins;
  }
  __device__ T operator()(T x) const { return table[binning.index(x)]; }
};

// What a thread has fetched of the arrays.
template <class Storage, unsigned size>
struct Fetched {
  Pack<Storage, size> theta, gradient;
};

// Ends the step: the next one draws a new sample, in a replayed graph too. All blocks have read
// progress.refused before.
__device__ void end_step(const Model& model) {
  if (!last_block(&model.progress->ticket, model.segment_count) || threadIdx.x != 0) return;
  model.progress->refused = 0;
  ++model.progress->finished;
  ++model.control->step;
}

__global__ void __launch_bounds__(block_threads)
    add_force_kernel(const Model model, const __grid_constant__ Group group) {
  const Segment segment = model.segments[group.first_segment + blockIdx.x];
  const Addresses addresses = group.addresses[segment.layer - group.first_layer];
  if (addresses.theta != nullptr && model.progress->refused == 0) {
    with_storage(model.layers[segment.layer].scalar, [&]<class Storage, class T>(Storage, T) {
      const auto* theta = static_cast<const Storage*>(addresses.theta);
      auto* gradient = static_cast<Storage*>(addresses.gradient);
      const LayerForce<T> force(model, segment.layer);
      for_packs<2>(
          segment.begin, segment.end, theta, gradient,
          [&]<unsigned n>(Size<n>, std::uint64_t i) {
            return Fetched<Storage, n>{load_once<n>(theta + i), load_once<n>(gradient + i)};
          },
          [&]<unsigned n>(Size<n>, std::uint64_t i, Fetched<Storage, n> at, bool inside) {
            if (!inside) return;
#pragma unroll
            for (unsigned j = 0; j < n; ++j) {
              at.gradient.at[j] = rounded<Storage>(static_cast<T>(at.gradient.at[j]) +
                                                   force(static_cast<T>(at.theta.at[j])));
            }
            store_once(gradient + i, at.gradient);
          });
    });
  }
  end_step(model);
}

template <class T>
__device__ void force_on_bin(const Model& model, std::uint32_t layer, const double* potential,
                             std::int64_t length, std::int64_t k) {
  const double spacing = model.states[layer].spacing;
  const Control& control = *model.control;
  const double scale = model.layers[layer].strength * control.scale / control.fraction;
  const double below = potential[k > 0 ? k - 1 : length - 1];
  auto* table = reinterpret_cast<T*>(model.tables + std::size_t{layer} * model.bins_stride);
  table[k] =
      spacing == 0 ? T{0} : static_cast<T>(scale * (potential[k + 1] - below) / (2 * spacing));
}

// The central difference of the potential, evaluated one bin beyond both ends.
__global__ void __launch_bounds__(block_threads)
    difference_kernel(const Model model, const std::uint32_t first_layer,
                      const std::uint32_t blocks, const double* potential,
                      const std::int64_t length) {
  const std::uint32_t row = blockIdx.x / blocks;
  const std::uint32_t layer = first_layer + row;
  const std::int64_t k = std::int64_t{blockIdx.x % blocks} * block_threads + threadIdx.x;
  if (k >= model.bins) return;
  with_storage(model.layers[layer].scalar, [&]<class Storage, class T>(Storage, T) {
    force_on_bin<T>(model, layer, potential + row * length, length, k);
  });
  model.counts[std::size_t{layer} * model.bins_stride + k] = 0;
}

}  // namespace

void force_from_potential(const Model& model, std::uint32_t first_layer, std::uint32_t layers,
                          const double* potential, std::int64_t length, cudaStream_t stream) {
  const auto blocks = (static_cast<std::uint32_t>(model.bins) + block_threads - 1) / block_threads;
  launch("launch of difference_kernel", difference_kernel, layers * blocks, block_threads, 0,
         stream, model, first_layer, blocks, potential, length);
}

void add_force(const Model& model, const Group& group, cudaStream_t stream) {
  launch("launch of add_force_kernel", add_force_kernel, group.segment_count, block_threads, 0,
         stream, model, group);
}

}  // namespace softq::cuda
