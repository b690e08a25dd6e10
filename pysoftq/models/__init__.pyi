from .build import build_model as build_model
from .weight_files import load_weights as load_weights
