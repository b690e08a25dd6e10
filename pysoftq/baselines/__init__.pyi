from .entropy_constrained import ecvq as ecvq
from .histogram_equalized import histogram_equalize as histogram_equalize
from .k_means import kmeans as kmeans
from .uniform_grid import uniform as uniform
