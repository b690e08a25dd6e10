"""The compressed file: codebooks and indices, losslessly. `docs/format.md` describes it in full."""

from pysoftq.artifact.format import ArtifactError
from pysoftq.artifact.inspect import ArtifactInfo, LayerInfo, inspect_compressed
from pysoftq.artifact.load import load_compressed, load_state_dict
from pysoftq.artifact.save import Coding, save_compressed

__all__ = [
    "ArtifactError",
    "ArtifactInfo",
    "Coding",
    "LayerInfo",
    "inspect_compressed",
    "load_compressed",
    "load_state_dict",
    "save_compressed",
]
