"""The clusters of a layer: found by binning, refined, merged, trained as codebooks.

`intervals` holds the optimal partitions and envelopes that these and the baselines share.
May import `interaction`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
