#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../coupling.h"
#include "place.h"

namespace softq::cuda {
namespace {

template <class T>
using Table = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
void check_shape(const Table<T>& table, py::ssize_t rows, py::ssize_t columns) {
  if (table.ndim() != 2 || table.shape(0) != rows || table.shape(1) != columns)
    throw py::value_error("a table has another shape than expected");
}

// (scalar, index, first position of its block, columns, positions from row to row) of each layer.
using LayerRows = std::vector<
    std::tuple<std::string, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>>;

// rows: layer, begin, size, position, total, bins, and 0, 1 if it is
// shared, or 2 if another process that holds the same piece counts it; scales: width, strength.
std::vector<Unit> units_of(const LayerRows& layers, const Table<std::int64_t>& rows,
                           const Table<double>& scales) {
  const py::ssize_t count = rows.ndim() == 2 ? rows.shape(0) : 0;
  check_shape(rows, count, 7);
  check_shape(scales, count, 2);
  std::vector<Unit> units;
  for (py::ssize_t u = 0; u < count; ++u) {
    const std::int64_t* row = rows.data(u, 0);
    const auto at = [&](int column) { return static_cast<std::uint64_t>(row[column]); };
    const std::uint64_t before = units.empty() ? 0 : units.back().layer;
    if (row[0] < 0 || at(0) >= layers.size() || at(0) < before)
      throw py::value_error("a segment of no layer, or of one before the last");
    if (row[1] < 0 || row[2] < 0 || row[4] < row[2] || row[5] < 1 || row[5] > 1 << 24)
      throw py::value_error("a segment of no weights");
    const auto& [scalar, index, first, columns, outer] = layers[at(0)];
    Unit unit{};
    unit.layer = static_cast<std::uint32_t>(row[0]);
    unit.begin = at(1);
    unit.size = at(2);
    unit.block.first = at(3);
    unit.total = at(4);
    unit.bins = static_cast<std::int32_t>(row[5]);
    unit.shared = row[6] != 0;
    unit.counted = row[6] == 1;
    if (unit.shared) {
      unit.block = {first, columns, outer};
      unit.place = unit.begin;
    }
    unit.width = scales.at(u, 0);
    unit.strength = scales.at(u, 1);
    unit.index = index;
    unit.scalar = scalar_named(scalar);
    units.push_back(unit);
  }
  return units;
}

using Rows = std::vector<std::tuple<Address, Address, bool>>;

std::vector<Addresses> addresses_of(const Rows& rows) {
  std::vector<Addresses> out;
  for (const auto& [theta, gradient, active] : rows)
    out.push_back({pointer<const void>(theta), pointer<void>(gradient), active});
  return out;
}

std::vector<std::pair<std::size_t, std::string>> pairs_of(const std::vector<Refusal>& refusals) {
  std::vector<std::pair<std::size_t, std::string>> out;
  for (const auto& refusal : refusals) out.emplace_back(refusal.layer, refusal.reason);
  return out;
}

py::array_t<double> array_of(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Keeps the device that a coupling lives on with it.
class CouplingOnDevice {
 public:
  CouplingOnDevice(const LayerRows& layers, const Table<std::int64_t>& rows,
                   const Table<double>& scales, std::pair<bool, bool> how, bool phased,
                   const Place& place)
      : device_(place.device) {
    const std::vector<Unit> units = units_of(layers, rows, scales);
    const auto count = static_cast<std::uint32_t>(layers.size());
    const auto [fft, log] = how;
    const How chosen{method_of(fft), log ? Potential::log : Potential::linear};
    on(device_,
       [&] { coupling_ = std::make_unique<Coupling>(units, count, chosen, phased, place); });
  }

  void set(const Control& control, Address stream) const {
    on(device_, [&] { coupling_->set(control, stream_at(stream)); });
  }

  void add_force(const Rows& rows, const Control& control, Address stream) const {
    const auto addresses = addresses_of(rows);
    on(device_, [&] { coupling_->add_force(addresses, control, stream_at(stream)); });
  }

  auto energies(const Rows& rows, const Place& place) const {
    const auto addresses = addresses_of(rows);
    std::vector<double> energies;
    const auto refused =
        on(device_, [&] { return coupling_->energies(addresses, energies, place); });
    return std::pair(pairs_of(refused), array_of(energies));
  }

  bool is_capturing(Address stream) const {
    return on(device_, [&] { return capturing(stream_at(stream)); });
  }

  auto check(Address stream) const {
    return pairs_of(on(device_, [&] { return coupling_->check(stream_at(stream)); }));
  }

  std::uint64_t exchanged() const { return coupling_->exchanged(); }

  void extremes(const Rows& rows, Address layers, Address found, Address stream) const {
    const auto addresses = addresses_of(rows);
    on(device_, [&] {
      coupling_->extremes(addresses, pointer<double>(layers), pointer<double>(found),
                          stream_at(stream));
    });
  }

  void counts(const Rows& rows, const std::pair<Address, Address>& extremes, Address counts,
              const Control& control, Address stream) const {
    const auto addresses = addresses_of(rows);
    on(device_, [&] {
      coupling_->counts(addresses, pointer<const double>(extremes.first),
                        pointer<const double>(extremes.second), pointer<unsigned>(counts), control,
                        stream_at(stream));
    });
  }

  void add_shared_force(const Rows& rows, Address counts, const Control& control,
                        Address stream) const {
    const auto addresses = addresses_of(rows);
    on(device_, [&] {
      coupling_->add_shared_force(addresses, pointer<unsigned>(counts), control, stream_at(stream));
    });
  }

  py::array_t<double> piece_energies(const Rows& rows, Address counts, const Place& place) const {
    const auto addresses = addresses_of(rows);
    return array_of(on(device_, [&] {
      return coupling_->piece_energies(addresses, pointer<unsigned>(counts), place);
    }));
  }

 private:
  int device_;
  std::unique_ptr<Coupling> coupling_;
};

}  // namespace

void bind_coupling(py::module_& m) {
  py::class_<Control>(m, "Control", py::module_local())
      .def(py::init([](double scale, double fraction, std::uint64_t seed, std::uint64_t step) {
             return Control{scale, fraction, seed, step};
           }),
           py::arg("scale"), py::arg("fraction"), py::arg("seed"), py::arg("step"));
  using Self = CouplingOnDevice;
  py::class_<Self>(m, "Coupling", py::module_local())
      .def(py::init<const LayerRows&, const Table<std::int64_t>&, const Table<double>&,
                    std::pair<bool, bool>, bool, const Place&>(),
           py::arg("layers"), py::arg("rows"), py::arg("scales"), py::arg("how"), py::arg("phased"),
           py::arg("place"),
           "layers: (scalar, index, first, columns, outer); rows: (layer, begin, size, position, "
           "total, bins, shared); scales: (width, strength); how: (fft, log)")
      .def("set", &Self::set, py::arg("control"), py::arg("stream"))
      .def("add_force", &Self::add_force, py::arg("addresses"), py::arg("control"),
           py::arg("stream"), "addresses: (weights, gradient, whether it takes part) of each layer")
      .def("energies", &Self::energies, py::arg("addresses"), py::arg("place"),
           "[(row, reason)] of those refused, and the energies of the rows")
      .def("capturing", &Self::is_capturing, py::arg("stream"),
           "whether work on the stream is recorded into a CUDA graph")
      .def("check", &Self::check, py::arg("stream"),
           "[(row, reason)] of the first step refused since the last call")
      .def_property_readonly("exchanged", &Self::exchanged, "counts of the shared rows")
      .def("extremes", &Self::extremes, py::arg("addresses"), py::arg("layers"), py::arg("rows"),
           py::arg("stream"))
      .def("counts", &Self::counts, py::arg("addresses"), py::arg("extremes"), py::arg("counts"),
           py::arg("control"), py::arg("stream"))
      .def("add_shared_force", &Self::add_shared_force, py::arg("addresses"), py::arg("counts"),
           py::arg("control"), py::arg("stream"))
      .def("piece_energies", &Self::piece_energies, py::arg("addresses"), py::arg("counts"),
           py::arg("place"));
}

}  // namespace softq::cuda
