"""``pysoftq energy``: interaction energy of every layer of a weight file, exact and mean-field."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich import box
from rich.table import Table

from pysoftq.cli.paths import UserPath
from pysoftq.cli.studies import left_out_line, positive, potential_option
from pysoftq.cli.tables import print_table
from pysoftq.interaction.pairs import pair_energy
from pysoftq.interaction.potentials import mean_field_energy

if TYPE_CHECKING:
    from torch import Tensor

    from pysoftq.analysis.scaling import ScalingFit

_SELF = "with self"
_HEADINGS = (
    *("layer", "N", "σ", "w_l = w·σ", "E exact", "E mean field", _SELF),
    *("error", "ms exact", "ms m. f."),
)


@dataclass(frozen=True)
class LayerEnergy:
    """Energies of one layer (Eqs. 2 and 6 with h = 1); None where the layer has no width.

    ``mean_field`` is without the self term and is what ``relative_error`` compares with
    ``exact`` (None too if no pair is inside the well); ``mean_field_self`` is with it. The log
    potential has the self term in any case: its energies are the length of the code in nats, and
    ``mean_field_self`` is None.
    """

    name: str
    N: int
    sigma: float
    width: float
    exact: float | None = None
    mean_field: float | None = None
    mean_field_self: float | None = None
    relative_error: float | None = None
    seconds_exact: float | None = None
    seconds_mean_field: float | None = None


@click.command("energy")
@click.argument("weights", type=UserPath(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--width",
    type=float,
    callback=positive,
    required=True,
    help="Width w in units of each layer's sigma, e.g. 0.5.",
)
@potential_option
@click.option(
    "--bins",
    type=click.IntRange(1, 2**24),
    default=2**14,
    show_default=True,
    help="Bins of the mean field's histogram.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def energy(weights: Path, width: float, potential: str, bins: int, as_json: bool) -> None:
    """Print the interaction energy of each layer of the file WEIGHTS.

    Layers are the floating tensors with two or more dimensions, tied ones once. The energy is that
    of Eq. 2 with h = 1, over ordered pairs. The mean field (Eq. 6) is listed without and with the
    self-energy of the weights. The last line fits the exact energy against layer size, with the
    standard error of the slope.

    With --potential log, the energy is the length of the code of the layer's weights in nats.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.models.weight_files import load_weights, studied_weights

    layers, left_out = studied_weights(load_weights(weights))
    if not layers:
        raise ValueError(f"{weights}: no weight with two or more dimensions")
    _warm_up(potential)
    rows = [measure_layer(name, theta, width, bins, potential) for name, theta in layers.items()]
    fit = scaling_of(rows)
    if as_json:
        scaling = None if fit is None else {**asdict(fit), "alpha": fit.alpha}
        found = {"layers": [asdict(row) for row in rows], "left_out": left_out}
        click.echo(json.dumps({**found, "scaling": scaling}))
        return
    title = f"{weights.name}, w = {width:g}, {bins} bins"
    if potential == "log":
        title += ", log potential: nats"
    print_table(energy_table(rows, title, potential))
    if left_out:
        click.echo(left_out_line(left_out))
    click.echo(scaling_line(fit, len(rows), potential))


def _warm_up(potential: str) -> None:
    """The first call takes longer than any other, whatever the layer."""
    pair = np.zeros(2, dtype=np.float32)
    pair_energy(pair, 1.0, potential=potential)
    mean_field_energy(pair, 1.0, potential=potential)


def measure_layer(name: str, theta: Tensor, width: float, bins: int, potential: str) -> LayerEnergy:
    """Energies of one layer and the time they took; ``width`` is in units of its sigma.

    Raises ValueError naming the layer if it holds NaN or infinite values, or is of a kind that
    cannot be reckoned with.
    """
    try:
        return _measured(name, theta, width, bins, potential)
    except (RuntimeError, TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"layer '{name}' ({theta.dtype}): {text}") from error


def _measured(name: str, theta: Tensor, width: float, bins: int, potential: str) -> LayerEnergy:
    from pysoftq.analysis.scaling import standard_deviation

    sigma = standard_deviation(name, theta)
    row = LayerEnergy(name, theta.numel(), sigma, width * sigma)
    if sigma == 0:
        return row
    start = time.perf_counter()
    exact = pair_energy(theta, row.width, potential=potential)
    middle = time.perf_counter()
    mean_field = mean_field_energy(theta, row.width, bins, potential=potential)
    end = time.perf_counter()
    with_self = None
    if potential == "linear":
        with_self = mean_field_energy(theta, row.width, bins, self_energy=True)
    return LayerEnergy(
        name=name,
        N=row.N,
        sigma=sigma,
        width=row.width,
        exact=exact,
        mean_field=mean_field,
        mean_field_self=with_self,
        relative_error=abs(mean_field - exact) / abs(exact) if exact else None,
        seconds_exact=middle - start,
        seconds_mean_field=end - middle,
    )


def scaling_of(rows: Sequence[LayerEnergy]) -> ScalingFit | None:
    """Fit of log |E| against log N; None if fewer than three layers or one size can be fitted."""
    from pysoftq.analysis.scaling import fit_scaling

    fitted = [(row.N, row.exact) for row in rows if row.exact]
    if len(fitted) < 3 or len({size for size, _ in fitted}) < 2:
        return None
    sizes, energies = np.array(fitted).T
    return fit_scaling(sizes, energies)


def scaling_line(fit: ScalingFit | None, layers: int, potential: str) -> str:
    """The fit in one line, or why there is none."""
    alpha = f" (alpha = {fit.alpha:.3f})" if fit is not None and potential == "linear" else ""
    if fit is None:
        return "No fit of log |E| against log N: it requires three layers of at least two sizes."
    return (
        f"log |E| against log N over {fit.layers} of {layers} layers: "
        f"slope {fit.slope:.3f} ± {fit.stderr:.3f}{alpha}, "
        f"mean squared residual {fit.residual:.3f}, r² = {fit.r2:.3f}"
    )


def energy_table(rows: Sequence[LayerEnergy], title: str, potential: str) -> Table:
    """The layers as a table; a layer without a width carries a note instead of energies."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    log = potential == "log"
    for heading in _HEADINGS:
        if heading == _SELF and log:
            continue
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for row in rows:
        cells = [row.name, f"{row.N:,}", f"{row.sigma:.4g}", f"{row.width:.4g}"]
        if row.exact is None:
            table.add_row(*cells, "constant: no width" if row.N > 1 else "less than two weights")
            continue
        energies = (row.exact, row.mean_field, *(() if log else (row.mean_field_self,)))
        cells += [f"{value:.6g}" for value in energies]
        cells.append("–" if row.relative_error is None else f"{row.relative_error:.1e}")
        for seconds in (row.seconds_exact, row.seconds_mean_field):
            cells.append("–" if seconds is None else f"{1e3 * seconds:.2f}")
        table.add_row(*cells)
    return table
