from .binning import identify as identify
from .clusters import Clusters as Clusters
from .clusters import mean_bit_width as mean_bit_width
from .codebooks import Codebooks as Codebooks
from .merging import merge as merge
from .refinement import refine as refine
from .training import CodebookTraining as CodebookTraining
from .values import unique as unique
