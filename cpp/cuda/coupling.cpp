#include "coupling.h"

#include <algorithm>
#include <utility>

#include "softq/checks.h"

namespace softq::cuda {
namespace {

constexpr std::uint32_t most_rows = 32;  // of a batch of transforms: bounds their memory

const std::vector<Layer>& with_checked_sizes(const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) check_size(layer.size);
  return layers;
}

}  // namespace

Coupling::Coupling(const std::vector<Layer>& layers, std::int32_t bins, Method method,
                   cudaStream_t stream)
    : layers_(with_checked_sizes(layers), bins, true, stream) {
  if (method == Method::fft && !layers.empty()) {
    rows_at_once_ = std::min(layers_.size(), most_rows);
    const Model& model = layers_.model();
    std::vector<Row> rows;
    for (std::uint32_t layer = 0; layer < layers_.size(); ++layer) {
      rows.push_back({model.counts + std::size_t{layer} * model.bins_stride,
                      &model.states[layer].spacing, layers[layer].width});
    }
    // All batches are of one size: the last one is filled up with rows that nobody looks at.
    while (rows.size() % rows_at_once_ != 0) rows.push_back(rows.back());
    rows_.emplace(rows.size(), stream);
    rows_->upload(rows, stream);
    convolution_ = std::make_unique<Convolution>(bins, rows_at_once_, stream);
  }
  cuda::check(cudaStreamSynchronize(stream),
              "cudaStreamSynchronize");  // steps may use other streams
}

Coupling::~Coupling() { cudaDeviceSynchronize(); }

void Coupling::set(const Control& control, cudaStream_t stream) const {
  set_control(layers_.model(), control, stream);
}

void Coupling::add_force(const std::vector<Addresses>& addresses,
                         const std::optional<Control>& control, cudaStream_t stream) const {
  const Model& model = layers_.model();
  const auto groups = layers_.groups(addresses);
  const Control* given = control ? &*control : nullptr;
  for (const Group& group : groups) {
    if (group.segment_count == 0) continue;
    measure(model, group, std::exchange(given, nullptr), stream);  // the first one sets it
  }
  for (const Group& group : groups) count(model, group, convolution_ == nullptr, stream);
  for (std::uint32_t first = 0; rows_at_once_ > 0 && first < layers_.size();
       first += rows_at_once_) {
    convolution_->run(rows_->data() + first, stream);
    force_from_potential(model, first, std::min(rows_at_once_, layers_.size() - first),
                         convolution_->potential(), convolution_->length(), stream);
  }
  for (const Group& group : groups) cuda::add_force(model, group, stream);
}

}  // namespace softq::cuda
