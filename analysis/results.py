"""Results of studies as JSON files: written whole, read back as the dataclasses they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from pysoftq.atomic import atomic_write
from pysoftq.paths import user_path

Result = TypeVar("Result")


def _array(dtype: type) -> Any:
    return PlainValidator(lambda values: np.asarray(values, dtype=dtype))


_AS_LIST = PlainSerializer(lambda array: array.tolist())

# Arrays as fields of a result; NaN and infinities have no place in JSON, nor in a result.
Floats = Annotated[NDArray[np.float64], _array(np.float64), _AS_LIST]
Integers = Annotated[NDArray[np.int64], _array(np.int64), _AS_LIST]


def save_result(result: Any, path: str | Path) -> Path:
    """Write a result (a dataclass) as JSON, atomically, making the folder; returns the path.

    Raises ValueError where it holds a NaN or an infinity.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = TypeAdapter(type(result)).dump_python(result)
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def load_result(kind: type[Result], path: str | Path) -> Result:
    """Read a result of the dataclass ``kind``.

    Raises OSError where the file cannot be read, ValueError naming it where it is another thing.
    """
    path = user_path(path)
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise ValueError(
            f"{path}: not a {kind.__name__}: {where}: {problem['msg']} "
            f"({error.error_count()} such problems)"
        ) from None
