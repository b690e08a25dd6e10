#include <algorithm>
#include <atomic>

#include "arrays.h"
#include "release.h"
#include "softq/coding.h"

namespace softq::bindings {

namespace {

// A contiguous array of items of 1, 2, 4 or 8 bytes.
Items items_of(const py::array& array, std::size_t size) {
  const auto itemsize = static_cast<std::size_t>(array.itemsize());
  if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) != size)
    throw py::value_error("the array must have one dimension, and an entry for each item");
  if (!(array.flags() & py::array::c_style) ||
      !(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) ||
      (itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8)) {
    throw py::value_error("the array must be contiguous, its items of 1, 2, 4 or 8 bytes");
  }
  return {array.data(), itemsize};
}

// Where the entries of a table are written to, for so many weights.
void* place_of(py::array& out, const Items& table, std::size_t weights) {
  if (items_of(out, weights).itemsize != table.itemsize)
    throw py::value_error("the items must be those of the table");
  return out.mutable_data();
}

py::array_t<std::uint8_t> pack_indices(const py::array& indices, int bits) {
  if (bits < 1 || bits > 31) throw py::value_error("bits must be from 1 to 31");
  const auto size = static_cast<std::size_t>(indices.size());
  const Items items = items_of(indices, size);
  py::array_t<std::uint8_t> packed(
      static_cast<py::ssize_t>((size * static_cast<std::size_t>(bits) + 7) / 8));
  std::uint8_t* out = packed.mutable_data();
  released([&] { pack(items, size, bits, out); });
  return packed;
}

py::array_t<std::int64_t> unpack_indices(const Array<std::uint8_t>& packed, int bits,
                                         const Array<std::int64_t>& sizes,
                                         const Array<std::int64_t>& edges, const py::array& table,
                                         py::array out) {
  if (bits < 0 || bits > 31) throw py::value_error("bits must be from 0 to 31");
  const Palettes palettes(span_of(edges), span_of(sizes));
  const std::size_t bytes = (palettes.weights() * static_cast<std::size_t>(bits) + 7) / 8;
  if (span_of(packed).size() != bytes)
    throw py::value_error("the bytes are not those of the indices");
  const Items entries = items_of(table, palettes.clusters());
  void* place = place_of(out, entries, palettes.weights());
  py::array_t<std::int64_t> counts(static_cast<py::ssize_t>(palettes.clusters()));
  std::int64_t* all = counts.mutable_data();
  const auto note = [&](std::size_t segment, const std::vector<std::int64_t>& found) {
    std::copy(found.begin(), found.end(), all + palettes.first(segment));
  };
  const bool inside =
      released([&] { return unpack(span_of(packed), bits, palettes, entries, note, place); });
  if (!inside) throw py::value_error("an index is not in its codebook");
  return counts;
}

py::tuple encode_indices(const py::array& indices, const py::array& counts,
                         const Array<std::int64_t>& sizes, const Array<std::int64_t>& edges,
                         std::size_t chunk) {
  const Palettes palettes(span_of(edges), span_of(sizes));
  const Items codes = items_of(indices, palettes.weights());
  const Items shares = items_of(counts, palettes.clusters());
  const Streams found = released([&] { return encode(codes, shares, palettes, chunk); });
  return py::make_tuple(array_of(found.lengths), array_of(found.words));
}

void decode_indices(const Array<std::uint8_t>& words, const Array<std::int64_t>& lengths,
                    std::size_t first, std::size_t chunk, const Array<std::int64_t>& counts,
                    const Array<std::int64_t>& sizes, const Array<std::int64_t>& edges,
                    const py::array& table, py::array out) {
  const Palettes palettes(span_of(edges), span_of(sizes));
  if (span_of(counts).size() != palettes.clusters())
    throw py::value_error("each cluster requires a count");
  const Items entries = items_of(table, palettes.clusters());
  const Chunks chunks{span_of(words), span_of(lengths), first, chunk};
  const auto [begin, end] = chunks.range(palettes);
  void* place = place_of(out, entries, end - begin);
  const Decoded outcome =
      released([&] { return decode(chunks, palettes, counts.data(), entries, place); });
  switch (outcome) {
    case Decoded::last_word:
      throw py::value_error("the last word of the coded stream is 0");
    case Decoded::unended:
      throw py::value_error("the coded stream does not end with its last index");
    case Decoded::other_counts:
      throw py::value_error("its coded indices have other counts than those stored");
    case Decoded::whole:
      break;
  }
}

}  // namespace

void bind_coding(py::module_& m) {
  m.def("pack", &pack_indices, py::arg("indices"), py::arg("bits"), "Indices of so many bits each");
  m.def("unpack", &unpack_indices, py::arg("packed"), py::arg("bits"), py::arg("sizes"),
        py::arg("edges"), py::arg("table"), py::arg("out"),
        "Writes the entry of each packed index to `out`; counts of the clusters");
  m.def("encode", &encode_indices, py::arg("indices"), py::arg("counts"), py::arg("sizes"),
        py::arg("edges"), py::arg("chunk"),
        "(words of the stream of each chunk of weights, all words)");
  m.def("decode", &decode_indices, py::arg("words"), py::arg("lengths"), py::arg("first"),
        py::arg("chunk"), py::arg("counts"), py::arg("sizes"), py::arg("edges"), py::arg("table"),
        py::arg("out"), "Writes the entry of each coded index of successive chunks to `out`");
}

}  // namespace softq::bindings
