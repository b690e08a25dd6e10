from .forms import Coding as Coding
from .inspect import ArtifactInfo as ArtifactInfo
from .inspect import LayerInfo as LayerInfo
from .inspect import inspect_compressed as inspect_compressed
from .load import load_compressed as load_compressed
from .load import load_state_dict as load_state_dict
from .save import save_compressed as save_compressed
from .size import FileSize as FileSize
