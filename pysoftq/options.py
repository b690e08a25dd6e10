"""Options as models: each field states its default, bounds and help once.

Keyword arguments, YAML files, the command line and the reference documentation are made from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import copy
from decimal import Decimal
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from pysoftq.atomic import atomic_write
from pysoftq.errors import ConfigError
from pysoftq.paths import user_path

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(given: Any) -> Any:
    """Whole bytes of a text such as 60000, 60kB, 1.5MB or 60KiB, rounded down; others as they are.

    Raises:
        ValueError: the text is no size.
    """
    if isinstance(given, bool):
        raise ValueError("expected bytes")  # noqa: TRY004 - of pydantic
    if not isinstance(given, str):
        return given
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?|)b?\s*", given.lower(), re.ASCII)
    if found is None:
        raise ValueError("expected bytes, or a size such as 60kB, 1.5MB or 60KiB")
    return int(Decimal(found[1]) * _PREFIXES[found[2]])


Size = Annotated[int, BeforeValidator(parse_size)]


def option(
    group: str,
    default: Any,
    text: str,
    *,
    on_resume: bool = False,
    metavar: str | None = None,
    **bounds: Any,
) -> Any:
    """A field with its help text; ``on_resume`` options may change when a run is resumed."""
    extra: dict[str, Any] = {"group": group, "on_resume": on_resume, "metavar": metavar}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class Options(BaseModel):
    """Base of all option classes: immutable, no unknown names, no NaN.

    Raises:
        ConfigError: an option is unknown or has a wrong value; the message names each of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            names = type(self).model_fields
            problems = [_explain(problem, names) for problem in error.errors()]
            raise ConfigError("; ".join(problems)) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Append the help of every field to the docstring."""
        super().__pydantic_init_subclass__(**kwargs)
        lines = [f"    {name}: {field.description}" for name, field in cls.model_fields.items()]
        cls.__doc__ = "\n".join([cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines, ""])

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Options by name.

        Raises:
            ConfigError: an option is unknown or has a wrong value.
        """
        if strange := [name for name in options if not isinstance(name, str)]:  # YAML has others
            raise ConfigError(f"unknown option {', '.join(map(repr, strange))}")
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Options from a YAML file of 'option: value' lines, errors as in `from_dict`."""
        content = read_mapping(path)
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, YAML and `from_dict`."""
        return self.model_dump(mode="json")

    def to_yaml(self, path: str | Path) -> None:
        """Write all options, atomically."""
        with atomic_write(path) as temporary:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False)
            temporary.write_text(text, encoding="utf-8")


def changed_default(options: type[BaseModel], name: str, default: Any) -> Any:
    """A field as in another class of options, with a default of its own."""
    field = copy(options.model_fields[name])
    field.default = default
    return field


def option_info(field: FieldInfo) -> dict[str, Any]:
    """Group, metavar and resume rule of a field."""
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def may_change_on_resume(field: FieldInfo) -> bool:
    """Whether a resumed run may set this option anew."""
    return bool(option_info(field)["on_resume"])


def _explain(problem: Any, names: Iterable[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(key, names, n=1)
        return f"unknown option {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    # Of validators in this package, and of pydantic's own.
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not key:  # of several options, which the message names
        return str(message)
    return f"option {key!r}: {message}, got {problem['input']!r}"


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A YAML file of 'option: value' lines, of whatever names.

    Raises OSError for a missing file, ConfigError where it is no mapping, or a key comes twice.
    """
    with user_path(path).open(encoding="utf-8") as file:
        try:
            content = yaml.load(file, _Loader)  # noqa: S506 - it is a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        except ValueError as error:  # other bytes than UTF-8, a date that is none
            raise ConfigError(f"{path} is no YAML: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{path} is nested too deeply") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'option: value' lines, found {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself takes the last of several equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; refuses a key that comes twice."""
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in keys:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
