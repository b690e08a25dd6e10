// The force of each weight's bin, added to the gradients of wide units.
#include "range.h"
#include "step.h"
#include "tables.h"

namespace softq::cuda {
namespace {

template <class T>
struct TableForce {
  Binning<T> binning;
  const T* table;

  __device__ TableForce(const Model& model, const Unit& unit, const UnitState& state)
      : table(reinterpret_cast<const T*>(model.tables + unit.table)) {
    binning.factor = static_cast<T>(state.factor);
    binning.low = static_cast<T>(state.low);
    binning.inverse = static_cast<T>(state.inverse);
    binning.bins = unit.bins;
  }
  __device__ T operator()(T x) const { return table[binning.index(x)]; }
};

__global__ void __launch_bounds__(block_threads)
    add_force_kernel(const Model model, const __grid_constant__ Group group, const bool shared) {
  const Share share = model.shares[group.shares.first + blockIdx.x];
  const Unit& unit = model.units[share.unit];
  const Addresses layer = group.addresses[unit.layer - group.first_layer];
  if (layer.active && unit.shared == shared && model.progress->refused == 0) {
    with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
      const auto* theta = static_cast<const Storage*>(layer.theta) + unit.begin;
      auto* gradient = static_cast<Storage*>(layer.gradient) + unit.begin;
      const TableForce<T> force(model, unit, model.states[share.unit]);
      add_to_gradient<BlockTeam, 2, Walk::packs>(theta, gradient, share.begin, share.end, force);
    });
  }
  end_step(model);
}

__global__ void __launch_bounds__(block_threads)
    table_kernel(const Model model, const Interval wide) {
  const std::uint32_t number = model.wide[wide.first + blockIdx.x];
  const Unit& unit = model.units[number];
  const UnitState& state = model.states[number];
  if (!unit.shared || unit.size == 0 || !state.active) return;
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    force_table<T>(model, unit, state.spacing);
  });
}

template <class T>
__device__ void force_on_bin(const Model& model, const Unit& unit, double spacing,
                             const double* potential, std::int64_t length, std::int64_t k) {
  const double below = potential[k > 0 ? k - 1 : length - 1];
  const Pull pull = pull_of(model, unit);
  const LogPull log(pull, unit.width, spacing, 0);
  const bool linear = pull.potential == Potential::linear;
  const double rise = potential[k + 1] - below;
  const double force =
      linear ? pull.scale() * rise / (2 * spacing)
             : log.force(rise / (2 * spacing), log.at_least(-potential[k] / unit.width));
  auto* table = reinterpret_cast<T*>(model.tables + unit.table);
  table[k] = spacing == 0 ? T{0} : static_cast<T>(force);
}

// The central difference of the potential, evaluated one bin beyond both ends.
__global__ void __launch_bounds__(block_threads)
    difference_kernel(const Model model, const std::uint32_t first, const std::uint32_t blocks,
                      const double* potential, const std::int64_t length) {
  const std::uint32_t row = blockIdx.x / blocks;
  const Unit& unit = model.units[first + row];
  const std::int64_t k = std::int64_t{blockIdx.x % blocks} * block_threads + threadIdx.x;
  if (k >= unit.bins) return;
  const double spacing = model.states[first + row].spacing;
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    force_on_bin<T>(model, unit, spacing, potential + row * length, length, k);
  });
  model.counts[unit.table + static_cast<std::uint64_t>(k)] = 0;
}

}  // namespace

void make_tables(const Model& model, const Group& group, cudaStream_t stream) {
  launch("launch of table_kernel", table_kernel, group.wide.count, block_threads,
         table_shared_bytes, stream, model, group.wide);
}

void force_from_potential(const Model& model, const Interval& units, std::int32_t bins,
                          const double* potential, std::int64_t length, cudaStream_t stream) {
  const auto blocks = (static_cast<std::uint32_t>(bins) + block_threads - 1) / block_threads;
  launch("launch of difference_kernel", difference_kernel, std::size_t{units.count} * blocks,
         block_threads, 0, stream, model, units.first, blocks, potential, length);
}

void add_force(const Model& model, const Group& group, bool shared, cudaStream_t stream) {
  launch("launch of add_force_kernel", add_force_kernel, group.shares.count, block_threads, 0,
         stream, model, group, shared);
}

}  // namespace softq::cuda
