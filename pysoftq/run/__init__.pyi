from .codebooks import train_codebooks as train_codebooks
from .config import CompressConfig as CompressConfig
from .driver import compress as compress
