"""Options of the coupling and of the clusters, for any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from pysoftq.clusters.defaults import DEFAULT_N_MIN
from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.densities import DEFAULT_BINS
from pysoftq.options import Options, option

Refinement = Literal["count", "levels", "packed", "entropy"]
Sparsity = Literal["auto", "keep", "ignore"]

MAX_MERGED_BITS = 11
# Strengths of the potentials, whose units differ.
DEFAULT_H = {"linear": 0.01, "log": 100.0}


class ClusteringConfig(Options):
    """Which weights are coupled, how strongly, and how their clusters are found.

    The defaults of the coupling are those of Table I of the paper; those of the clusters are not:
    its refinement is `refinement="count"` with `bits=7`. Patterns are shell-style (``"layer1.*"``)
    and match parameter names; `prepare` raises for one that matches nothing.
    """

    # fmt: off
    potential: Literal["linear", "log"] = option("Soft quantization", "linear", "Loss of a layer: "
        "the energy of its weights (linear, the paper's), or the length of their code (log), whose "
        "force is as large in the tails of a layer as in its centre.")
    h: float = option("Soft quantization", DEFAULT_H["linear"], "Strength of the coupling: h_l = h "
        "N_l^-alpha; of potential log, h over the number of all coupled weights, by default 100 "
        "(of the data set pydoc 8). With a target it is chosen from the gradients.", ge=0)
    w: float = option("Soft quantization", 0.5, "Width of the coupling in standard deviations of "
        "a layer's pretrained weights.", gt=0)
    alpha: float = option("Soft quantization", 0.66, "Exponent of the strength (linear).", ge=-10,
        le=10)
    bins: int = option("Soft quantization", DEFAULT_BINS, "Bins of the histogram of a layer.", ge=1,
        le=2**24)
    method: Literal["scan", "fft"] = option("Soft quantization", "scan", "Potential by prefix "
        "sums, exact in integers (scan), or by the paper's convolution (fft).")
    granularity: str = option("Soft quantization", "layer", "Sets of weights that interact and "
        "share a codebook: layer, channel (each slice of a weight along its first dimension) or "
        "group:N (each N weights of such a slice).", metavar="NAME")
    fraction_start: float = option("Soft quantization", 0.3, "Fraction of the weights in the "
        "histogram at the start of training.", gt=0, le=1)
    fraction_ramp: float = option("Soft quantization", 0.5, "Fraction of the training over which "
        "the sampled fraction rises to 1.", ge=0, le=1)
    include: tuple[str, ...] = option("Soft quantization", (), "Couple only parameters whose name "
        "matches this pattern (repeatable).", metavar="PATTERN")
    exclude: tuple[str, ...] = option("Soft quantization", (), "Never couple parameters whose "
        "name matches this pattern (repeatable).", metavar="PATTERN")
    override: dict[str, dict[str, float]] = option("Soft quantization", {}, "Another strength or "
        "width for parameters whose name matches this pattern (repeatable; the first matching "
        "pattern applies).", metavar="PATTERN:h=H,w=W")

    sparsity: Sparsity = option("Soft quantization", "auto", "Exact zeros that stay zero: those "
        "of pruned layers and padding rows (auto), all (keep) or none (ignore).")

    bits: int | None = option("Clusters", None, "Clusters are the occupied ones of 2^BITS equal "
        "bins; by default bins of at most a quarter of the coupling's width.", on_resume=True,
        ge=1, le=16)
    n_min: int = option("Clusters", DEFAULT_N_MIN, "Clusters of at most this many weights join "
        "the nearest larger one (refinement count).", on_resume=True, ge=0)
    refinement: Refinement = option("Clusters", "levels", "Neighbouring clusters merge where the "
        "bits saved outweigh the squared error added, in log2 K for each weight (levels), its "
        "next integer (packed) or bits of an entropy coder (entropy); or small ones join larger "
        "ones by n_min, the paper's rule (count).", on_resume=True)
    rd_weight: float = option("Clusters", 0.01, "Rate-distortion weight of all refinements but "
        "count, in variances of a layer per bit; higher means fewer bits.", on_resume=True, ge=0)

    seed: int = option("Run", 0, "Seed of every random number.", ge=0, lt=2**31)
    # fmt: on

    @classmethod
    def of(cls, config: ClusteringConfig | Mapping[str, Any] | None) -> ClusteringConfig:
        """Options as such, by name or all defaults.

        Raises:
            TypeError: something else.
            ConfigError: as `from_dict`.
        """
        if isinstance(config, ClusteringConfig):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(
                f"`config` must be a ClusteringConfig or a mapping, got {type(config).__name__}"
            )
        return cls.from_dict(config or {})

    @property
    def chooses_h(self) -> bool:
        """Whether a target chooses h, which is not set, from the gradients."""
        return "h" not in self.model_fields_set

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, YAML and `from_dict`; without an h that is chosen."""
        values = super().to_dict()
        if self.chooses_h:
            del values["h"]
        return values

    @property
    def cluster_options(self) -> dict[str, Any]:
        """The arguments of `SoftQuantizer.finalize`."""
        return {"bits": self.bits, **self.refinement_options}

    @property
    def refinement_options(self) -> dict[str, Any]:
        """The arguments of `SoftQuantizer.refine`."""
        if self.refinement == "count":
            return {"refinement": self.refinement, "n_min": self.n_min}
        return {"refinement": self.refinement, "rd_weight": self.rd_weight}

    def fraction(self, done: float, total: float) -> float:
        """Fraction of the weights in the histogram after ``done`` of ``total`` epochs, or steps.

        Rises linearly from ``fraction_start`` over the first ``fraction_ramp`` of the total and
        then stays at 1; the last epoch (or step) always uses all weights.
        """
        ramp = min(self.fraction_ramp * total, total - 1)
        if done >= ramp:
            return 1.0
        return self.fraction_start + (1 - self.fraction_start) * done / ramp

    @model_validator(mode="after")
    def _strength_of_potential(self) -> Self:
        if "h" not in self.model_fields_set:  # and it stays so: a target chooses it
            self.__dict__["h"] = DEFAULT_H[self.potential]
        return self

    @field_validator("alpha")
    @classmethod
    def _linear_alpha(cls, alpha: float, info: ValidationInfo) -> float:
        if info.data.get("potential") == "log" and alpha != cls.model_fields["alpha"].default:
            raise ValueError("the strength has no exponent with potential log")
        return alpha

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, text: str, info: ValidationInfo) -> str:
        if check_granularity(text) != "layer" and info.data.get("method") == "fft":
            raise ValueError("channels and groups require method scan; fft is for whole layers")
        return text

    @field_validator("refinement")
    @classmethod
    def _few_bins(cls, refinement: str, info: ValidationInfo) -> str:
        if refinement != "count" and (info.data.get("bits") or 0) > MAX_MERGED_BITS:
            raise ValueError(f"clusters are merged in 2^{MAX_MERGED_BITS} bins at most")
        return refinement

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_pattern(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("override", mode="before")
    @classmethod
    def _parsed_override(cls, value: Any) -> Any:
        # The command line gives 'PATTERN:h=0.1,w=0.5', several times.
        if not isinstance(value, (list, tuple)):
            return value
        parsed = dict(map(_parse_override, value))
        if len(parsed) < len(value):
            raise ValueError("expected each pattern once")
        return parsed

    @field_validator("override")
    @classmethod
    def _known_override(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for pattern, values in check_override(value).items():
            if values.get("h", 0) < 0 or values.get("w", 1) <= 0:
                raise ValueError(f"expected h of 0 or more and w above 0 for {pattern!r}")
        return value


DEFAULTS = ClusteringConfig()  # for the signatures that take single options


def check_override(
    override: Mapping[str, Mapping[str, float]] | None,
) -> dict[str, dict[str, float]]:
    """A copy of the overrides: h, w or both for each pattern of names.

    Raises:
        ValueError: an override sets nothing, or something else.
    """
    for pattern, values in (override or {}).items():
        if not isinstance(values, Mapping) or not values or set(values) - {"h", "w"}:
            raise ValueError(f"expected h, w or both for {pattern!r} in `override`, got {values!r}")
    return {pattern: dict(values) for pattern, values in (override or {}).items()}


def override_texts(override: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Overrides as the command line gives them, in an order that no sorting of keys can change."""
    return [
        f"{pattern}:{','.join(f'{name}={number!r}' for name, number in values.items())}"
        for pattern, values in override.items()
    ]


def _parse_override(text: str) -> tuple[str, dict[str, str]]:
    """'fc.*:h=0.1,w=0.5' in two: the pattern, and the values as text."""
    pattern, colon, values = text.rpartition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not (pattern and colon and all(equals for _, equals, _ in pairs)):
        raise ValueError(f"expected PATTERN:h=H,w=W, got {text!r}")
    return pattern, {name.strip(): number for name, _, number in pairs}
