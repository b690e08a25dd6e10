#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "release.h"
#include "softq/pieces.h"

namespace softq::bindings {

namespace {

template <class T>
using Table = py::array_t<T, py::array::c_style>;

template <class T>
void check_shape(const Table<T>& table, std::size_t rows, py::ssize_t columns) {
  if (table.ndim() != 2 || table.shape(0) != static_cast<py::ssize_t>(rows) ||
      table.shape(1) != columns)
    throw py::value_error("a table has another shape than expected");
}

template <class T>
T* memory(std::uint64_t address, std::size_t bytes) {
  return address == 0 ? nullptr
                      : reinterpret_cast<T*>(static_cast<std::uintptr_t>(address) + bytes);
}

// What stays the same from step to step.
class Pieces {
 public:
  Pieces(const std::vector<Scalar>& scalars, const std::vector<std::uint64_t>& indices,
         const Table<std::int64_t>& blocks, const Table<std::int64_t>& rows,
         const Table<double>& scales, bool fft, bool log)
      : method_(fft ? Method::fft : Method::scan),
        potential_(potential_of(log)),
        layers_(scalars.size()) {
    const auto count = static_cast<std::size_t>(rows.ndim() == 2 ? rows.shape(0) : 0);
    if (indices.size() != layers_) throw py::value_error("the lists differ in length");
    check_shape(blocks, layers_, 3);
    check_shape(rows, count, 5);
    check_shape(scales, count, 2);
    for (std::size_t p = 0; p < count; ++p) {
      const std::int64_t* row = rows.data(static_cast<py::ssize_t>(p), 0);
      const auto [layer, begin, size, total, bins] =
          std::tuple(row[0], row[1], row[2], row[3], row[4]);
      if (layer < 0 || static_cast<std::size_t>(layer) >= layers_)
        throw py::value_error("a piece of no layer");
      const std::int64_t* block = blocks.data(layer, 0);
      if (begin < 0 || size < 0 || total < size || bins < 1 || bins > 1 << 24 || block[1] < 1)
        throw py::value_error("a piece of no weights");
      const auto owner = static_cast<std::size_t>(layer);
      Piece piece{};
      piece.own = {nullptr,
                   nullptr,
                   static_cast<std::size_t>(size),
                   scalars[owner],
                   scales.at(p, 0),
                   scales.at(p, 1),
                   indices[owner],
                   static_cast<std::int32_t>(bins)};
      piece.total = static_cast<std::uint64_t>(total);
      piece.block = {static_cast<std::uint64_t>(block[0]), static_cast<std::uint64_t>(block[1]),
                     static_cast<std::uint64_t>(block[2])};
      piece.begin = static_cast<std::uint64_t>(begin);
      owners_.push_back(owner);
      pieces_.push_back(piece);
      slots_ += static_cast<std::size_t>(bins);
    }
  }

  py::tuple ranges(const std::vector<std::uint64_t>& thetas) const {
    const std::vector<Piece> pieces = at(thetas);
    const std::vector<Range> found = released([&] { return piece_ranges(pieces); });
    Table<double> extremes({found.size(), std::size_t{2}});
    Table<std::int64_t> nonfinite(static_cast<py::ssize_t>(found.size()));
    for (std::size_t p = 0; p < found.size(); ++p) {
      extremes.mutable_at(p, 0) = found[p].low;
      extremes.mutable_at(p, 1) = found[p].high;
      nonfinite.mutable_at(p) = static_cast<std::int64_t>(found[p].nonfinite);
    }
    return py::make_tuple(extremes, nonfinite);
  }

  Table<std::int32_t> counts(const std::vector<std::uint64_t>& thetas,
                             const std::vector<bool>& included, const Table<double>& ranges,
                             double fraction, std::uint64_t seed, std::uint64_t step) const {
    if (included.size() != pieces_.size()) throw py::value_error("the lists differ in length");
    const std::vector<Piece> pieces = at(thetas);
    const std::vector<Range> over = ranges_of(ranges);
    Table<std::int32_t> counts(static_cast<py::ssize_t>(slots_));
    Count* to = reinterpret_cast<Count*>(counts.mutable_data());
    released([&] { count_pieces(pieces, over, included, {method_, fraction, seed, step}, to); });
    return counts;
  }

