#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>

#include "arrays.h"
#include "release.h"
#include "softq/coupling.h"

namespace softq::bindings {

namespace {

template <class T>
T* address(std::uint64_t number) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(number));
}

using Refused = std::vector<std::pair<std::size_t, std::string>>;  // segment, reason

// What stays the same from step to step; addresses and scale come with each step.
class Coupling {
 public:
  Coupling(const std::vector<Scalar>& scalars, const std::vector<std::uint64_t>& indices,
           const std::vector<std::size_t>& layers, const std::vector<std::size_t>& begins,
           const std::vector<std::uint64_t>& positions, const std::vector<std::size_t>& sizes,
           const std::vector<std::int32_t>& bins, const std::vector<double>& widths,
           const std::vector<double>& strengths, bool fft, bool log)
      : method_(fft ? Method::fft : Method::scan),
        potential_(potential_of(log)),
        layers_(scalars.size()) {
    if (indices.size() != scalars.size()) throw py::value_error("the lists differ in length");
    for (const auto length : {begins.size(), positions.size(), sizes.size(), bins.size(),
                              widths.size(), strengths.size()}) {
      if (length != layers.size()) throw py::value_error("the lists differ in length");
    }
    // Largest first, as the core likes it.
    order_.resize(layers.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
    for (const std::size_t s : order_) {
      const std::size_t layer = layers[s];
      if (layer >= layers_) throw py::value_error("a segment of no layer");
      owners_.push_back(layer);
      offsets_.push_back(begins[s] * size_of(scalars[layer]));
      segments_.push_back({nullptr, nullptr, sizes[s], scalars[layer], widths[s], strengths[s],
                           indices[layer], bins[s], positions[s]});
    }
  }

  Refused add(const std::vector<std::uint64_t>& thetas, const std::vector<std::uint64_t>& gradients,
              double scale, double fraction, std::uint64_t seed, std::uint64_t step) const {
    std::vector<std::size_t> places;
    const std::vector<Layer> active = active_segments(thetas, gradients, scale, places);
    const CouplingStep how{method_, fraction, seed, step, potential_};
    return named(released([&] { return add_force(active, how); }), places);
  }

  Refused check(const std::vector<std::uint64_t>& thetas,
                const std::vector<std::uint64_t>& gradients) const {
    std::vector<std::size_t> places;
    const std::vector<Layer> active = active_segments(thetas, gradients, 1.0, places);
    return named(released([&] { return softq::check(active); }), places);
  }

  std::pair<Refused, py::array_t<double>> energies(const std::vector<std::uint64_t>& thetas) const {
    if (thetas.size() != layers_) throw py::value_error("every layer requires an address");
    std::vector<Layer> layers;
    layers.reserve(segments_.size());
    for (std::size_t s = 0; s < segments_.size(); ++s) layers.push_back(at(s, thetas));
    std::vector<double> found(segments_.size());
    const auto refusals =
        released([&] { return softq::energies(layers, potential_, found.data()); });
    py::array_t<double> ordered(static_cast<py::ssize_t>(found.size()));
    double* out = ordered.mutable_data();
    for (std::size_t s = 0; s < found.size(); ++s) out[order_[s]] = found[s];
    return {named(refusals, order_), ordered};
  }

 private:
  // The segments that have a gradient; `places` are the numbers that they were given with.
  std::vector<Layer> active_segments(const std::vector<std::uint64_t>& thetas,
                                     const std::vector<std::uint64_t>& gradients, double scale,
                                     std::vector<std::size_t>& places) const {
    if (thetas.size() != layers_ || gradients.size() != layers_)
      throw py::value_error("every layer requires an address, 0 for a missing gradient");
    std::vector<Layer> active;
    active.reserve(segments_.size());
    places.reserve(segments_.size());
    for (std::size_t s = 0; s < segments_.size(); ++s) {
      const std::uint64_t gradient = gradients[owners_[s]];
      if (gradient == 0) continue;
      places.push_back(order_[s]);
      Layer& segment = active.emplace_back(at(s, thetas));
      segment.gradient = address<void>(gradient + offsets_[s]);
      segment.strength *= scale;
    }
    return active;
  }

  // A segment in the layers of these addresses.
  Layer at(std::size_t s, const std::vector<std::uint64_t>& thetas) const {
    Layer segment = segments_[s];
    segment.theta = address<const void>(thetas[owners_[s]] + offsets_[s]);
    return segment;
  }

  // What was refused, by the numbers that the segments were given with, ascending.
  static Refused named(const std::vector<Refusal>& refusals,
                       const std::vector<std::size_t>& places) {
    Refused refused;
    for (const auto& refusal : refusals)
      refused.emplace_back(places[refusal.layer], refusal.reason);
    std::sort(refused.begin(), refused.end());
    return refused;
  }

  Method method_;
  Potential potential_;
  std::size_t layers_;
  // Of segments_: the given number, the layer, bytes from its address
  std::vector<std::size_t> order_, owners_, offsets_;
  std::vector<Layer> segments_;
};

}  // namespace

void bind_coupling(py::module_& m) {
  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::float32)
      .value("float64", Scalar::float64)
      .value("float16", Scalar::float16)
      .value("bfloat16", Scalar::bfloat16);
  py::class_<Coupling>(m, "Coupling")
      .def(py::init<const std::vector<Scalar>&, const std::vector<std::uint64_t>&,
                    const std::vector<std::size_t>&, const std::vector<std::size_t>&,
                    const std::vector<std::uint64_t>&, const std::vector<std::size_t>&,
                    const std::vector<std::int32_t>&, const std::vector<double>&,
                    const std::vector<double>&, bool, bool>(),
           py::arg("scalars"), py::arg("indices"), py::arg("layers"), py::arg("begins"),
           py::arg("positions"), py::arg("sizes"), py::arg("bins"), py::arg("widths"),
           py::arg("strengths"), py::arg("fft"), py::arg("log") = false,
           "Scalar type and index of each layer; of each segment its layer, where it begins in its "
           "memory, the position of its first weight, and its size, bins, width and strength")
      .def("add_force", &Coupling::add, py::arg("thetas"), py::arg("gradients"), py::arg("scale"),
           py::arg("fraction"), py::arg("seed"), py::arg("step"),
           "Addresses of the layers, contiguous, 0 for a gradient to be skipped. [(segment, "
           "reason)] "
           "of the segments that were refused; then no gradient has changed")
      .def("check", &Coupling::check, py::arg("thetas"), py::arg("gradients"),
           "What add_force would refuse")
      .def("energies", &Coupling::energies, py::arg("thetas"),
           "([(segment, reason)] of those refused, strength times energy of each segment)");
}

}  // namespace softq::bindings
