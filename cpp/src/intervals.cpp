#include "softq/intervals.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "schedule.h"
#include "softq/threads.h"

namespace softq {
namespace {

using Nodes = std::vector<std::size_t>;

constexpr double most_rd_weight =
    1e9;  // in squares of the largest value; one cluster is left far below
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Moments {
  double count, sum, squares;

  double about_mean() const { return std::max(squares - sum * sum / count, 0.0); }
  double about(double value) const {
    return std::max(squares - value * (2 * sum - value * count), 0.0);
  }
};

Moments between(const NodeSums& all, std::size_t start, std::size_t end) {
  return {all.counts[end] - all.counts[start], all.sums[end] - all.sums[start],
          all.squares[end] - all.squares[start]};
}

double entropy_bits(const NodeSums& all, double count) {
  return count * std::log2(all.counts.back() / count);
}

Nodes way_back(Nodes path) {
  std::reverse(path.begin(), path.end());
  return path;
}

// The shortest path of any number of steps of length error(start, end) + rate(start, end), neither
// of which is negative; the error of a longer step is no smaller. On a tie steps are long.
template <class Error, class Rate>
Nodes shortest_path(std::size_t nodes, const Error& error, const Rate& rate) {
  std::vector<double> best(nodes, infinity);
  std::vector<std::size_t> came_from(nodes);
  best[0] = 0;
  for (std::size_t end = 1; end < nodes; ++end) {
    check_interruption();
    for (std::size_t start = end; start-- > 0;) {
      const double least = error(start, end);
      if (least > best[end]) break;  // and so are all from further back
      const double length = best[start] + (least + rate(start, end));
      if (length <= best[end]) {
        best[end] = length;
        came_from[end] = start;
      }
    }
  }
  Nodes path{nodes - 1};
  while (path.back() > 0) path.push_back(came_from[path.back()]);
  return way_back(std::move(path));
}

// The shortest path of at most `most` steps, the shorter one on a tie. Costs are not negative and,
// where they `grow`, no smaller for a longer step; rate(steps), which does not decrease, is added
// to that of a path.
template <class Cost, class Rate>
Nodes shortest_path_within(std::size_t nodes, std::size_t most, const Cost& cost, bool grow,
                           const Rate& rate) {
  if (nodes < 2) return {0};
  std::vector<double> table;  // row after row: of the steps to an end
  table.reserve(nodes * (nodes - 1) / 2);
  for (std::size_t end = 1; end < nodes; ++end)
    for (std::size_t start = 0; start < end; ++start) table.push_back(cost(start, end));
  const auto row = [&](std::size_t end) { return table.data() + end * (end - 1) / 2; };
  std::vector<double> best(nodes, infinity);  // of the paths of exactly so many steps
  for (std::size_t end = 1; end < nodes; ++end) best[end] = row(end)[0];
  std::vector<std::vector<std::uint32_t>> came_from(1, std::vector<std::uint32_t>(nodes));
  double lowest = best.back() + rate(1);
  std::size_t length = 1;
  for (std::size_t steps = 2; steps <= std::min(most, nodes - 1); ++steps) {
    if (rate(steps) >= lowest) break;  // longer paths cost more even without their steps
    std::vector<std::uint32_t> sources(nodes);
    for (std::size_t end = nodes - 1; end > 0; --end) {  // from behind: those before are still old
      check_interruption();
      const double* own = row(end);
      double least = infinity;
      for (std::size_t start = end; start-- > 0;) {
        if (grow && own[start] > least) break;  // and so are all from further back
        if (best[start] + own[start] <= least) {
          least = best[start] + own[start];
          sources[end] = static_cast<std::uint32_t>(start);
        }
      }
      best[end] = least;
    }
    came_from.push_back(std::move(sources));
    if (best.back() + rate(steps) < lowest) {
      lowest = best.back() + rate(steps);
      length = steps;
    }
  }
  Nodes path{nodes - 1};
  for (std::size_t step = length; step-- > 0;) path.push_back(came_from[step][path.back()]);
  return way_back(std::move(path));
}

// The path of at most so many steps of least squared error about the means, the shorter one on a
// tie. Squared errors of intervals satisfy the quadrangle inequality, so the best last step to a
// later node begins no earlier: a node in the middle bounds the search for those on either side.
// Nor does that of a path of more steps. O(steps n log n) time, and 4 bytes for each step and node.
class LeastSquares {
 public:
  explicit LeastSquares(const NodeSums& sums)
      : sums_(sums), best_(sums.nodes(), 0.0), sources_(sums.nodes(), 0) {}

