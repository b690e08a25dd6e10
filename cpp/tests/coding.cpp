// Random, truncated and hostile packed and entropy-coded indices: with the sanitizers, nothing
// outside of the memory given is read or written. Prints how many were decoded.
#include "softq/coding.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

namespace {

using Integers = std::vector<std::int64_t>;

std::mt19937_64 generator(0);

std::size_t below(std::size_t end) { return generator() % end; }

struct Layer {
  Integers edges{0}, sizes, counts;
  std::vector<std::uint16_t> indices;

  Layer() {
    for (std::size_t segments = 1 + below(5); segments > 0; --segments) {
      const std::size_t size = 1 + below(below(4) == 0 ? 300 : 9);
      sizes.push_back(static_cast<std::int64_t>(size));
      Integers own(size, 0);
      for (std::size_t i = 0, length = size + below(below(3) == 0 ? 3000 : 60); i < length; ++i) {
        const std::size_t index = i < size ? i : below(1 + below(size));
        indices.push_back(static_cast<std::uint16_t>(index));
        ++own[index];
      }
      counts.insert(counts.end(), own.begin(), own.end());
      edges.push_back(static_cast<std::int64_t>(indices.size()));
    }
  }

  std::vector<float> table() const {
    std::vector<float> values;
    for (const std::int64_t size : sizes) {
      for (std::int64_t k = 0; k < size; ++k) values.push_back(static_cast<float>(k));
    }
    return values;
  }
};

std::vector<std::uint8_t> bytes_of(const std::vector<std::uint32_t>& words) {
  std::vector<std::uint8_t> bytes;
  for (const std::uint32_t word : words) {
    for (int shift = 0; shift < 32; shift += 8)
      bytes.push_back(static_cast<std::uint8_t>(word >> shift));
  }
  return bytes;
}

// Changes a few values; more of them, or fewer.
template <class T>
void forge(std::vector<T>& values) {
  for (std::size_t changes = below(4); changes > 0; --changes) {
    const std::size_t kind = below(4);
    if (kind == 0) values.push_back(static_cast<T>(generator()));
    if (values.empty()) continue;
    if (kind == 1) values.pop_back();
    if (kind == 2) values[below(values.size())] = static_cast<T>(generator() >> below(64));
    if (kind == 3) {
      T& value = values[below(values.size())];
      value = static_cast<T>(value + static_cast<T>(below(2)));
    }
  }
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

bool same(const std::vector<float>& found, const Layer& layer) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i] != static_cast<float>(layer.indices[i])) return false;
  }
  return true;
}

int entropy_coded(const Layer& layer) {
  const softq::Palettes palettes(layer.edges, layer.sizes);
  const std::size_t chunk = 1 + below(below(2) == 0 ? 40 : 2000);
  const softq::Streams streams =
      softq::encode({layer.indices.data(), 2}, {layer.counts.data(), 8}, palettes, chunk);
  std::vector<std::uint8_t> words = bytes_of(streams.words);
  Integers lengths = streams.lengths, counts = layer.counts, edges = layer.edges,
           sizes = layer.sizes;
  std::vector<float> table = layer.table(), out(layer.indices.size());
  require(softq::decode({words, lengths, 0, chunk}, palettes, counts.data(), {table.data(), 4},
                        out.data()) == softq::Decoded::whole &&
              same(out, layer),
          "what was coded is not decoded");
  const std::size_t chosen = below(lengths.size());
  std::size_t begin = 0;
  for (std::size_t number = 0; number < chosen; ++number)
    begin += 4 * static_cast<std::size_t>(lengths[number]);
  const softq::Chunks one{
      std::span(words).subspan(begin, 4 * static_cast<std::size_t>(lengths[chosen])),
      std::span(lengths).subspan(chosen, 1), chosen, chunk};
  const auto [from, to] = one.range(palettes);
  std::vector<float> part(to - from);
  require(softq::decode(one, palettes, counts.data(), {table.data(), 4}, part.data()) ==
                  softq::Decoded::whole &&
              std::equal(part.begin(), part.end(), out.begin() + static_cast<long>(from)),
          "a chunk is not decoded as with all others");
  forge(words);
  if (below(2) == 0) forge(lengths);
  if (below(4) == 0) forge(counts);
  if (below(4) == 0) forge(edges);
  if (below(4) == 0) forge(sizes);
  try {
    const softq::Palettes forged(edges, sizes);
    if (forged.weights() > 100000 || forged.clusters() != counts.size()) return 0;
    table.resize(forged.clusters());
    std::vector<float> found(forged.weights());
    return softq::decode({words, lengths, 0, chunk}, forged, counts.data(), {table.data(), 4},
                         found.data()) == softq::Decoded::whole;
  } catch (const std::invalid_argument&) {
    return 0;
  }
}

int packed(const Layer& layer) {
  const int bits = 9 + static_cast<int>(below(23));
  const softq::Palettes palettes(layer.edges, layer.sizes);
  const std::size_t size = layer.indices.size();
  std::vector<std::uint8_t> bytes((size * static_cast<std::size_t>(bits) + 7) / 8);
  softq::pack({layer.indices.data(), 2}, size, bits, bytes.data());
  const std::vector<float> table = layer.table();
  std::vector<float> out(size);
  const auto ignore = [](std::size_t, const Integers&) {};
  const auto read = [&] {
    return softq::unpack(bytes, bits, palettes, {table.data(), 4}, ignore, out.data());
  };
  require(read() && same(out, layer), "what was packed is not unpacked");
  for (std::size_t changes = below(3); changes > 0; --changes)
    bytes[below(bytes.size())] = static_cast<std::uint8_t>(generator());
  return read();
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 20000;
  int decoded = 0;
  int unpacked = 0;
  for (int round = 0; round < rounds; ++round) {
    const Layer layer;
    decoded += entropy_coded(layer);
    unpacked += packed(layer);
  }
  std::printf("of %d forged ones each, %d were decoded and %d unpacked\n", rounds, decoded,
              unpacked);
}
