#include "softq/coding.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "items.h"
#include "schedule.h"
#include "softq/threads.h"

namespace softq {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr int precision = 24;  // of the models
constexpr std::uint64_t parts = std::uint64_t{1} << precision;
constexpr std::size_t most_clusters = std::size_t{1} << 20;  // of a segment that is entropy-coded
constexpr std::size_t most_weights = std::size_t{1} << 38;
constexpr std::size_t lanes = 4;                            // streams that are decoded together
constexpr std::size_t task_weights = std::size_t{1} << 20;  // of entropy-coded chunks
constexpr std::size_t most_counted = std::size_t{1} << 31;  // weights by one tally
constexpr std::size_t block = 1024;                         // indices that stay in the cache

template <class T>
T load(const std::uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// How many weights each cluster of a segment has: known once all threads have read its weights.
class Census {
 public:
  Census(const Palettes& palettes, Counted check) : palettes_(palettes), check_(std::move(check)) {}

  // Counts of some weights of a segment.
  void add(std::size_t segment, std::size_t weights, const std::vector<std::int64_t>& counts) {
    if (weights == palettes_.length(segment)) return check_(segment, counts);
    const std::lock_guard lock(mutex_);
    auto& [sum, seen] = partial_[segment];
    sum.resize(counts.size());
    for (std::size_t k = 0; k < counts.size(); ++k) sum[k] += counts[k];
    if ((seen += weights) < palettes_.length(segment)) return;
    check_(segment, sum);
    partial_.erase(segment);
  }

 private:
  const Palettes& palettes_;
  Counted check_;
  std::mutex mutex_;
  std::unordered_map<std::size_t, std::pair<std::vector<std::int64_t>, std::size_t>> partial_;
};

// What one thread counts of one segment after the other. Four tables in turn: increments of one
// count would wait for each other.
class Tally {
 public:
  static constexpr std::size_t tables = 4;

  Tally(const Palettes& palettes, Census& census) : palettes_(palettes), census_(census) {}

  // The tables of a segment of which so many weights are to be counted: that of index k in the
  // table t is at 4 k + t.
  std::uint32_t* of(std::size_t segment, std::size_t weights) {
    if (segment != segment_) {
      finish();
      segment_ = segment;
      counts_.assign(tables * palettes_.size(segment), 0);
    }
    weights_ += weights;
    return counts_.data();
  }

  void finish() {
    if (weights_ == 0) return;
    total_.resize(palettes_.size(segment_));
    for (std::size_t k = 0; k < total_.size(); ++k) {
      const std::uint32_t* own = counts_.data() + tables * k;
      total_[k] = std::int64_t{own[0]} + own[1] + own[2] + own[3];
    }
    census_.add(segment_, weights_, total_);
    segment_ = none;
    weights_ = 0;
  }

 private:
  static constexpr std::size_t none = ~std::size_t{0};

  const Palettes& palettes_;
  Census& census_;
  std::size_t segment_ = none;
  std::size_t weights_ = 0;
  std::vector<std::uint32_t> counts_;
  std::vector<std::int64_t> total_;
};

// ---------------------------------------------------------------------------------- fixed width

constexpr std::size_t group = 8;  // indices of a byte each in a word

// The eight bytes of a word hold indices of 8 bits or fewer, which are moved next to each other,
// and back: those in lanes of two, four and eight bytes together.
struct Squeeze {
  unsigned bits;

  std::uint64_t pack(std::uint64_t x) const {
    x = (x & 0x00FF00FF00FF00FFU) | (x >> 8 & 0x00FF00FF00FF00FFU) << bits;
    x = (x & 0x0000FFFF0000FFFFU) | (x >> 16 & 0x0000FFFF0000FFFFU) << 2 * bits;
    return (x & 0xFFFFFFFFU) | x >> 32 << 4 * bits;
  }

  std::uint64_t unpack(std::uint64_t x) const {
    const std::uint64_t four = (std::uint64_t{1} << 4 * bits) - 1;
    const std::uint64_t two = ((std::uint64_t{1} << 2 * bits) - 1) * 0x0000000100000001U;
    const std::uint64_t one = ((std::uint64_t{1} << bits) - 1) * 0x0001000100010001U;
    x = (x & four) | (x >> 4 * bits & four) << 32;
    x = (x & two) | (x >> 2 * bits & two) << 16;
    return (x & one) | (x >> bits & one) << 8;
  }
};

// Packs groups of indices of 8 bits or fewer while whole words may be written; returns how many.
std::size_t pack_groups(const std::uint8_t* indices, std::size_t size, unsigned bits,
                        std::uint8_t* out) {
  const Squeeze squeeze{bits};
  std::size_t done = 0;
  for (; done + 9 * group <= size; done += group) {  // eight more have the rest of the word
    const std::uint64_t word = squeeze.pack(load<std::uint64_t>(indices + done));
    std::memcpy(out + done / group * bits, &word, sizeof(word));
  }
  return done;
}

template <class Index>
void pack_chunk(const Index* indices, std::size_t size, unsigned bits, std::uint8_t* out) {
  if constexpr (sizeof(Index) == 1) {
    const std::size_t done = bits <= 8 ? pack_groups(indices, size, bits, out) : 0;
    indices += done;
    size -= done;
    out += done / group * bits;
  }
  std::uint64_t window = 0;
  unsigned filled = 0;
  for (std::size_t i = 0; i < size; ++i) {
    window |= static_cast<std::uint64_t>(indices[i]) << filled;
    filled += bits;
    if (filled >= 32) {
      const auto word = static_cast<std::uint32_t>(window);
      std::memcpy(out, &word, sizeof(word));
      out += sizeof(word);
      window >>= 32;
      filled -= 32;
    }
  }
  for (; filled > 0; filled -= std::min(filled, 8U)) {
    *out++ = static_cast<std::uint8_t>(window);
    window >>= 8;
  }
}

// Indices first … first + size - 1 of a stream of bits, `block` at most. Bytes are for 8 bits or
// fewer.
template <class Index>
void unpack_block(std::span<const std::uint8_t> packed, std::size_t first, std::size_t size,
                  std::size_t bits, Index* out) {
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  const std::size_t begin = first * bits / 8;
  // The last windows would reach beyond the end: they are read from a copy.
  std::array<std::uint8_t, block * 4 + 16> copy;
  const std::uint8_t* from = packed.data() + begin;
  const std::size_t needed = ((first + size) * bits + 7) / 8 - begin;
  if (begin + needed + 8 > packed.size()) {
    std::memcpy(copy.data(), from, needed);
    std::memset(copy.data() + needed, 0, 8);
    from = copy.data();
  }
  std::size_t bit = first * bits - 8 * begin;
  std::size_t i = 0;
  if constexpr (sizeof(Index) == 1) {
    // A group that begins within a byte has 56 bits at most.
    const Squeeze squeeze{static_cast<unsigned>(bits)};
    for (; i + group <= size; i += group, bit += group * bits) {
      const std::uint64_t word = squeeze.unpack(load<std::uint64_t>(from + bit / 8) >> bit % 8);
      std::memcpy(out + i, &word, sizeof(word));
    }
  }
  for (; i < size; ++i, bit += bits) {
    out[i] = static_cast<Index>(load<std::uint64_t>(from + bit / 8) >> bit % 8 & mask);
  }
}

// Looks up a block of indices and counts them. False if one is not in the segment.
template <class Index, class Item>
bool look_up(const Index* indices, std::size_t size, const Item* table, std::size_t clusters,
             std::uint32_t* counts, Item* out) {
  Index largest = 0;
  for (std::size_t i = 0; i < size; ++i) largest = std::max(largest, indices[i]);
  if (largest >= clusters) return false;
  const auto step = [&](std::size_t i, std::size_t t) {
    const std::size_t k = indices[i];
    out[i] = table[k];
    ++counts[Tally::tables * k + t];
  };
  std::size_t i = 0;
  for (; i + Tally::tables <= size; i += Tally::tables) {
    for (std::size_t t = 0; t < Tally::tables; ++t) step(i + t, t);
  }
  for (; i < size; ++i) step(i, 0);
  return true;
}

template <class Index, class Item>
void unpack_chunk(std::span<const std::uint8_t> packed, std::size_t bits, const Palettes& palettes,
                  std::pair<std::size_t, std::size_t> chunk, const Item* table, Tally& tally,
                  Item* out, std::atomic<bool>& inside) {
  std::array<Index, block> indices;
  palettes.for_parts(chunk.first, chunk.second,
                     [&](std::size_t s, std::size_t begin, std::size_t end) {
                       std::uint32_t* counts = tally.of(s, end - begin);
                       for (std::size_t first = begin; first < end && inside; first += block) {
                         const std::size_t size = std::min(block, end - first);
                         unpack_block(packed, first, size, bits, indices.data());
                         if (!look_up(indices.data(), size, table + palettes.first(s),
                                      palettes.size(s), counts, out + first)) {
                           inside = false;
                         }
                       }
                     });
  tally.finish();
}

// ---------------------------------------------------------------------------------- entropy coding

std::uint64_t high(std::uint64_t a, std::uint64_t b) {
  __extension__ using Product = unsigned __int128;
  return static_cast<std::uint64_t>(static_cast<Product>(a) * b >> 64);
}

// left[k], which the index k has its parts from, for all k; and all parts.
template <class Count>
void divide_parts(const Count* counts, std::size_t clusters, std::size_t weights,
                  std::vector<std::uint32_t>& left) {
  left.resize(clusters + 1);
  std::uint64_t before = 0;
  for (std::size_t k = 0; k < clusters; ++k) {
    left[k] = static_cast<std::uint32_t>(k + before * (parts - clusters) / weights);
    before += static_cast<std::uint64_t>(counts[k]);
  }
  left[clusters] = static_cast<std::uint32_t>(parts);
}

template <class Count>
void check_counts(const Count* counts, const Palettes& palettes) {
  for (std::size_t s = 0; s < palettes.segments(); ++s) {
    const std::size_t weights = palettes.length(s);
    if (palettes.size(s) > most_clusters || weights > most_weights)
      throw std::invalid_argument("a segment has too many clusters or weights");
    const Count* own = counts + palettes.first(s);
    std::uint64_t sum = 0;
    for (std::size_t k = 0; k < palettes.size(s); ++k) {
      const auto count = static_cast<std::uint64_t>(own[k]);
      if (count == 0 || count > weights) throw std::invalid_argument("a count is out of range");
      sum += count;
    }
    if (sum != weights) throw std::invalid_argument("the counts are not those of the segments");
  }
}

std::size_t chunks_of(const Palettes& palettes, std::size_t chunk) {
  if (chunk == 0) throw std::invalid_argument("a chunk must have a weight");
  return (palettes.weights() - 1) / chunk + 1;
}

// The model of one segment at a time, for an encoder.
class Writer {
 public:
  template <class Count>
  void prepare(const Count* counts, const Palettes& palettes, std::size_t segment) {
    if (segment == segment_) return;
    segment_ = segment;
    const std::size_t clusters = palettes.size(segment);
    divide_parts(counts + palettes.first(segment), clusters, palettes.length(segment), left_);
    divisors_.resize(clusters);
    for (std::size_t k = 0; k < clusters; ++k) {
      const std::uint64_t frequency = left_[k + 1] - left_[k];
      divisors_[k] = {~std::uint64_t{0} / frequency, left_[k],
                      static_cast<std::uint32_t>(frequency)};
    }
  }

  // Pushes indices in reverse order. False if one is not in the segment.
  template <class Index>
  bool push(const Index* indices, std::size_t size, std::uint64_t& state,
            std::vector<std::uint32_t>& words) const {
    std::uint64_t x = state;
    for (std::size_t i = size; i-- > 0;) {
      if (indices[i] >= divisors_.size()) return false;
      const Divisor& share = divisors_[indices[i]];
      if (x >> (64 - precision) >= share.frequency) {
        words.push_back(static_cast<std::uint32_t>(x));
        x >>= 32;
      }
      // Rounded down, the inverse gives the quotient or one less.
      std::uint64_t quotient = high(x, share.inverse);
      std::uint64_t rest = x - quotient * share.frequency;
      const bool less = rest >= share.frequency;
      quotient += less ? 1 : 0;
      rest -= less ? share.frequency : 0;
      x = (quotient << precision) + share.left + rest;
    }
    state = x;
    return true;
  }

 private:
  struct Divisor {
    std::uint64_t inverse;
    std::uint32_t left, frequency;
  };

  std::size_t segment_ = ~std::size_t{0};
  std::vector<std::uint32_t> left_;
  std::vector<Divisor> divisors_;
};

// One stream that is read from its end.
struct Stream {
  const std::uint8_t* words;
  std::size_t left = 0;  // words
  std::uint64_t state = 0;

  Stream(const std::uint8_t* begin, std::size_t length) : words(begin), left(length) {
    for (int i = 0; i < 2 && left > 0; ++i) pull();
  }

  void pull() { state = state << 32 | load<std::uint32_t>(words + 4 * --left); }
  bool ended() const { return state == 0 && left == 0; }
};

// The parts of an index.
struct Share {
  std::uint32_t left, frequency;
};

// A model to read with. To be copied: what is written in a loop could otherwise be one of its
// members.
struct Shares {
  const Share* shares;
  const std::uint32_t* first;  // of each bucket of places, the first index
  int shift;

  // The next index. Its parts hold the place in any case, so that none is beyond the last.
  std::uint32_t pop(Stream& stream) const {
    const auto place = static_cast<std::uint32_t>(stream.state & (parts - 1));
    std::uint32_t k = first[place >> shift];
    Share share = shares[k];
    while (place - share.left >= share.frequency) share = shares[++k];
    stream.state = (stream.state >> precision) * share.frequency + (place - share.left);
    if (stream.state >> 32 == 0 && stream.left > 0) stream.pull();
    return k;
  }
};

// The model of one segment at a time, for a decoder.
class Reader {
 public:
  Shares prepare(const std::int64_t* counts, const Palettes& palettes, std::size_t segment) {
    if (segment != segment_) divide(counts, palettes, segment);
    segment_ = segment;
    return {shares_.data(), first_.data(), shift_};
  }

 private:
  void divide(const std::int64_t* counts, const Palettes& palettes, std::size_t segment) {
    const std::size_t clusters = palettes.size(segment);
    const std::size_t weights = palettes.length(segment);
    divide_parts(counts + palettes.first(segment), clusters, weights, left_);
    shares_.resize(clusters);
    for (std::size_t k = 0; k < clusters; ++k) shares_[k] = {left_[k], left_[k + 1] - left_[k]};
    // So many that most lie within one index, but no more than pay for a short segment.
    const int buckets = std::clamp(static_cast<int>(std::bit_width(clusters)) + 4, 12, 16);
    shift_ = precision - std::min(buckets, std::max(static_cast<int>(std::bit_width(weights)), 4));
    first_.resize(parts >> shift_);
    std::uint32_t k = 0;
    for (std::size_t bucket = 0; bucket < first_.size(); ++bucket) {
      while (left_[k + 1] <= bucket << shift_) ++k;
      first_[bucket] = k;
    }
  }

  std::size_t segment_ = ~std::size_t{0};
  std::vector<std::uint32_t> left_;
  std::vector<Share> shares_;
  std::vector<std::uint32_t> first_;
  int shift_ = precision;
};

// The streams of the chunks first … last - 1, by one thread.
template <class Index, class Count>
bool encode_chunks(const Index* indices, const Count* counts, const Palettes& palettes,
                   std::size_t chunk, std::pair<std::size_t, std::size_t> range, Streams& out) {
  struct Part {
    std::size_t segment, begin, end;
  };
  std::vector<Part> parts_of_chunk;
  Writer writer;
  for (std::size_t number = range.first; number < range.second; ++number) {
    const std::size_t begin = number * chunk;
    parts_of_chunk.clear();
    palettes.for_parts(begin, std::min(begin + chunk, palettes.weights()),
                       [&](std::size_t segment, std::size_t from, std::size_t to) {
                         if (palettes.size(segment) > 1)
                           parts_of_chunk.push_back({segment, from, to});
                       });
    const std::size_t before = out.words.size();
    std::uint64_t state = 0;
    for (auto part = parts_of_chunk.rbegin(); part != parts_of_chunk.rend(); ++part) {
      writer.prepare(counts, palettes, part->segment);
      if (!writer.push(indices + part->begin, part->end - part->begin, state, out.words))
        return false;
    }
    for (; state != 0; state >>= 32) out.words.push_back(static_cast<std::uint32_t>(state));
    out.lengths.push_back(static_cast<std::int64_t>(out.words.size() - before));
  }
  return true;
}

// Reads chunks of entropy-coded indices.
template <class Item>
class Decoder {
 public:
  // `out` is the place of the weight `origin`.
  Decoder(const Palettes& palettes, const std::int64_t* counts, Census& census, const Item* table,
          std::size_t origin, Item* out)
      : palettes_(palettes),
        counts_(counts),
        tally_(palettes, census),
        table_(table),
        origin_(origin),
        out_(out) {}

  // Chunks of equal length in one segment, side by side: each waits for its own last index only.
  void read(std::array<Stream, lanes>& streams, std::size_t begin, std::size_t chunk) {
    const std::size_t segment = palettes_.segment_of(begin);
    const Shares shares = reader_.prepare(counts_, palettes_, segment);
    const Item* table = table_ + palettes_.first(segment);
    std::uint32_t* tally = tally_.of(segment, lanes * chunk);
    Item* out = out_ + (begin - origin_);
    std::array<Stream, lanes> own = streams;
    const auto step = [&](std::size_t lane, std::size_t i) {
      const std::uint32_t k = shares.pop(own[lane]);
      out[lane * chunk + i] = table[k];
      ++tally[Tally::tables * k + lane];
    };
    // Written out, so that the states stay in registers.
    for (std::size_t i = 0; i < chunk; ++i) {
      step(0, i);
      step(1, i);
      step(2, i);
      step(3, i);
    }
    streams = own;
  }

  // One chunk, in whatever segments it lies.
  void read(Stream& stream, std::size_t begin, std::size_t end) {
    palettes_.for_parts(begin, end, [&](std::size_t segment, std::size_t from, std::size_t to) {
      const Item* table = table_ + palettes_.first(segment);
      std::uint32_t* tally = tally_.of(segment, to - from);
      Item* out = out_ + (from - origin_);
      if (palettes_.size(segment) == 1) {
        std::fill_n(out, to - from, *table);
        *tally += static_cast<std::uint32_t>(to - from);
        return;
      }
      const Shares shares = reader_.prepare(counts_, palettes_, segment);
      Stream own = stream;
      for (std::size_t i = 0; i < to - from; ++i) {
        const std::uint32_t k = shares.pop(own);
        out[i] = table[k];
        ++tally[Tally::tables * k + i % Tally::tables];
      }
      stream = own;
    });
  }

  void finish() { tally_.finish(); }

 private:
  const Palettes& palettes_;
  const std::int64_t* counts_;
  Reader reader_;
  Tally tally_;
  const Item* table_;
  std::size_t origin_;
  Item* out_;
};

// The chunks first … last - 1, by one thread. False if a stream does not end with its last index.
template <class Item>
bool decode_chunks(const Chunks& chunks, std::span<const std::size_t> offsets,
                   const Palettes& palettes, std::pair<std::size_t, std::size_t> range,
                   Decoder<Item>& decoder) {
  const std::size_t chunk = chunks.chunk;
  const auto stream = [&](std::size_t number) {
    const std::size_t own = number - chunks.first;
    return Stream(chunks.words.data() + 4 * offsets[own],
                  static_cast<std::size_t>(chunks.lengths[own]));
  };
  const auto in_one_segment = [&](std::size_t begin, std::size_t end) {
    if (end > palettes.weights()) return false;
    const std::size_t segment = palettes.segment_of(begin);
    return palettes.size(segment) > 1 && segment == palettes.segment_of(end - 1);
  };
  bool ended = true;
  for (std::size_t number = range.first; number < range.second;) {
    const std::size_t begin = number * chunk;
    if (number + lanes <= range.second && in_one_segment(begin, begin + lanes * chunk)) {
      std::array<Stream, lanes> streams{stream(number), stream(number + 1), stream(number + 2),
                                        stream(number + 3)};
      decoder.read(streams, begin, chunk);
      for (const Stream& one : streams) ended &= one.ended();
      number += lanes;
    } else {
      Stream one = stream(number);
      decoder.read(one, begin, std::min(begin + chunk, palettes.weights()));
      ended &= one.ended();
      ++number;
    }
  }
  decoder.finish();
  return ended;
}

// Whether each stream is as it was written: its last word is not 0.
bool canonical(const std::uint8_t* words, std::span<const std::int64_t> lengths,
               std::span<const std::size_t> offsets) {
  for (std::size_t number = 0; number < lengths.size(); ++number) {
    const std::size_t end = offsets[number] + static_cast<std::size_t>(lengths[number]);
    if (lengths[number] > 0 && load<std::uint32_t>(words + 4 * (end - 1)) == 0) return false;
  }
  return true;
}

// Whether the tensor has these chunks.
bool inside(const Chunks& chunks, const Palettes& palettes) {
  const std::size_t all = chunks_of(palettes, chunks.chunk);
  return chunks.first <= all && chunks.lengths.size() <= all - chunks.first;
}

}  // namespace

Palettes::Palettes(std::span<const std::int64_t> edges, std::span<const std::int64_t> sizes)
    : edges_(edges), sizes_(sizes), first_(1, 0) {
  if (edges.size() != sizes.size() + 1 || sizes.empty() || edges.front() != 0)
    throw std::invalid_argument("each segment requires a size, and the first one begins at 0");
  first_.reserve(edges.size());
  for (std::size_t s = 0; s < sizes.size(); ++s) {
    if (edges[s] >= edges[s + 1] || sizes[s] < 1)
      throw std::invalid_argument("a segment has no weights or no clusters");
    if (sizes[s] > (std::int64_t{1} << 62) - first_.back())
      throw std::invalid_argument("there are too many clusters");
    first_.push_back(first_.back() + sizes[s]);
  }
}

std::size_t Palettes::segment_of(std::size_t weight) const {
  const auto after =
      std::upper_bound(edges_.begin(), edges_.end(), static_cast<std::int64_t>(weight));
  return static_cast<std::size_t>(after - edges_.begin()) - 1;
}

void pack(const Items& indices, std::size_t size, int bits, std::uint8_t* out) {
  const auto width = static_cast<std::size_t>(bits);
  with_item(indices.itemsize, [&]<class Index>(Index) {
    const auto* from = static_cast<const Index*>(indices.data);
    // Chunks of a multiple of 8 indices begin on a byte.
    parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
      pack_chunk(from + begin, end - begin, static_cast<unsigned>(bits), out + begin * width / 8);
    });
  });
}