  Nodes path(std::size_t most) {
    const std::size_t last = sums_.nodes() - 1;
    for (std::size_t end = 1; end <= last; ++end) best_[end] = between(sums_, 0, end).about_mean();
    std::vector<std::vector<std::uint32_t>> sources;
    for (std::size_t steps = 2; steps <= most; ++steps) {
      before_ = best_;
      if (!sources.empty()) sources_ = sources.back();
      // After the last step only the last node counts.
      search(steps == most ? last : steps, last, steps - 1, last - 1);
      if (!(best_[last] < before_[last])) break;
      sources.push_back(std::move(sources_));
    }
    Nodes path{last};
    for (; !sources.empty(); sources.pop_back()) path.push_back(sources.back()[path.back()]);
    path.push_back(0);
    return way_back(std::move(path));
  }

 private:
  // The best paths to the nodes from first to last; their last steps begin from low to high.
  void search(std::size_t first, std::size_t last, std::size_t low, std::size_t high) {
    for (; first <= last; ++first) {
      if (last - first >= between_checks) check_interruption();
      const std::size_t middle = first + (last - first) / 2;
      const std::size_t least = std::max<std::size_t>(low, sources_[middle]);
      const std::size_t source = cheapest(middle, least, std::min(high, middle - 1));
      sources_[middle] = static_cast<std::uint32_t>(source);
      if (middle > first) search(first, middle - 1, low, source);
      first = middle;
      low = source;
    }
  }

  // Where, from low to high, the cheapest last step to a node begins; the first on a tie.
  std::size_t cheapest(std::size_t end, std::size_t low, std::size_t high) {
    double least = infinity;
    std::size_t source = low;
    for (std::size_t start = low; start <= high; ++start) {
      const double cost = before_[start] + between(sums_, start, end).about_mean();
      if (cost < least) {
        least = cost;
        source = start;
      }
    }
    best_[end] = least;
    return source;
  }

  static constexpr std::size_t between_checks = 1024;  // nodes

  NodeSums sums_;
  std::vector<double> best_, before_;   // errors of the paths to each node
  std::vector<std::uint32_t> sources_;  // where last steps begin; of one step less, to be replaced
};

// The clusters of one segment, scaled and centred: scaling keeps squares from overflow, centring
// reduces cancellation.
class Segment {
 public:
  Segment(std::span<const double> values, std::span<const double> counts,
          std::span<const std::uint8_t> pinned)
      : counts_(counts), scaled_(values.size()), pinned_before_(1, 0) {
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    std::frexp(largest, &exponent_);
    ++exponent_;
    for (std::size_t k = 0; k < values.size(); ++k) scaled_[k] = std::ldexp(values[k], -exponent_);
    centre_ = mean(0, values.size());
    for (auto* sums : {&number_, &first_, &second_}) sums->assign(1, 0.0);
    for (std::size_t k = 0; k < values.size(); ++k) {
      const double x = scaled_[k] - centre_;
      number_.push_back(number_.back() + counts[k]);
      first_.push_back(first_.back() + counts[k] * x);
      second_.push_back(second_.back() + counts[k] * (x * x));
      pinned_before_.push_back(pinned_before_.back() + (pinned[k] ? 1 : 0));
    }
  }

  Nodes best_runs(double rd_weight, Rate rate) const {
    const std::size_t nodes = number_.size();
    const double weight = std::min(std::ldexp(rd_weight, -2 * exponent_), most_rd_weight);
    const NodeSums all{number_, first_, second_};
    const auto error = [&](std::size_t start, std::size_t end) {
      if (end - start == 1) return 0.0;  // exactly, whatever the rounding of the sums
      const Moments moments = between(all, start, end);
      return has_pinned(start, end) ? moments.about(-centre_) : moments.about_mean();
    };
    if (rate == Rate::entropy) {
      return shortest_path(nodes, error, [&](std::size_t start, std::size_t end) {
        return weight * entropy_bits(all, number_[end] - number_[start]);
      });
    }
    const double bit = weight * number_.back();  // for every weight
    return shortest_path_within(nodes, nodes - 1, error, true, [&](std::size_t levels) {
      if (rate == Rate::packed) return bit * static_cast<double>(std::bit_width(levels - 1));
      return bit * std::log2(static_cast<double>(levels));
    });
  }

