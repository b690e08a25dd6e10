"""Click options made from the fields of CompressConfig."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic.fields import FieldInfo

from pysoftq.cli.paths import UserPath
from pysoftq.options import option_info
from pysoftq.run.config import CompressConfig
from pysoftq.run.presets import DATASET_DEFAULTS, RECIPES

Function = Callable[..., Any]

GROUPS = (  # in the order of --help
    *("Data", "Network", "Target", "Soft quantization", "Clusters", "Training", "Pretraining"),
    *("Speed", "Run"),
)


class GroupedCommand(click.Command):
    """A command whose help lists the options by their group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Help"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


class ConfigOption(click.Option):
    """An option with the group that it is listed in."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def config_options(
    *without: str, defaults: Mapping[str, str] | None = None
) -> Callable[[Function], Function]:
    """Add one option for each field but those; absent ones come as None (repeatable ones as ()).

    ``defaults`` are texts for options whose default is not that of a run.
    """

    def add(function: Function) -> Function:
        fields = CompressConfig.model_fields.items()
        ordered = sorted(fields, key=lambda item: GROUPS.index(option_info(item[1])["group"]))
        for name, field in reversed(ordered):
            if name not in without:
                text = str(field.description)
                if defaults and name in defaults:
                    text = f"{text.partition('  [')[0]} {defaults[name]}"
                else:
                    text = f"{text} {_default_text(name, field)}".strip()
                function = _option(name, field, text)(function)
        return function

    return add


def config_file_option(group: str, what: str) -> Callable[[Function], Function]:
    """``--config``, an existing YAML file, handed on as ``config_file``."""
    return click.option(
        "--config",
        "config_file",
        cls=ConfigOption,
        group=group,
        type=UserPath(path_type=Path, dir_okay=False, exists=True),
        help=f"{what} from a YAML file; options on the command line take precedence.",
    )


def given_options(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were set on the command line."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def _option(name: str, field: FieldInfo, text: str) -> Callable[[Function], Function]:
    flag = "--" + name.replace("_", "-")
    kind, repeatable = _click_type(field.annotation)
    if kind is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    info = option_info(field)
    return click.option(
        flag,
        name,
        cls=ConfigOption,
        group=info["group"],
        type=kind,
        multiple=repeatable,
        default=None,
        metavar=info["metavar"],
        help=text,
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of a field, and whether the option may be repeated."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return str, False  # parsed by the model
    if origin is Literal:
        return click.Choice(parts), False
    if origin is tuple:
        # Names are repeated; numbers come as one comma-separated value, split by the model.
        return str, parts[0] is str
    if origin is dict:
        return str, True
    if annotation is Path:
        return UserPath(path_type=Path), False
    return annotation, False


def _default_text(name: str, field: FieldInfo) -> str:
    default = field.default
    switches = {True: "on", False: "off"} if isinstance(default, bool) else {}
    departures = [] if default in (None, (), {}) else [switches.get(default, str(default))]
    departures += [
        f"{dataset}: {values[name]}"
        for dataset, values in DATASET_DEFAULTS.items()
        if name in values
    ]
    departures += [
        f"recipe {recipe}: {values[name]}"
        for recipe, values in RECIPES.items()
        if values.get(name, default) != default
    ]
    if not departures:
        return ""
    return f"[{'' if default in (None, (), {}) else 'default: '}{'; '.join(departures)}]"
