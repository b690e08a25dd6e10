"""What became of every tensor of a model: coupled or not, and by which rule."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pysoftq.coupling.report import TensorReport
from pysoftq.interaction.pieces import shape_of
from pysoftq.models.wrappers import unwrapped


def take_inventory(
    model: nn.Module, coupled: Mapping[str, str], excluded: Mapping[str, str]
) -> tuple[TensorReport, ...]:
    """All parameters and all buffers that are saved with the model, each under each of its names.

    Args:
        model: any module; of a wrapped one the tensors have the names of the model inside.
        coupled: rule of each coupled parameter, by its first name.
        excluded: rule of each other one; "degenerate: …" where no rule could have coupled it.
    """
    model = unwrapped(model)
    tensors = []
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        rule = coupled.get(first) or excluded.get(first, "not in the state that was loaded")
        degenerate = rule.startswith("degenerate: ")
        status = "coupled" if first in coupled else "degenerate" if degenerate else "excluded"
        if first != name:
            rule = f"tied to '{first}'"
        tensors.append(TensorReport(name, _shape(parameter), status, rule))
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in saved:
            tensors.append(TensorReport(name, _shape(buffer), "excluded", "buffer"))
    return tuple(tensors)


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return (0,) if nn.parameter.is_lazy(parameter) else tuple(shape_of(parameter))
