"""Compression to a target: coupling, merging and training in any loop, the size controlled.

May import artifact, coupling, clusters, models, interaction, options, errors.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
