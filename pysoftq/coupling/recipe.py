"""The recipe "best" for any training loop: merged clusters, then trained values and weights."""

from __future__ import annotations

from torch import nn

from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.training import CodebookTraining
from pysoftq.coupling.options import Refinement
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport
from pysoftq.models.sharding import Sharding


class Recipe:
    """Replaces `SoftQuantizer.finalize` and regains most of the accuracy that clustering costs.

    Merges the clusters of the softly quantized weights and writes them into the model. The steps
    that follow train the clusters' values, the weights, which may change clusters, biases and
    normalisation, while the model computes with the clusters' values (docs/recipe.md):

        recipe = Recipe(softq, steps=5 * len(loader))
        for _ in range(5):
            for inputs, targets in loader:
                recipe.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                recipe.step()
        report = recipe.finalize()
        save_compressed(model, "compressed.safetensors")

    The weights do not move in the model between the steps: each has the value of its cluster at
    any time. Once the steps are done the learning rates are 0.

    Where several processes hold the weights in pieces (DTensor), all of them make the same calls;
    values and clusters are those of one process with the same gradients.

    Args:
        softq: after the training with the coupling; it is detached.
        steps: number of `step()` calls to come.
        rd_weight: rate-distortion weight, as in `SoftQuantizer.finalize`; higher means fewer bits.
        refinement: "levels" or "entropy", as there.
        lr: peak learning rate of values, biases and normalisation (Adam).
        weights_lr: peak learning rate of the weights (SGD with momentum 0.9); 0 keeps each in its
            cluster.

    Attributes:
        codebooks: the trained values.

    Raises:
        ValueError: an argument is out of range, or as in `SoftQuantizer.finalize`; nothing has
            changed then.
    """

    def __init__(
        self,
        softq: SoftQuantizer,
        steps: int,
        *,
        rd_weight: float = 0.05,
        refinement: Refinement = "levels",
        lr: float = 0.001,
        weights_lr: float = 0.01,
    ) -> None:
        Sharding(softq.model).compare(
            {
                "steps": steps,
                "rd_weight": rd_weight,
                "refinement": refinement,
                "lr": lr,
                "weights_lr": weights_lr,
            }
        )
        if steps < 1:
            raise ValueError(f"`steps` must be >= 1, got {steps}")
        if not weights_lr >= 0:
            raise ValueError(f"`weights_lr` must be >= 0, got {weights_lr}")
        found = softq.clusters(whole=False)
        clusters = softq.refine(found, refinement=refinement, rd_weight=rd_weight)
        soft = {layer.name: layer.parameter.detach().clone() for layer in softq.layers}
        self._report = softq.finalize(refinement=refinement, rd_weight=rd_weight)
        self.codebooks = Codebooks(
            softq.model, clusters, soft if weights_lr else None, softq.rd_weights(rd_weight)
        )
        self._training = CodebookTraining(self.codebooks, steps, lr=lr, weights_lr=weights_lr)

    @property
    def model(self) -> nn.Module:
        """The model, as it was given to the quantizer or what that wraps."""
        return self.codebooks.model

    def zero_grad(self) -> None:
        """Clear all gradients."""
        self._training.optimizer.zero_grad()
        self.model.zero_grad()

    def step(self) -> None:
        """A step of the values and the weights, and of the learning rates."""
        self._training.optimizer.step()
        self._training.advance()

    def finalize(self) -> CompressionReport:
        """The report of the model as it is: a table of layers with their trained clusters."""
        return self._report.with_clusters(self.codebooks.palettes())
