from .datasets import load_dataset as load_dataset
from .images import Dataset as Dataset
from .images import Images as Images
from .tasks import Data as Data
from .tasks import Task as Task
from .text import TextData as TextData
from .text import read_text as read_text