  void add(const std::vector<std::uint64_t>& thetas, const std::vector<std::uint64_t>& gradients,
           const Table<double>& ranges, const Table<std::int32_t>& counts, double scale,
           double fraction) const {
    if (gradients.size() != layers_) throw py::value_error("every layer requires an address");
    std::vector<Piece> pieces = at(thetas);
    for (std::size_t p = 0; p < pieces.size(); ++p) {
      pieces[p].own.gradient = memory<void>(gradients[owners_[p]], offset(p));
      pieces[p].own.strength *= scale;
    }
    const std::vector<Range> over = ranges_of(ranges);
    const Count* from = counts_of(counts);
    released([&] { add_piece_force(pieces, over, {method_, fraction, 0, 0, potential_}, from); });
  }

  Table<double> energies(const Table<double>& ranges, const Table<std::int32_t>& counts) const {
    const std::vector<Range> over = ranges_of(ranges);
    const Count* from = counts_of(counts);
    Table<double> found(static_cast<py::ssize_t>(pieces_.size()));
    double* to = found.mutable_data();
    released([&] { piece_energies(pieces_, over, from, potential_, to); });
    return found;
  }

 private:
  std::size_t offset(std::size_t p) const {
    return static_cast<std::size_t>(pieces_[p].begin) * size_of(pieces_[p].own.scalar);
  }

  std::vector<Piece> at(const std::vector<std::uint64_t>& thetas) const {
    if (thetas.size() != layers_) throw py::value_error("every layer requires an address");
    std::vector<Piece> pieces = pieces_;
    for (std::size_t p = 0; p < pieces.size(); ++p)
      pieces[p].own.theta = memory<const void>(thetas[owners_[p]], offset(p));
    return pieces;
  }

  std::vector<Range> ranges_of(const Table<double>& table) const {
    check_shape(table, pieces_.size(), 2);
    std::vector<Range> ranges;
    for (std::size_t p = 0; p < pieces_.size(); ++p)
      ranges.push_back({table.at(p, 0), table.at(p, 1), 0});
    return ranges;
  }

  const Count* counts_of(const Table<std::int32_t>& counts) const {
    if (counts.ndim() != 1 || counts.size() != static_cast<py::ssize_t>(slots_))
      throw py::value_error("the counts do not fit the pieces");
    return reinterpret_cast<const Count*>(counts.data());
  }

  Method method_;
  Potential potential_;
  std::size_t layers_;
  std::size_t slots_ = 0;  // of all counts
  std::vector<std::size_t> owners_;
  std::vector<Piece> pieces_;
};

}  // namespace

void bind_pieces(py::module_& m) {
  py::class_<Pieces>(m, "Pieces")
      .def(py::init<const std::vector<Scalar>&, const std::vector<std::uint64_t>&,
                    const Table<std::int64_t>&, const Table<std::int64_t>&, const Table<double>&,
                    bool, bool>(),
           py::arg("scalars"), py::arg("indices"), py::arg("blocks"), py::arg("rows"),
           py::arg("scales"), py::arg("fft"), py::arg("log") = false,
           "Scalar type and index of each layer, first position, columns and outer columns of its "
           "block; of each piece its layer, begin, size, total and bins, its width and strength")
      .def("ranges", &Pieces::ranges, py::arg("thetas"),
           "((lowest, highest) of each piece, inf and -inf of an empty one; how many are not "
           "finite)")
      .def("counts", &Pieces::counts, py::arg("thetas"), py::arg("included"), py::arg("ranges"),
           py::arg("fraction"), py::arg("seed"), py::arg("step"),
           "Counts of all pieces in their order, zeros of those that are not included")
      .def("add_force", &Pieces::add, py::arg("thetas"), py::arg("gradients"), py::arg("ranges"),
           py::arg("counts"), py::arg("scale"), py::arg("fraction"),
           "Adds the force from the counts of all processes")
      .def("energies", &Pieces::energies, py::arg("ranges"), py::arg("counts"),
           "Strength times energy of each piece's layer or segment, from those counts");
}

}  // namespace softq::bindings
