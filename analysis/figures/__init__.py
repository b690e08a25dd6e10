"""Figures, drawn from the results of the studies: one module for each study.

Nothing is computed here but what is drawn. Every function that draws returns a new Figure and
leaves pyplot and matplotlib's settings alone.
"""

from .run import draw_histograms, draw_losses, draw_run, draw_trajectories
from .style import save_figure

__all__ = ["draw_histograms", "draw_losses", "draw_run", "draw_trajectories", "save_figure"]
