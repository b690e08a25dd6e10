from .compressor import Compressor as Compressor
from .report import TargetReport as TargetReport
from .rungs import Rung as Rung
from .strength import Strength as Strength
from .target import Target as Target
