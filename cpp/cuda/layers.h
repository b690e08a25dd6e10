// The host's side of the model: what a step needs, allocated once.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"
#include "layout.h"
#include "model.h"
#include "softq/coupling.h"

namespace softq::cuda {

struct BinnedRange {
  double low, high, spacing;
};

class Layers {
 public:
  enum class Use {
    counts,  // ranges and counts only, without memory for forces
    steps,   // that end by themselves
    phases   // of steps that begin by begin_shared()
  };
  Layers(Layout layout, Use use, const Place& place);

  const Model& model() const { return model_; }
  const Layout& layout() const { return layout_; }
  // Throws std::invalid_argument unless there is one entry a layer.
  std::vector<Group> groups(const std::vector<Addresses>& addresses) const;
  void clear_ranges(cudaStream_t stream) const { ranges_.clear(stream); }

  // These wait for the stream, and have the CPU core's words for what is refused.
  // Of the first unit, once it is measured. binning() throws std::invalid_argument as
  // make_binning().
  DecodedRange range(cudaStream_t stream) const;
  BinnedRange binning(cudaStream_t stream) const;
  // The units whose measured ranges are unfit.
  std::vector<Refusal> unfit(cudaStream_t stream) const;
  // What the first refused step since the last call was refused for.
  std::vector<Refusal> refusals(cudaStream_t stream) const;

 private:
  Layout layout_;
  Array<Unit> units_;
  Array<Share> shares_;
  Array<std::uint32_t> narrow_, wide_;
  Array<Range> ranges_;
  Array<UnitState> states_;
  Array<Control> control_;
  Array<Progress> progress_;
  Array<unsigned> counts_, prefix_;
  Array<double> tables_;
  Array<std::int64_t> moments_;
  Model model_;
};

}  // namespace softq::cuda