bool unpack(std::span<const std::uint8_t> packed, int bits, const Palettes& palettes,
            const Items& table, const Counted& counts, void* out) {
  std::atomic<bool> inside{true};
  Census census(palettes, counts);
  std::size_t most = 0;
  for (std::size_t s = 0; s < palettes.segments(); ++s) most = std::max(most, palettes.size(s));
  with_item(table.itemsize, [&]<class Item>(Item) {
    // Long enough for the look-ups to outweigh the counts, which have 32 bits.
    parallel_chunks(palettes.weights(), std::clamp(4 * most, chunk_length, most_counted),
                    [&](std::size_t, std::size_t begin, std::size_t end) {
                      Tally tally(palettes, census);
                      const auto unpack_own = bits <= 8 ? unpack_chunk<std::uint8_t, Item>
                                                        : unpack_chunk<std::uint32_t, Item>;
                      unpack_own(packed, static_cast<std::size_t>(bits), palettes, {begin, end},
                                 static_cast<const Item*>(table.data), tally,
                                 static_cast<Item*>(out), inside);
                    });
  });
  return inside;
}

Streams encode(const Items& indices, const Items& counts, const Palettes& palettes,
               std::size_t chunk) {
  const std::size_t chunks = chunks_of(palettes, chunk);
  const std::size_t share = std::max(task_weights / chunk, std::size_t{1});
  std::vector<Streams> found((chunks - 1) / share + 1);
  std::atomic<bool> known{true};
  with_item(counts.itemsize, [&]<class Count>(Count) {
    const auto* shares = static_cast<const Count*>(counts.data);
    check_counts(shares, palettes);
    with_item(indices.itemsize, [&]<class Index>(Index) {
      parallel_chunks(chunks, share, [&](std::size_t task, std::size_t first, std::size_t last) {
        if (!encode_chunks(static_cast<const Index*>(indices.data), shares, palettes, chunk,
                           {first, last}, found[task])) {
          known = false;
        }
      });
    });
  });
  if (!known) throw std::invalid_argument("an index is not in its segment");
  Streams all;
  for (Streams& part : found) {
    all.lengths.insert(all.lengths.end(), part.lengths.begin(), part.lengths.end());
    all.words.insert(all.words.end(), part.words.begin(), part.words.end());
    part = Streams();
  }
  return all;
}

