"""Which weights have somebody who takes part in the steps of their optimizer.

Forces of two of them would add, and values of one would be overwritten by the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

_Claims = WeakKeyDictionary[object, frozenset[int]]
_claims: WeakKeyDictionary[Optimizer, _Claims] = WeakKeyDictionary()


def claim(optimizer: Optimizer, owner: object, parameters: Iterable[Tensor]) -> None:
    """From now on the owner takes part in the steps of these parameters."""
    _claims.setdefault(optimizer, WeakKeyDictionary())[owner] = frozenset(map(id, parameters))


def release(optimizer: Optimizer, owner: object) -> None:
    """It takes no part any more."""
    _claims.get(optimizer, _Claims()).pop(owner, None)


def refuse_claimed(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], by: object = None
) -> None:
    """Raise ValueError for parameters that have an owner, naming the first and the owner's kind.

    An object that claims further parameters may own some already.
    """
    for owner, ids in _claims.get(optimizer, _Claims()).items():
        if owner is by:
            continue
        name = next((name for name, one in parameters.items() if id(one) in ids), None)
        if name is not None:
            kind = type(owner).__name__
            raise ValueError(
                f"layer '{name}': another {kind} is attached to this optimizer and trains the same "
                "weights; detach that one first, or pass a new optimizer"
            )
