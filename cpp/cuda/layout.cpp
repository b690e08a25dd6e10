#include "layout.h"

#include <algorithm>
#include <utility>

namespace softq::cuda {
namespace {

std::uint64_t stride(std::int32_t bins) { return (static_cast<std::uint64_t>(bins) + 3) / 4 * 4; }

// Of shared memory for narrow counts, and a word for each pack with the log potential.
std::uint32_t words_of(const Unit& unit, Potential potential) {
  const auto bins = static_cast<std::uint32_t>(unit.bins);
  const std::uint32_t packs = (bins + bins_in_pack - 1) / bins_in_pack;
  const std::uint32_t more = potential == Potential::log ? (packs + 3) / 4 * 4 : 0;
  return packs * (bins_in_pack / 2) + more;
}

bool is_long(const Unit& unit) { return unit.total > warp_weights; }
bool is_broad(const Unit& unit) { return is_long(unit) || unit.bins > warp_bins; }

// Entries of a sorted list that belong to layers first … first + group_layers - 1, from `begin` on.
template <class Entry, class LayerOf>
Interval interval(const std::vector<Entry>& list, std::uint32_t begin, std::uint32_t first,
                  const LayerOf& layer_of) {
  auto end = list.begin() + begin;
  while (end != list.end() && layer_of(*end) < first + group_layers) ++end;
  return {begin, static_cast<std::uint32_t>(end - list.begin()) - begin};
}

std::uint32_t end_of(const Interval& interval) { return interval.first + interval.count; }

}  // namespace

Layout::Layout(std::vector<Unit> all, std::uint32_t layers_, bool all_wide, Potential potential_)
    : units(std::move(all)), layers(layers_), potential(potential_) {
  choose(all_wide);
  place();
  share_out();
  for (std::uint32_t first = 0; first < layers; first += group_layers)
    groups.push_back(group_of(first));
}

Layout Layout::single(std::uint64_t size, Scalar scalar, std::int32_t bins) {
  Unit unit{};
  unit.size = unit.total = size;
  unit.scalar = scalar;
  unit.bins = bins;
  return {{unit}, 1, true};
}

unsigned Layout::blocks() const {
  unsigned sum = 0;
  for (const Group& group : groups) sum += group.shares.count + group.narrow_blocks();
  return sum;
}

void Layout::choose(bool all_wide) {
  std::vector<std::uint32_t> count(layers);
  for (const Unit& unit : units) ++count[unit.layer];
  for (std::uint32_t u = 0; u < units.size(); ++u) {
    Unit& unit = units[u];
    unit.first = u == 0 || units[u - 1].layer != unit.layer;
    const bool fits = unit.total <= narrow_total && unit.bins <= narrow_bins;
    const bool is_narrow = fits && !all_wide && count[unit.layer] > 1;
    (is_narrow ? narrow : wide).push_back(u);
  }
}

void Layout::place() {
  for (const std::uint32_t u : wide) {
    units[u].table = slots;
    slots += stride(units[u].bins);
    bins = std::max(bins, units[u].bins);
  }
  std::uint32_t number = 0;
  for (Unit& unit : units) {
    if (!unit.shared) continue;
    unit.number = number++;
    unit.slot = exchanged;
    exchanged += stride(unit.bins);
  }
}

void Layout::share_out() {
  if (wide.empty()) return;
  std::vector<std::uint64_t> sizes;
  for (const std::uint32_t u : wide) sizes.push_back(units[u].size);
  shares = partition(sizes, blocks_at_once(bins));
  for (Share& share : shares) {
    share.unit = wide[share.unit];
    ++units[share.unit].shares;
  }
}

Group Layout::group_of(std::uint32_t first_layer) {
  Group group{};
  if (!groups.empty()) group = groups.back();
  group.first_layer = first_layer;
  const auto unit_layer = [&](std::uint32_t u) { return units[u].layer; };
  const auto own_layer = [](const Unit& unit) { return unit.layer; };
  const auto share_layer = [&](const Share& share) { return unit_layer(share.unit); };
  group.units = interval(units, end_of(group.units), first_layer, own_layer);
  group.shares = interval(shares, end_of(group.shares), first_layer, share_layer);
  group.wide = interval(wide, end_of(group.wide), first_layer, unit_layer);
  group.narrow = interval(narrow, end_of(group.narrow), first_layer, unit_layer);
  order(group);
  return group;
}

// The largest first, so that blocks end together.
void Layout::order(Group& group) {
  const auto begin = narrow.begin() + group.narrow.first;
  const auto end = begin + group.narrow.count;
  std::stable_sort(begin, end, [&](std::uint32_t a, std::uint32_t b) {
    return units[a].total > units[b].total;
  });
  group.long_ones = group.broad_ones = group.narrow_words = group.warp_words = 0;
  std::uint32_t at = 0;
  for (auto u = begin; u != end; ++u) {
    ++at;
    if (is_long(units[*u])) group.long_ones = at;
    if (is_broad(units[*u])) group.broad_ones = at;
  }
  at = 0;
  for (auto u = begin; u != end; ++u) {
    auto& words = at++ < group.broad_ones ? group.narrow_words : group.warp_words;
    words = std::max(words, words_of(units[*u], potential));
  }
  group.narrow_words = std::max(group.narrow_words, segment_warps * group.warp_words);
}

}  // namespace softq::cuda
