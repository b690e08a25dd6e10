from .lifecycle import prepare as prepare
from .lifecycle import validate_clustering as validate_clustering
from .options import ClusteringConfig as ClusteringConfig
from .quantizer import CouplingEnergy as CouplingEnergy
from .quantizer import SoftQuantizer as SoftQuantizer
from .report import CompressionReport as CompressionReport
from .report import LayerReport as LayerReport
from .report import TensorReport as TensorReport
