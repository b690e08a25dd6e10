"""Soft quantization: neural networks compressed by coupling their weights.

The interaction energy of weights (`pair_energy`, `density`, `potential`, `force`, …) is imported
at once, what needs torch (`SoftQuantizer`, `save_compressed`, …) when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from pysoftq import _core as _core
except ImportError as error:
    raise ImportError(
        "pysoftq's compiled core is missing or does not load "
        f"({error}).\nBuild it from the source tree with `pip install .`; if Python was started in "
        "the source tree, it may have found the sources there instead of the installed package."
    ) from error

from pysoftq.density import Density, density
from pysoftq.environment import show_config
from pysoftq.force import force, force_table
from pysoftq.pairs import pair_energy, pair_force
from pysoftq.potential import mean_field_energy, potential
from pysoftq.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from pysoftq.artifact import (
        inspect_compressed,
        load_compressed,
        load_state_dict,
        save_compressed,
    )
    from pysoftq.baselines import histogram_equalize
    from pysoftq.clustering import ClusteringConfig, finalize, prepare, validate_clustering
    from pysoftq.clusters import Clusters, identify, mean_bit_width, refine, unique
    from pysoftq.codebook import Codebooks, train_codebooks
    from pysoftq.coupling import CoupledLayer, CouplingEnergy, SoftQuantizer
    from pysoftq.models import build_model
    from pysoftq.report import CompressionReport, LayerReport, TensorReport
    from pysoftq.weights import load_weights

__version__ = "0.1.0"

__all__ = [
    "ClusteringConfig",
    "Clusters",
    "Codebooks",
    "CompressionReport",
    "CoupledLayer",
    "CouplingEnergy",
    "Density",
    "LayerReport",
    "SoftQuantizer",
    "TensorReport",
    "build_model",
    "density",
    "finalize",
    "force",
    "force_table",
    "get_num_threads",
    "histogram_equalize",
    "identify",
    "inspect_compressed",
    "load_compressed",
    "load_state_dict",
    "load_weights",
    "mean_bit_width",
    "mean_field_energy",
    "pair_energy",
    "pair_force",
    "potential",
    "prepare",
    "refine",
    "save_compressed",
    "set_num_threads",
    "show_config",
    "train_codebooks",
    "unique",
    "validate_clustering",
]

_LAZY = {
    "ClusteringConfig": "clustering",
    "Clusters": "clusters",
    "Codebooks": "codebook",
    "CompressionReport": "report",
    "CoupledLayer": "coupling",
    "CouplingEnergy": "coupling",
    "LayerReport": "report",
    "SoftQuantizer": "coupling",
    "TensorReport": "report",
    "build_model": "models",
    "finalize": "clustering",
    "histogram_equalize": "baselines",
    "identify": "clusters",
    "inspect_compressed": "artifact",
    "load_compressed": "artifact",
    "load_state_dict": "artifact",
    "load_weights": "weights",
    "mean_bit_width": "clusters",
    "prepare": "clustering",
    "refine": "clusters",
    "save_compressed": "artifact",
    "train_codebooks": "codebook",
    "unique": "clusters",
    "validate_clustering": "clustering",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pysoftq' has no attribute {name!r}")
    value = getattr(import_module(f"pysoftq.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
