"""Where data sets and recipes depart from the defaults of a run."""

from __future__ import annotations

from typing import Any

# 18,824 weights and 23 steps in an epoch: a stronger coupling, or the clusters would not collapse
# in time; a narrower one, for 4-bit HEQ's bit-width is met with more clusters than w = 0.5 leaves;
# n_min in proportion to layers of 72 to 9,216 weights. Chosen on the seeds 100 to 107.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "digits-resnet",
        "h": 0.2,
        "w": 0.35,
        "n_min": 1,
        "epochs": 100,
        "batch_size": 64,
        "pretrain_epochs": 40,
        "pretrain_batch_size": 128,
        "pretrain_weight_decay": 1e-3,
        "threads": 1,  # a network this small is three times slower on two
    },
    "pydoc": {
        "model": "gpt",
        "h": 0.003,  # its gradients are small, and AdamW only weighs force against gradient
        "w": 0.25,
        "epochs": 8,
        "batch_size": 16,
        "lr": 1e-3,
        "optimizer": "adamw",
        "pretrain_epochs": 8,
        "pretrain_batch_size": 16,
        "pretrain_lr": 3e-3,
        "pretrain_optimizer": "adamw",
        "pretrain_weight_decay": 0.1,
        "threads": 1,
    },
}

# Strengths of the log potential, where it is not the usual one; see those of the linear potential.
LOG_H = {"pydoc": 8.0}

# Where a run of the recipe best ends that nothing else says an end of.
DEFAULT_TARGET: dict[str, Any] = {"max_drop": 1.0}

CODEBOOK_LR = 0.001  # of Adam, for codebooks whose weights stay in their clusters

SAME_DEFAULTS = {"text": "pydoc"}

# What a recipe sets, over the defaults of the data set; measured in docs/recipe.md. All of it may
# be applied to a finished run. The recipe "best" is the default: its values are those of the
# options.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "bits": 7,
        "refinement": "count",
        "rd_weight": 0.05,
        "codebook_epochs": 0,
    },
    "best": {
        "bits": None,
        "refinement": "levels",
        "rd_weight": 0.05,
        "codebook_epochs": 5,
    },
}
