#include "layers.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "softq/density.h"

namespace softq::cuda {
namespace {

// By the CPU core, which throws its own words where it refuses.
template <class T>
double spacing_of(double low, double high, std::uint64_t nonfinite, std::uint64_t size,
                  std::int32_t bins) {
  const Extent<T> extent{static_cast<T>(low), static_cast<T>(high),
                         static_cast<std::int64_t>(nonfinite)};
  return make_binning(extent, size, bins).spacing;
}

double spacing_of(const Unit& unit, double low, double high, std::uint64_t nonfinite) {
  return unit.scalar == Scalar::float64
             ? spacing_of<double>(low, high, nonfinite, unit.total, unit.bins)
             : spacing_of<float>(low, high, nonfinite, unit.total, unit.bins);
}

// Why a range is refused; empty if it is not. How many weights of a shared unit are not finite is
// not known.
std::string reason(const Unit& unit, double low, double high, std::uint64_t nonfinite) {
  if (nonfinite == 0 && (std::isinf(low) || std::isinf(high)))
    return "some of " + std::to_string(unit.total) + " weights are not finite (NaN or inf)";
  try {
    spacing_of(unit, low, high, nonfinite);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

}  // namespace

Layers::Layers(Layout layout, Use use, const Place& place)
    : layout_(std::move(layout)),
      units_(layout_.units.size(), place),
      shares_(layout_.shares.size(), place),
      narrow_(layout_.narrow.size(), place),
      wide_(layout_.wide.size(), place),
      ranges_(layout_.units.size(), place),
      states_(layout_.units.size(), place),
      control_(1, place),
      progress_(1, place),
      counts_(layout_.slots, place),
      prefix_(use == Use::counts ? 0 : layout_.slots, place),
      tables_(use == Use::counts ? 0 : layout_.slots, place),
      moments_(layout_.potential == Potential::log ? layout_.slots : 0, place),
      model_{units_.data(),   shares_.data(),    narrow_.data(),
             wide_.data(),    ranges_.data(),    states_.data(),
             control_.data(), progress_.data(),  counts_.data(),
             nullptr,         prefix_.data(),    tables_.data(),
             moments_.data(), layout_.potential, use == Use::steps ? layout_.blocks() : 0} {
  const cudaStream_t stream = place.stream;
  units_.upload(layout_.units, stream);
  shares_.upload(layout_.shares, stream);
  narrow_.upload(layout_.narrow, stream);
  wide_.upload(layout_.wide, stream);
  control_.upload({Control{1, 1, 0, 0}}, stream);
  ranges_.clear(stream);
  states_.clear(stream);
  progress_.clear(stream);
  counts_.clear(stream);
}

std::vector<Group> Layers::groups(const std::vector<Addresses>& addresses) const {
  if (addresses.size() != layout_.layers) {
    throw std::invalid_argument("expected the addresses of " + std::to_string(layout_.layers) +
                                " layers, not of " + std::to_string(addresses.size()));
  }
  std::vector<Group> groups = layout_.groups;
  for (std::size_t layer = 0; layer < addresses.size(); ++layer)
    groups[layer / group_layers].addresses[layer % group_layers] = addresses[layer];
  return groups;
}

DecodedRange Layers::range(cudaStream_t stream) const {
  return DecodedRange(ranges_.download(stream).front());
}

BinnedRange Layers::binning(cudaStream_t stream) const {
  const DecodedRange range = this->range(stream);
  return {range.low, range.high,
          spacing_of(layout_.units.front(), range.low, range.high, range.nonfinite)};
}

std::vector<Refusal> Layers::unfit(cudaStream_t stream) const {
  const std::vector<Range> ranges = ranges_.download(stream);
  std::vector<Refusal> refusals;
  for (std::size_t unit = 0; unit < ranges.size(); ++unit) {
    const DecodedRange range(ranges[unit]);
    auto words = reason(layout_.units[unit], range.low, range.high, range.nonfinite);
    if (!words.empty()) refusals.push_back({unit, std::move(words)});
  }
  return refusals;
}

std::vector<Refusal> Layers::refusals(cudaStream_t stream) const {
  refuse_capture(stream, "a check of the coupling");
  auto states = states_.download(stream);
  Word first = 0;
  for (const UnitState& state : states) {
    const Word step = state.refused.step;
    if (step != 0 && (first == 0 || step < first)) first = step;
  }
  if (first == 0) return {};
  std::vector<Refusal> refusals;
  for (std::size_t unit = 0; unit < states.size(); ++unit) {
    const RefusedRange refused = std::exchange(states[unit].refused, {});
    if (refused.step != first) continue;
    refusals.push_back(
        {unit, reason(layout_.units[unit], refused.low, refused.high, refused.nonfinite)});
  }
  states_.upload(states, stream);
  return refusals;
}

}  // namespace softq::cuda
