// The indices of a layer's weights in few bits: of fixed width, or entropy-coded. docs/format.md
// specifies both.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace softq {

// Weights edges[s] … edges[s + 1] - 1 are segment s, which has sizes[s] clusters, 1 or more. What
// is given for each cluster comes segment after segment; indices count from the segment's first.
class Palettes {
 public:
  // Throws std::invalid_argument unless edges ascend from 0 and there is a size for each segment.
  Palettes(std::span<const std::int64_t> edges, std::span<const std::int64_t> sizes);

  std::size_t weights() const { return static_cast<std::size_t>(edges_.back()); }
  std::size_t clusters() const { return static_cast<std::size_t>(first_.back()); }
  std::size_t segments() const { return sizes_.size(); }

  // Calls body(segment, begin, end) for the parts of segments in [begin, end), in order.
  template <class Body>
  void for_parts(std::size_t begin, std::size_t end, const Body& body) const {
    for (std::size_t s = segment_of(begin); begin < end; ++s) {
      const std::size_t stop = std::min(end, static_cast<std::size_t>(edges_[s + 1]));
      if (begin < stop) body(s, begin, stop);
      begin = stop;
    }
  }

  std::size_t segment_of(std::size_t weight) const;
  std::size_t first(std::size_t segment) const { return static_cast<std::size_t>(first_[segment]); }
  std::size_t size(std::size_t segment) const { return static_cast<std::size_t>(sizes_[segment]); }
  std::size_t begin(std::size_t segment) const { return static_cast<std::size_t>(edges_[segment]); }
  std::size_t length(std::size_t segment) const {
    return static_cast<std::size_t>(edges_[segment + 1] - edges_[segment]);
  }

 private:
  std::span<const std::int64_t> edges_, sizes_;
  std::vector<std::int64_t> first_;  // and the number of all clusters
};

// Integers of 1, 2, 4 or 8 bytes.
struct Items {
  const void* data;
  std::size_t itemsize;
};

// Packs indices of `bits` bits, 31 at most, into ceil(size * bits / 8) bytes.
void pack(const Items& indices, std::size_t size, int bits, std::uint8_t* out);

// Is called once for each segment, by any thread, with how many weights each cluster has.
using Counted = std::function<void(std::size_t segment, const std::vector<std::int64_t>& counts)>;

// out[i] = the entry of the table for packed index i. False if an index is not in its segment;
// `counted` may then have been called with other numbers, or not at all. The bytes are those of all
// indices.
bool unpack(std::span<const std::uint8_t> packed, int bits, const Palettes& palettes,
            const Items& table, const Counted& counted, void* out);

// Streams of 32-bit words, one for each chunk of weights, one after the other.
struct Streams {
  std::vector<std::int64_t> lengths;  // in words
  std::vector<std::uint32_t> words;
};

// Throws std::invalid_argument if the counts, of all clusters, are not those of the segments or if
// an index is not in its segment.
Streams encode(const Items& indices, const Items& counts, const Palettes& palettes,
               std::size_t chunk);

enum class Decoded { whole, last_word, unended, other_counts };

// The streams of successive chunks of `chunk` weights each, from number `first` on.
struct Chunks {
  std::span<const std::uint8_t> words;
  std::span<const std::int64_t> lengths;  // in words
  std::size_t first, chunk;

  // Where the weights of these chunks begin and end.
  std::pair<std::size_t, std::size_t> range(const Palettes& palettes) const {
    return {std::min(first * chunk, palettes.weights()),
            std::min((first + lengths.size()) * chunk, palettes.weights())};
  }
};

// Writes the entry of the table for each coded index of some chunks. Returns what is wrong with the
// streams: the last word of one is 0, one does not end with its last index, or the indices of a
// segment, all of whose chunks are there, have other counts. Throws std::invalid_argument if the
// counts are not those of the segments, or the lengths not those of the chunks and words.
Decoded decode(const Chunks& chunks, const Palettes& palettes, const std::int64_t* counts,
               const Items& table, void* out);

}  // namespace softq
