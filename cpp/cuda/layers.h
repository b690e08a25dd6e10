// The host's side of the model: what a step needs, allocated once.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"
#include "model.h"
#include "softq/coupling.h"

namespace softq::cuda {

struct BinnedRange {
  double low, high, spacing;
};

class Layers {
 public:
  // Of the layers, the size, scalar, width, strength and index are used. Without tables, only
  // ranges and counts can be made.
  Layers(const std::vector<Layer>& layers, std::int32_t bins, bool tables, const Place& place);

  const Model& model() const { return model_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(sizes_.size()); }
  // Throws std::invalid_argument unless there is one entry a layer.
  std::vector<Group> groups(const std::vector<Addresses>& addresses) const;
  // Of the first layer, once it is measured. These wait for the stream; binning() throws
  // std::invalid_argument as make_binning() of the CPU core.
  DecodedRange range(cudaStream_t stream) const;
  BinnedRange binning(cudaStream_t stream) const;
  // What the first refused step since the last call was refused for, in the CPU core's words. Waits
  // for the stream.
  std::vector<Refusal> refusals(cudaStream_t stream) const;

 private:
  std::vector<std::uint64_t> sizes_;
  std::vector<Scalar> scalars_;
  std::vector<Segment> segments_;
  std::vector<Group> groups_;  // without addresses
  Array<ConstantLayer> constants_;
  Array<Segment> device_segments_;
  Array<Range> ranges_;
  Array<LayerState> states_;
  Array<Control> control_;
  Array<Progress> progress_;
  Array<unsigned> counts_, prefix_;
  Array<double> tables_;
  Model model_;
};

}  // namespace softq::cuda
