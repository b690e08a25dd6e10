#include "softq/pieces.h"

#include <algorithm>
#include <limits>

#include "gather.h"
#include "schedule.h"
#include "scratch.h"
#include "softq/force.h"
#include "softq/potential.h"
#include "softq/threads.h"
#include "windows.h"

namespace softq {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();

Schedule schedule_of(const std::vector<Piece>& pieces) {
  const auto size = [&](std::size_t p) { return pieces[p].own.size; };
  return Schedule(pieces.size(), size, [&](std::size_t p) {
    return pieces[p].own.size + static_cast<std::size_t>(pieces[p].own.bins);
  });
}

// Where the counts of each piece begin.
std::vector<std::size_t> places_of(const std::vector<Piece>& pieces) {
  std::vector<std::size_t> places;
  places.reserve(pieces.size());
  std::size_t end = 0;
  for (const Piece& piece : pieces) {
    places.push_back(end);
    end += static_cast<std::size_t>(piece.own.bins);
  }
  return places;
}

template <class T>
Binning<T> binning_of(const Piece& piece, const Range& range) {
  const Extent<T> extent{static_cast<T>(range.low), static_cast<T>(range.high), 0};
  return make_binning(extent, piece.total, piece.own.bins);
}

// mean_field_energy() as coupling.cpp adds it up for few weights: the sum of the distances of all
// pairs within the reach is an integer.
double small_energy(const Count* counts, std::int64_t bins, double spacing, double width) {
  const std::int64_t m = reach(width, spacing, bins);
  thread_local Scratch<Count> scratch;
  Windows<Count> windows(scratch, bins, m);
  const Count* prefix = windows.prefix(counts);
  std::int64_t distance = 0;
  std::int64_t pairs = 0;
  for (std::int64_t k = 0; k < bins; ++k) {
    const std::int64_t below = std::int64_t{prefix[k]} - prefix[k - m];
    const std::int64_t above = std::int64_t{prefix[k + m + 1]} - prefix[k + 1];
    distance += counts[k] * k * (below - above);
    pairs += counts[k] * (std::int64_t{prefix[k + m + 1]} - prefix[k - m] - 1);
  }
  return spacing * static_cast<double>(2 * distance) - width * static_cast<double>(pairs);
}

template <class Storage, class T>
void add_force_to(const Piece& piece, const Binning<T>& binning, const CouplingStep& step,
                  const Count* counts) {
  const Layer& own = piece.own;
  thread_local Scratch<T> scratch;
  T* table = scratch.reserve(static_cast<std::size_t>(own.bins));
  const auto force = step.method == Method::scan ? force_scan<T> : force_fft<T>;
  force(counts, own.bins, binning.spacing, own.width, step.pull(own), table);
  gather_force<T>(static_cast<const Storage*>(own.theta), own.size, binning,
                  static_cast<const T*>(table), static_cast<Storage*>(own.gradient));
}

}  // namespace

std::vector<Range> piece_ranges(const std::vector<Piece>& pieces) {
  std::vector<Range> found(pieces.size(), {infinite, -infinite, 0});
  schedule_of(pieces).run([&](std::size_t p) {
    const Layer& own = pieces[p].own;
    if (own.size == 0) return;
    with_storage(own.scalar, [&]<class Storage, class T>(Storage, T) {
      const auto range = extent<Storage, T>(static_cast<const Storage*>(own.theta), own.size);
      found[p] = {static_cast<double>(range.low), static_cast<double>(range.high),
                  static_cast<std::uint64_t>(range.nonfinite)};
    });
  });
  return found;
}

void count_pieces(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                  const std::vector<bool>& included, const CouplingStep& step, Count* counts) {
  const std::vector<std::size_t> places = places_of(pieces);
  schedule_of(pieces).run([&](std::size_t p) {
    const Layer& own = pieces[p].own;
    Count* to = counts + places[p];
    if (!included[p]) {
      std::fill_n(to, own.bins, Count{0});
      return;
    }
    const Sample sample(step.fraction, step.seed, step.step, own.index);
    const Draw draw(sample, pieces[p].block, pieces[p].begin);
    with_storage(own.scalar, [&]<class Storage, class T>(Storage, T) {
      const Binning<T> binning = binning_of<T>(pieces[p], ranges[p]);
      histogram(static_cast<const Storage*>(own.theta), own.size, binning, draw, to);
    });
  });
}

void add_piece_force(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                     const CouplingStep& step, const Count* counts) {
  const std::vector<std::size_t> places = places_of(pieces);
  const Uninterruptible writing;  // as in add_force()
  schedule_of(pieces).run([&](std::size_t p) {
    if (pieces[p].own.gradient == nullptr || pieces[p].own.size == 0) return;
    with_storage(pieces[p].own.scalar, [&]<class Storage, class T>(Storage, T) {
      const Binning<T> binning = binning_of<T>(pieces[p], ranges[p]);
      add_force_to<Storage, T>(pieces[p], binning, step, counts + places[p]);
    });
  });
}

void piece_energies(const std::vector<Piece>& pieces, const std::vector<Range>& ranges,
                    const Count* counts, Potential potential, double* energies) {
  const std::vector<std::size_t> places = places_of(pieces);
  schedule_of(pieces).run([&](std::size_t p) {
    const Layer& own = pieces[p].own;
    with_storage(own.scalar, [&]<class Storage, class T>(Storage, T) {
      const double spacing = binning_of<T>(pieces[p], ranges[p]).spacing;
      const Count* of = counts + places[p];
      const bool small = pieces[p].total < narrow_size && potential == Potential::linear;
      const double energy = small ? small_energy(of, own.bins, spacing, own.width)
                                  : mean_field_energy(of, own.bins, spacing, own.width, potential);
      energies[p] = own.strength * energy;
    });
  });
}

}  // namespace softq
