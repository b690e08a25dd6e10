"""What is stored of a model: its tensors under their names, and what describes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn

from pysoftq.artifact import layout
from pysoftq.artifact.format import Record
from pysoftq.artifact.forms import Coding, Options
from pysoftq.artifact.tensors import check_storable, dtype_of, identity
from pysoftq.interaction.arrays import check_dense, check_granularity
from pysoftq.interaction.pieces import is_divided, own_part, shape_of
from pysoftq.interaction.ranks import digest
from pysoftq.models.wrappers import specification, unwrapped


@dataclass(frozen=True)
class ModelContent:
    """What is written into a file: a model, and how.

    specification: from which the model can be rebuilt, or None.
    """

    model: nn.Module
    coding: Coding
    granularity: str
    metadata: Mapping[str, Any]
    specification: Any

    @classmethod
    def of(
        cls,
        model: nn.Module,
        coding: Coding,
        granularity: str,
        metadata: Mapping[str, Any] | None,
    ) -> ModelContent:
        """Of a model, which may be wrapped."""
        own = unwrapped(model)
        return cls(own, coding, granularity, metadata or {}, specification(model))

    @property
    def options(self) -> Options:
        """Coding and granularity."""
        return self.coding, self.granularity

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is to be stored under which name, and the other names of the same tensors.

        Raises:
            ValueError, TypeError: as `save_compressed`.
        """
        if self.coding not in get_args(Coding):
            known = ", ".join(get_args(Coding))
            raise ValueError(f"coding must be one of {known}, got {self.coding!r}")
        check_granularity(self.granularity)
        self.description([], {})
        tensors: dict[str, Tensor] = {}
        ties: dict[str, str] = {}
        owners: dict[object, str] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            own = own_part(tensor)
            check_storable(name, own)
            check_dense(own, name)
            owner = owners.setdefault(identity(tensor), name)
            if owner == name:
                tensors[name] = tensor if is_divided(tensor) else tensor.detach()
            else:
                ties[name] = owner
        return tensors, ties

    def facts(self, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> dict[str, Any]:
        """What has to be the same in all processes."""
        rows = [
            (name, tuple(shape_of(x)), x.dtype, getattr(x, "placements", None))
            for name, x in tensors.items()
        ]
        return {
            "coding": self.coding,
            "granularity": self.granularity,
            "metadata": self.metadata,
            "the model's specification": self.specification,
            "the names, shapes or placements of the tensors": digest((rows, ties)),
        }

    def description(self, records: Iterable[Record], ties: Mapping[str, str]) -> bytes:
        """What the file says of itself and of these tensors.

        Raises:
            TypeError: metadata or specification are not JSON.
        """
        model, metadata = _as_json(self.specification), _as_json(self.metadata)
        return layout.description(records, ties, self.granularity, model, metadata)


def raw_record(name: str, tensor: Tensor) -> Record:
    """Of a tensor that is stored as it is."""
    return Record(name, tuple(shape_of(tensor)), dtype_of(tensor))


def _as_json(value: object) -> Any:
    """A value as JSON has it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata and model specification must be plain JSON: {error}") from error
