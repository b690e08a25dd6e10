#include "layers.h"

#include <algorithm>
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

double spacing_of(Scalar scalar, double low, double high, std::uint64_t nonfinite,
                  std::uint64_t size, std::int32_t bins) {
  return scalar == Scalar::float64 ? spacing_of<double>(low, high, nonfinite, size, bins)
                                   : spacing_of<float>(low, high, nonfinite, size, bins);
}

std::vector<ConstantLayer> constants_of(const std::vector<Layer>& layers,
                                        const std::vector<Segment>& segments) {
  std::vector<ConstantLayer> constants;
  for (const Layer& layer : layers) {
    constants.push_back({layer.size, layer.width, layer.strength, layer.index, layer.scalar, 0});
  }
  for (const Segment& segment : segments) ++constants[segment.layer].segments;
  return constants;
}

std::vector<std::uint64_t> sizes_of(const std::vector<Layer>& layers) {
  std::vector<std::uint64_t> sizes;
  for (const Layer& layer : layers) sizes.push_back(layer.size);
  return sizes;
}

std::vector<Group> groups_of(const std::vector<Segment>& segments, std::size_t layers) {
  std::vector<Group> groups;
  std::uint32_t segment = 0;
  for (std::uint32_t first = 0; first < layers; first += group_layers) {
    Group group{};
    group.first_layer = first;
    group.first_segment = segment;
    while (segment < segments.size() && segments[segment].layer < first + group_layers) ++segment;
    group.segment_count = segment - group.first_segment;
    groups.push_back(group);
  }
  return groups;
}

std::size_t stride(std::int32_t bins) { return (static_cast<std::size_t>(bins) + 3) / 4 * 4; }

}  // namespace

Layers::Layers(const std::vector<Layer>& layers, std::int32_t bins, bool tables, const Place& place)
    : sizes_(sizes_of(layers)),
      segments_(partition(sizes_, blocks_at_once(bins))),
      groups_(groups_of(segments_, layers.size())),
      constants_(layers.size(), place),
      device_segments_(segments_.size(), place),
      ranges_(layers.size(), place),
      states_(layers.size(), place),
      control_(1, place),
      progress_(1, place),
      counts_(layers.size() * stride(bins), place),
      prefix_(tables ? layers.size() * stride(bins) : 0, place),
      tables_(tables ? layers.size() * stride(bins) : 0, place),
      model_{constants_.data(),
             device_segments_.data(),
             ranges_.data(),
             states_.data(),
             control_.data(),
             progress_.data(),
             counts_.data(),
             prefix_.data(),
             tables_.data(),
             bins,
             static_cast<std::uint32_t>(stride(bins)),
             static_cast<std::uint32_t>(segments_.size())} {
  const cudaStream_t stream = place.stream;
  for (const Layer& layer : layers) scalars_.push_back(layer.scalar);
  constants_.upload(constants_of(layers, segments_), stream);
  device_segments_.upload(segments_, stream);
  control_.upload({Control{1, 1, 0, 0}}, stream);
  ranges_.clear(stream);
  states_.clear(stream);
  progress_.clear(stream);
  counts_.clear(stream);
}

std::vector<Group> Layers::groups(const std::vector<Addresses>& addresses) const {
  if (addresses.size() != sizes_.size()) {
    throw std::invalid_argument("want the addresses of " + std::to_string(sizes_.size()) +
                                " layers, not of " + std::to_string(addresses.size()));
  }
  std::vector<Group> groups = groups_;
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
          spacing_of(scalars_.front(), range.low, range.high, range.nonfinite, sizes_.front(),
                     model_.bins)};
}

std::vector<Refusal> Layers::refusals(cudaStream_t stream) const {
  refuse_capture(stream, "a check of the coupling");
  auto states = states_.download(stream);
  Word first = 0;
  for (const LayerState& state : states) {
    const Word step = state.refused.step;
    if (step != 0 && (first == 0 || step < first)) first = step;
  }
  if (first == 0) return {};
  std::vector<Refusal> refusals;
  for (std::size_t layer = 0; layer < states.size(); ++layer) {
    const RefusedRange refused = std::exchange(states[layer].refused, {});
    if (refused.step != first) continue;
    try {
      spacing_of(scalars_[layer], refused.low, refused.high, refused.nonfinite, sizes_[layer], 1);
    } catch (const std::invalid_argument& error) {
      refusals.push_back({layer, error.what()});
    }
  }
  states_.upload(states, stream);
  return refusals;
}

}  // namespace softq::cuda