  double value(std::size_t start, std::size_t end) const {
    if (has_pinned(start, end)) return 0.0;
    return std::ldexp(std::clamp(mean(start, end), scaled_[start], scaled_[end - 1]), exponent_);
  }

 private:
  bool has_pinned(std::size_t start, std::size_t end) const {
    return pinned_before_[end] > pinned_before_[start];
  }

  double mean(std::size_t start, std::size_t end) const {
    double sum = 0;
    double weights = 0;
    for (std::size_t k = start; k < end; ++k) {
      sum += counts_[k] * scaled_[k];
      weights += counts_[k];
    }
    return sum / weights;
  }

  std::span<const double> counts_;
  std::vector<double> scaled_, number_, first_, second_;
  std::vector<std::size_t> pinned_before_;
  double centre_ = 0;
  int exponent_ = 0;
};

}  // namespace

std::vector<std::int64_t> best_union(const NodeSums& sums, const IntervalCost& cost,
                                     std::size_t most) {
  const auto error = [&](std::size_t start, std::size_t end) {
    return between(sums, start, end).about_mean() / cost.variance;
  };
  const auto rate = [&](std::size_t start, std::size_t end) {
    return cost.rd_weight * entropy_bits(sums, sums.counts[end] - sums.counts[start]);
  };
  Nodes path(sums.nodes());
  // Only bits limit the number of intervals: without them the finest partition is the best.
  if (cost.rd_weight > 0) {
    path = shortest_path(sums.nodes(), error, rate);
  } else {
    std::iota(path.begin(), path.end(), std::size_t{0});
  }
  if (path.size() - 1 > most && cost.rd_weight > 0) {
    const auto length = [&](std::size_t start, std::size_t end) {
      return error(start, end) + rate(start, end);
    };
    const auto free = [](std::size_t) { return 0.0; };
    path = shortest_path_within(sums.nodes(), most, length, false, free);
  } else if (path.size() - 1 > most) {
    path = LeastSquares(sums).path(most);
  }
  return {path.begin(), path.end()};
}

Runs merge(const ClusterTable& clusters, double rd_weight, Rate rate) {
  const std::size_t segments = clusters.sizes.size();
  const auto size = [&](std::size_t s) { return static_cast<std::size_t>(clusters.sizes[s]); };
  std::vector<std::size_t> first(segments + 1, 0);
  for (std::size_t s = 0; s < segments; ++s) first[s + 1] = first[s] + size(s);
  std::vector<Runs> found(segments);
  const auto whole = [](std::size_t) { return std::size_t{0}; };
  const Schedule schedule(segments, whole, [&](std::size_t s) { return size(s) * size(s); });
  schedule.run([&](std::size_t s) {
    Runs& own = found[s];
    const auto values = clusters.values.subspan(first[s], size(s));
    if (size(s) < 2) {
      own.lengths.assign(size(s), 1);
      own.means.assign(values.begin(), values.end());
      return;
    }
    const Segment segment(values, clusters.counts.subspan(first[s], size(s)),
                          clusters.pinned.subspan(first[s], size(s)));
    const Nodes path = segment.best_runs(rd_weight, rate);
    for (std::size_t step = 1; step < path.size(); ++step) {
      own.lengths.push_back(static_cast<std::int64_t>(path[step] - path[step - 1]));
      own.means.push_back(segment.value(path[step - 1], path[step]));
    }
  });
  Runs all;
  for (const Runs& own : found) {
    all.lengths.insert(all.lengths.end(), own.lengths.begin(), own.lengths.end());
    all.means.insert(all.means.end(), own.means.begin(), own.means.end());
  }
  return all;
}

}  // namespace softq