Decoded decode(const Chunks& chunks, const Palettes& palettes, const std::int64_t* counts,
               const Items& table, void* out) {
  const std::span words = chunks.words;
  std::vector<std::size_t> offsets{0};
  for (const std::int64_t length : chunks.lengths) {
    if (length < 0 || static_cast<std::uint64_t>(length) > words.size() / 4)
      throw std::invalid_argument("a stream is longer than all words");
    offsets.push_back(offsets.back() + static_cast<std::size_t>(length));
  }
  if (!inside(chunks, palettes) || 4 * offsets.back() != words.size())
    throw std::invalid_argument("the streams are not those of the chunks");
  check_counts(counts, palettes);
  if (!canonical(words.data(), chunks.lengths, offsets)) return Decoded::last_word;
  std::atomic<bool> ended{true};
  std::atomic<bool> counted{true};
  Census census(palettes, [&](std::size_t segment, const std::vector<std::int64_t>& found) {
    if (!std::equal(found.begin(), found.end(), counts + palettes.first(segment))) counted = false;
  });
  const std::size_t origin = chunks.first * chunks.chunk;
  with_item(table.itemsize, [&]<class Item>(Item) {
    const std::size_t share = std::max(task_weights / chunks.chunk, std::size_t{1});
    parallel_chunks(
        chunks.lengths.size(), share, [&](std::size_t, std::size_t first, std::size_t last) {
          Decoder<Item> decoder(palettes, counts, census, static_cast<const Item*>(table.data),
                                origin, static_cast<Item*>(out));
          if (!decode_chunks(chunks, offsets, palettes, {chunks.first + first, chunks.first + last},
                             decoder))
            ended = false;
        });
  });
  if (!ended) return Decoded::unended;
  return counted ? Decoded::whole : Decoded::other_counts;
}

}  // namespace softq
