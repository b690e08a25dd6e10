#include "coupling.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "softq/checks.h"

namespace softq::cuda {
namespace {

Layout layout_of(const std::vector<Unit>& units, std::uint32_t layers, const How& how,
                 cudaStream_t stream) {
  refuse_capture(stream, "the first step of a coupling");
  for (const Unit& unit : units) check_size(unit.total);
  return {units, layers, how.method == Method::fft, how.potential};
}

// Of counts that processes exchange.
Model with_counts(Model model, unsigned* counts) {
  model.shared_counts = counts;
  return model;
}

}  // namespace

Coupling::Coupling(const std::vector<Unit>& units, std::uint32_t layers, const How& how,
                   bool phased, const Place& place)
    : phased_(phased),
      layers_(layout_of(units, layers, how, place.stream),
              phased ? Layers::Use::phases : Layers::Use::steps, place) {
  const cudaStream_t stream = place.stream;
  if (how.method == Method::fft && !units.empty()) {
    const std::int32_t bins = layers_.layout().bins;
    const Model& model = layers_.model();
    rows_at_once_ = static_cast<std::uint32_t>(cuda::rows_at_once(units.size(), bins));
    std::vector<Row> rows;
    for (std::size_t u = 0; u < units.size(); ++u) {
      const Unit& unit = layers_.layout().units[u];
      if (unit.bins != bins) throw std::invalid_argument("method fft is for whole layers");
      rows.push_back({model.counts + unit.table, &model.states[u].spacing, unit.width});
    }
    // All batches are of one size: the last one is filled up with rows that nobody looks at.
    while (rows.size() % rows_at_once_ != 0) rows.push_back(rows.back());
    rows_.emplace(rows.size(), place);
    rows_->upload(rows, stream);
    convolution_.emplace(bins, rows_at_once_, place);
  }
  cuda::check(cudaStreamSynchronize(stream),
              "cudaStreamSynchronize");  // steps may use other streams
}

void Coupling::set(const Control& control, cudaStream_t stream) const {
  refuse_capture(stream, "a new fraction or step of the coupling");
  set_control(layers_.model(), control, stream);
}

void Coupling::add_force(const std::vector<Addresses>& addresses, const Control& control,
                         cudaStream_t stream) const {
  const Model& model = layers_.model();
  const auto groups = layers_.groups(addresses);
  const Control* given = capturing(stream) ? nullptr : &control;
  for (const Group& group : groups) {
    if (phased_ || !group.measures()) continue;
    measure(model, group, std::exchange(given, nullptr), true, stream);  // the first one sets it
  }
  if (phased_) set_control(model, control, stream);
  const Counting counting{false, false, !convolution_};
  for (const Group& group : groups) count(model, group, counting, layers_.layout().bins, stream);
  if (convolution_) tables_by_fft(stream);
  for (const Group& group : groups) couple_narrow(model, group, false, stream);
  for (const Group& group : groups) cuda::add_force(model, group, false, stream);
}

void Coupling::tables_by_fft(cudaStream_t stream) const {
  const auto units = static_cast<std::uint32_t>(layers_.layout().units.size());
  for (std::uint32_t first = 0; first < units; first += rows_at_once_) {
    convolution_->run(rows_->data() + first, stream);
    const Interval batch{first, std::min(rows_at_once_, units - first)};
    force_from_potential(layers_.model(), batch, layers_.layout().bins, convolution_->potential(),
                         convolution_->length(), stream);
  }
}

std::vector<double> Coupling::measured_energies(const Model& model,
                                                const std::vector<Group>& groups,
                                                const Place& place) const {
  const Counting counting{false, true, false};
  const Array<double> energies(layers_.layout().units.size(), place);
  energies.clear(place.stream);
  for (const Group& group : groups) {
    count(model, group, counting, layers_.layout().bins, place.stream);
    wide_energies(model, group, energies.data(), place.stream);
    narrow_energies(model, group, energies.data(), place.stream);
  }
  return energies.download(place.stream);
}

std::vector<Refusal> Coupling::energies(const std::vector<Addresses>& addresses,
                                        std::vector<double>& energies, const Place& place) const {
  refuse_capture(place.stream, "the energy of the coupling");
  const auto groups = layers_.groups(addresses);
  layers_.clear_ranges(place.stream);
  for (const Group& group : groups) measure(layers_.model(), group, nullptr, false, place.stream);
  std::vector<Refusal> refused = layers_.unfit(place.stream);
  if (refused.empty()) {
    energies = measured_energies(layers_.model(), groups, place);
  } else {
    layers_.clear_ranges(place.stream);
  }
  return refused;
}

void Coupling::extremes(const std::vector<Addresses>& addresses, double* layers, double* rows,
                        cudaStream_t stream) const {
  layers_.clear_ranges(stream);
  for (const Group& group : layers_.groups(addresses)) {
    measure(layers_.model(), group, nullptr, false, stream);
    cuda::extremes(layers_.model(), group, layers, rows, stream);
  }
}

void Coupling::counts(const std::vector<Addresses>& addresses, const double* layers,
                      const double* rows, unsigned* counts, const Control& control,
                      cudaStream_t stream) const {
  const Model model = with_counts(layers_.model(), counts);
  begin_shared(model, control, stream);
  for (const Group& group : layers_.groups(addresses)) {
    adopt(model, group, layers, rows, stream);
    count(model, group, {true, false, false}, layers_.layout().bins, stream);
    count_narrow(model, group, stream);
  }
}

void Coupling::add_shared_force(const std::vector<Addresses>& addresses, unsigned* counts,
                                const Control& control, cudaStream_t stream) const {
  const Model model = with_counts(layers_.model(), counts);
  const auto groups = layers_.groups(addresses);
  set_control(model, control, stream);
  if (convolution_) {
    for (const Unit& unit : layers_.layout().units) {
      if (!unit.shared) continue;
      cuda::check(cudaMemcpyAsync(model.counts + unit.table, counts + unit.slot,
                                  static_cast<std::size_t>(unit.bins) * sizeof(unsigned),
                                  cudaMemcpyDeviceToDevice, stream),
                  "cudaMemcpyAsync");
    }
    tables_by_fft(stream);
  }
  for (const Group& group : groups) {
    if (!convolution_) make_tables(model, group, stream);
    couple_narrow(model, group, true, stream);
    cuda::add_force(model, group, true, stream);
  }
}

std::vector<double> Coupling::piece_energies(const std::vector<Addresses>& addresses,
                                             unsigned* counts, const Place& place) const {
  return measured_energies(with_counts(layers_.model(), counts), layers_.groups(addresses), place);
}

}  // namespace softq::cuda
