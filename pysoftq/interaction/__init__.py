"""What acts between the weights of a layer: pair energy, density, potential, force.

Backends compute on each device; segments and `CoupledLayer` say what interacts with what.
Imports `errors` and the compiled core only. NumPy is enough; torch is imported for tensors.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
