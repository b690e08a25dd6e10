"""``--model``: the network of a compressed file that does not specify it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import nn

model_option = click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Function without arguments (or class) that builds the network, if FILE does not "
    "specify it; imported from the current folder or an installed package.",
)


def build(name: str) -> nn.Module:
    """What MODULE:FUNCTION returns; the working folder is searched for modules first.

    Raises BadParameter where it cannot be found, or gives no network.
    """
    from torch import nn

    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise _bad_model(f"{name!r} is not of the form MODULE:FUNCTION, such as nets:make_net")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise _bad_model(f"cannot find {name!r}: {error}") from error
    finally:
        sys.path.pop(0)
    model = function()
    if not isinstance(model, nn.Module):
        raise _bad_model(f"{name!r} returns a {type(model).__name__}, not a network")
    return model


def _bad_model(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--model")
