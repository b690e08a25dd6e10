from .binning import identify as identify
from .bit_width import mean_bit_width as mean_bit_width
from .clusters import Clusters as Clusters
from .codebooks import Codebooks as Codebooks
from .merging import merge as merge
from .refinement import refine as refine
from .values import unique as unique
