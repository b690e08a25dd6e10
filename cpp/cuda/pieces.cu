// What processes that hold pieces of the same units exchange: extremes, before the counts.
#include <limits>

#include "range.h"
#include "tables.h"

namespace softq::cuda {
namespace {

constexpr unsigned threads = 256;

constexpr double infinite = std::numeric_limits<double>::infinity();

std::size_t blocks_for(const Group& group) { return (group.units.count + threads - 1) / threads; }

__device__ bool usable(const Unit& unit, const DecodedRange& range) {
  return with_storage(unit.scalar,
                      [&]<class Storage, class T>(Storage, T) { return range.usable<T>(); });
}

// The largest weight and the smallest one negated.
struct Extremes {
  double high, negated;

  __device__ explicit Extremes(const Range& range)
      : high(range.high == 0 ? -infinite : decode(range.high)),
        negated(range.high == 0 ? -infinite : decode(range.negated_low)) {
    if (range.nonfinite > 0) high = negated = infinite;
  }
};

__global__ void extremes_kernel(const Model model, const __grid_constant__ Group group,
                                double* layers, double* rows) {
  const std::uint32_t at = blockIdx.x * threads + threadIdx.x;
  if (at >= group.units.count) return;
  const std::uint32_t number = group.units.first + at;
  const Unit& unit = model.units[number];
  const Range range = model.ranges[number];
  double* own = layers + 2 * std::size_t{unit.layer};
  const bool active = group.addresses[unit.layer - group.first_layer].active;
  if (active) own[1] = 1;
  if (!unit.shared) {
    if (active && unit.size > 0 && !usable(unit, DecodedRange(range))) own[0] = 1;
    return;
  }
  const Extremes found(range);
  rows[2 * std::size_t{unit.number}] = found.high;
  rows[2 * std::size_t{unit.number} + 1] = found.negated;
}

__device__ void adopt_shared(const Model& model, std::uint32_t number, const Unit& unit,
                             const double* row, bool active) {
  Range range{};
  if (row[0] != -infinite) range = {encode(row[0]), encode(row[1]), 0};
  model.ranges[number] = range;
  const DecodedRange decoded(range);
  const bool fine = usable(unit, decoded);
  UnitState& state = model.states[number];
  state.active = active && fine;
  if (active && !fine) refuse(model, number, decoded);
  with_storage(unit.scalar, [&]<class Storage, class T>(Storage, T) {
    fix_binning(state,
                Binning<T>(static_cast<T>(decoded.low), static_cast<T>(decoded.high), unit.bins));
  });
}

__global__ void adopt_kernel(const Model model, const Interval units, const double* layers,
                             const double* rows) {
  const std::uint32_t at = blockIdx.x * threads + threadIdx.x;
  if (at >= units.count) return;
  const std::uint32_t number = units.first + at;
  const Unit& unit = model.units[number];
  const double* layer = layers + 2 * std::size_t{unit.layer};
  const bool active = layer[1] > 0;
  const bool unfit = active && layer[0] > 0;
  if (unit.shared) {
    adopt_shared(model, number, unit, rows + 2 * std::size_t{unit.number}, active);
  } else if (unfit && unit.size > 0) {
    const DecodedRange range(model.ranges[number]);
    if (!usable(unit, range)) return refuse(model, number, range);
  }
  // Which of its weights are unfit, the process that holds them reports.
  if (unit.first && unfit) {
    DecodedRange unknown{Range{}};
    unknown.low = -infinite;
    unknown.high = infinite;
    refuse(model, number, unknown);
  }
}

__global__ void begin_kernel(const Model model, const Control control) {
  *model.control = control;
  model.progress->refused = 0;
  ++model.progress->finished;
}

}  // namespace

void extremes(const Model& model, const Group& group, double* layers, double* rows,
              cudaStream_t stream) {
  launch("launch of extremes_kernel", extremes_kernel, blocks_for(group), threads, 0, stream, model,
         group, layers, rows);
}

void adopt(const Model& model, const Group& group, const double* layers, const double* rows,
           cudaStream_t stream) {
  launch("launch of adopt_kernel", adopt_kernel, blocks_for(group), threads, 0, stream, model,
         group.units, layers, rows);
}

void begin_shared(const Model& model, const Control& control, cudaStream_t stream) {
  launch("launch of begin_kernel", begin_kernel, 1, 1, 0, stream, model, control);
}

}  // namespace softq::cuda
