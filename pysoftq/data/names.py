"""Names of the data sets, without importing them."""

from __future__ import annotations

# A set with a place after the colon is read from a folder or file.
DATASETS = (
    *("digits", "digits:A-B", "digits:shifted", "cifar10", "cifar100", "imagefolder:DIR"),
    *("pydoc", "text:FILE"),
)

DATASET_PATTERN = r"digits(:shifted|:[0-9]-[0-9])?|cifar10|cifar100|imagefolder:.+|pydoc|text:.+"

TEXTS = ("pydoc", "text")  # for language models
