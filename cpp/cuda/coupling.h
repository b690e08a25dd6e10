// One step of the coupling for all layers of a model that live on one device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fft.h"
#include "layers.h"

namespace softq::cuda {

// Everything is allocated here; a step only launches kernels on the caller's stream, three for up
// to 128 layers with Method::scan, and can be recorded in a graph.
class Coupling {
 public:
  Coupling(const std::vector<Layer>& layers, std::int32_t bins, Method method, const Place& place);
  Coupling(const Coupling&) = delete;
  Coupling& operator=(const Coupling&) = delete;

  // What later steps use, in the order of the stream.
  void set(const Control& control, cudaStream_t stream) const;

  // A recorded step leaves out the control given: its replays use that of the device, whose step
  // goes on by itself. Refused steps change nothing; check() reports them.
  void add_force(const std::vector<Addresses>& addresses, const Control& control,
                 cudaStream_t stream) const;

  std::vector<Refusal> check(cudaStream_t stream) const { return layers_.refusals(stream); }

 private:
  Layers layers_;
  std::optional<Convolution> convolution_;
  std::optional<Array<Row>> rows_;
  std::uint32_t rows_at_once_ = 0;
};

}  // namespace softq::cuda
