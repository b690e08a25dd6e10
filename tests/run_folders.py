"""Run folders as `pysoftq compress` writes them, from a small simulation of coupled weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

STEPS, EVERY, EPOCHS = 300, 10, 6
BINS = 512  # of the densities


def relax(theta: np.ndarray, width: float, strength: float, seed: int) -> np.ndarray:
    """Weights (T, N) under the exact coupling, a pull to where they began, and noise."""
    rng = np.random.default_rng(seed)
    start, x, velocity = theta, theta, np.zeros_like(theta)
    stages = [x]
    for step in range(1, STEPS + 1):
        ordered = np.sort(x)
        below = np.searchsorted(ordered, x) - np.searchsorted(ordered, x - width, "right")
        above = np.searchsorted(ordered, x + width) - np.searchsorted(ordered, x, "right")
        pull = 0.02 * (x - start) + 2e-3 * rng.standard_normal(x.size)
        gradient = strength * (below - above) + pull
        velocity = 0.9 * velocity + gradient
        x = x - 2e-3 * (gradient + 0.9 * velocity)
        if step % EVERY == 0:
            stages.append(x)
    return np.array(stages)


def records(size: int = 600, w: float = 0.5, h: float = 0.3) -> dict[str, Any]:
    """What ``records.npz`` holds; ``weights_final`` is without any refinement."""
    rng = np.random.default_rng(0)
    theta, last = rng.normal(0, 0.1, size), rng.normal(0, 0.3, 160)
    width, strength = w * theta.std(), h * size**-0.66
    stages = relax(theta, width, strength, seed=1).astype(np.float32)
    last_width = w * last.std()
    paths = relax(last, last_width, h * last.size**-0.66, seed=2).astype(np.float32)
    shown = stages[:: len(stages) // EPOCHS]
    return {
        "layer": "layer3.0.conv2.weight",
        "width": width,
        "strength": strength,
        "bins": 2**14,
        "bits": 7,
        "weights_pretrained": stages[0],
        "weights_early": stages[len(stages) // EPOCHS],
        "weights_soft": stages[-1],
        "weights_final": stages[-1],
        "trajectory_layer": "linear.weight",
        "trajectory_width": last_width,
        "trajectory_steps": EVERY * np.arange(len(paths)),
        "trajectories": paths,
        "density_steps": STEPS // EPOCHS * np.arange(len(shown)),
        "densities": np.array([np.histogram(x, BINS)[0] for x in shown]),
        "density_ranges": np.stack([shown.min(1), shown.max(1)], axis=1),
    }


def metrics() -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, with the keys that are drawn and one more."""
    rows = []
    for epoch in range(EPOCHS + 1):
        coupling = -310.0 - 420.0 * (1 - np.exp(-epoch / 2))
        task = 0.06 + 0.2 * np.exp(-epoch / 5) * (1 - np.exp(-epoch / 0.7))
        rows.append(
            {
                "epoch": epoch,
                "step": epoch * STEPS // EPOCHS,
                "task_loss": task,
                "coupling_energy": coupling,
                "train_accuracy": 0.92 - 0.01 * epoch,
                "test_accuracy_soft": 0.9 - 0.01 * epoch,
                "test_accuracy_compressed": 0.3 + 0.08 * epoch,
                "fraction": 1.0,
                "learning_rate": 0.001,
                "mean_bits_before": 6.5 - epoch / 3,
                "mean_bits_compressed": 6.0 - epoch / 3,
                "clusters": {"layer3.0.conv2.weight": 90 - 8 * epoch, "linear.weight": 40 - epoch},
                "seconds": 1.0,
            }
        )
    return rows


def write_run(folder: Path, values: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write both files of a run folder."""
    np.savez_compressed(folder / "records.npz", **values)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder
