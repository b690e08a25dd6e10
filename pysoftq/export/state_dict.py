"""Plain state dicts with the clustered values, for everything else."""

from __future__ import annotations

import os

import safetensors.torch
import torch
from torch import nn

from pysoftq.artifact import load_state_dict
from pysoftq.atomic import atomic_write
from pysoftq.clusters.written import warn_of_lost_clusters
from pysoftq.export.codes import weights_in
from pysoftq.export.network import Source, refuse_divided
from pysoftq.export.report import ExportReport, dense_row
from pysoftq.export.target import check_target
from pysoftq.models.weight_files import PICKLED
from pysoftq.models.wrappers import unwrapped


def to_state_dict(
    source: Source, path: str | os.PathLike[str], *, overwrite: bool = False
) -> ExportReport:
    """Write the state dict of a model or of a compressed file, every tensor dense.

    A compressed file needs no specification of its model for this. The suffix of `path` decides:
    .safetensors, where tied tensors are written under each of their names, or PyTorch's own .pt,
    .pth, .th, which keeps the tie. Values and dtypes are unchanged.

    Raises:
        ArtifactError: the compressed file cannot be read.
        FileExistsError: `path` exists, and `overwrite` is not set.
        OSError: a file cannot be read or written.
        ValueError: the suffix of `path` is another.
    """
    target = check_target(path, "state_dict", overwrite)
    if isinstance(source, nn.Module):
        refuse_divided(source)
        warn_of_lost_clusters(source, stacklevel=2)
    state = (
        unwrapped(source).state_dict(keep_vars=True)
        if isinstance(source, nn.Module)
        else load_state_dict(source)
    )
    weights = weights_in(state)
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    with atomic_write(target) as temporary:
        if target.suffix in PICKLED:
            torch.save(tensors, temporary)
        else:
            apart = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(apart, temporary, metadata={"format": "pt"})
        size = temporary.stat().st_size
    rows = tuple(dense_row(weight, "") for weight in weights)
    return ExportReport(os.fspath(path), size, rows)
