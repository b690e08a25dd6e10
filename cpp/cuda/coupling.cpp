#include "coupling.h"

#include <algorithm>
#include <utility>

#include "softq/checks.h"

namespace softq::cuda {
namespace {

const std::vector<Layer>& checked(const std::vector<Layer>& layers, cudaStream_t stream) {
  refuse_capture(stream, "the first step of a coupling");
  for (const Layer& layer : layers) check_size(layer.size);
  return layers;
}

}  // namespace

Coupling::Coupling(const std::vector<Layer>& layers, std::int32_t bins, Method method,
                   const Place& place)
    : layers_(checked(layers, place.stream), bins, true, place) {
  const cudaStream_t stream = place.stream;
  if (method == Method::fft && !layers.empty()) {
    rows_at_once_ = static_cast<std::uint32_t>(cuda::rows_at_once(layers_.size(), bins));
    const Model& model = layers_.model();
    std::vector<Row> rows;
    for (std::uint32_t layer = 0; layer < layers_.size(); ++layer) {
      rows.push_back({model.counts + std::size_t{layer} * model.bins_stride,
                      &model.states[layer].spacing, layers[layer].width});
    }
    // All batches are of one size: the last one is filled up with rows that nobody looks at.
    while (rows.size() % rows_at_once_ != 0) rows.push_back(rows.back());
    rows_.emplace(rows.size(), place);
    rows_->upload(rows, stream);
    convolution_.emplace(bins, rows_at_once_, place);
  }
  cuda::check(cudaStreamSynchronize(stream),
              "cudaStreamSynchronize");  // steps may use other streams
}

void Coupling::set(const Control& control, cudaStream_t stream) const {
  refuse_capture(stream, "a new fraction or step of the coupling");
  set_control(layers_.model(), control, stream);
}

void Coupling::add_force(const std::vector<Addresses>& addresses, const Control& control,
                         cudaStream_t stream) const {
  const Model& model = layers_.model();
  const auto groups = layers_.groups(addresses);
  const Control* given = capturing(stream) ? nullptr : &control;
  for (const Group& group : groups) {
    if (group.segment_count == 0) continue;
    measure(model, group, std::exchange(given, nullptr), stream);  // the first one sets it
  }
  for (const Group& group : groups) count(model, group, !convolution_, stream);
  for (std::uint32_t first = 0; rows_at_once_ > 0 && first < layers_.size();
       first += rows_at_once_) {
    convolution_->run(rows_->data() + first, stream);
    force_from_potential(model, first, std::min(rows_at_once_, layers_.size() - first),
                         convolution_->potential(), convolution_->length(), stream);
  }
  for (const Group& group : groups) cuda::add_force(model, group, stream);
}

}  // namespace softq::cuda
