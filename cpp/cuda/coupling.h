// One step of the coupling for all layers of a model that live on one device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fft.h"
#include "layers.h"

namespace softq::cuda {

struct How {
  Method method;
  Potential potential;
};

// Everything is allocated here; a step only launches kernels on the caller's stream and can be
// recorded in a graph. For up to 128 layers, these are two for narrow units and, with Method::scan,
// three for the others, one of which serves both.
//
// Of units that several processes hold in pieces, a step takes phases: extremes(), counts(),
// add_force() for the others and add_shared_force(). What a phase writes is exchanged before the
// next one.
class Coupling {
 public:
  // phased: whether steps take the phases, which they must where units are shared.
  Coupling(const std::vector<Unit>& units, std::uint32_t layers, const How& how, bool phased,
           const Place& place);
  Coupling(const Coupling&) = delete;
  Coupling& operator=(const Coupling&) = delete;

  // What later steps use, in the order of the stream.
  void set(const Control& control, cudaStream_t stream) const;

  // A recorded step leaves out the control given: its replays use that of the device, whose step
  // goes on by itself. Refused steps change nothing; check() reports them.
  void add_force(const std::vector<Addresses>& addresses, const Control& control,
                 cudaStream_t stream) const;

  // energies[unit] = strength times energy, unless some are refused. Waits for the stream.
  std::vector<Refusal> energies(const std::vector<Addresses>& addresses,
                                std::vector<double>& energies, const Place& place) const;

  std::vector<Refusal> check(cudaStream_t stream) const { return layers_.refusals(stream); }

  // Device memory: layers (L, 2), zero before; rows (S, 2) of the shared units.
  void extremes(const std::vector<Addresses>& addresses, double* layers, double* rows,
                cudaStream_t stream) const;
  // The number of counts of the shared units.
  std::uint64_t exchanged() const { return layers_.layout().exchanged; }
  // counts: zero before.
  void counts(const std::vector<Addresses>& addresses, const double* layers, const double* rows,
              unsigned* counts, const Control& control, cudaStream_t stream) const;
  void add_shared_force(const std::vector<Addresses>& addresses, unsigned* counts,
                        const Control& control, cudaStream_t stream) const;
  // Of all units, given the counts of all processes. Waits for the stream.
  std::vector<double> piece_energies(const std::vector<Addresses>& addresses, unsigned* counts,
                                     const Place& place) const;

 private:
  void tables_by_fft(cudaStream_t stream) const;
  std::vector<double> measured_energies(const Model& model, const std::vector<Group>& groups,
                                        const Place& place) const;

  bool phased_;
  Layers layers_;
  std::optional<Convolution> convolution_;
  std::optional<Array<Row>> rows_;
  std::uint32_t rows_at_once_ = 0;
};

}  // namespace softq::cuda
