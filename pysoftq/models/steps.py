"""What happens within the steps of an optimizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer


class StepHooks:
    """Work before and after each update of an optimizer, until it is removed.

    Steps that only create the state for torch.distributed.checkpoint are left out. A step of a
    derived class that calls that of its base class counts once, though torch may run the hooks of
    both.

    Args:
        optimizer: of torch.optim, or derived from it.
        before: called with it once the gradients are there: at the beginning of a step, or after
            each evaluation of its closure, whose number in the step is the second argument.
        after: called with it after a step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[Optimizer, int], None],
        after: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self._before, self._after = before, after
        self._depth = 0  # of the steps within each other
        self._evaluations = 0
        self._left_out = False
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    def remove(self) -> None:
        """Take no part in further steps."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A step that has raised has left the depth as it was.
        if self._depth and _in_a_step(optimizer):
            self._depth += 1
            return None
        self._depth, self._evaluations = 1, 0
        self._left_out = initializes_state(optimizer)
        if self._left_out:
            return None
        # The first of a step's arguments is the optimizer itself.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._work(optimizer)
            return None

        def closure_with_work() -> Any:
            loss = closure()
            self._work(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_with_work}
        return (args[0], closure_with_work, *args[2:]), kwargs

    def _work(self, optimizer: Optimizer) -> None:
        self._evaluations += 1
        self._before(optimizer, self._evaluations)

    def _leave(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth -= 1  # below 0 if registered within a step
        if not self._depth and not self._left_out and self._after is not None:
            self._after(optimizer)


def several_evaluations(owner: object) -> ValueError:
    """The error of what can take part in a step with one evaluation only."""
    return ValueError(
        "the optimizer evaluates its closure several times in a step, in which "
        f"{type(owner).__name__} cannot take part"
    )


def initializes_state(optimizer: Optimizer) -> bool:
    """Whether this step only creates an optimizer's state for torch.distributed.checkpoint.

    Such a step has zero gradients and a learning rate of 0. A warm-up can begin with 0 as well,
    so the calling function is checked too.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(rate != 0 for rate in rates if not torch.is_tensor(rate) or rate.device.type == "cpu"):
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "_init_optim_state" and name.startswith("torch.distributed."):
            return True
        frame = frame.f_back
    return False


def gradient_scale(optimizer: Optimizer) -> float:
    """The scale that gradients still have when a step begins."""
    # Fused optimizers get the scale from the GradScaler and unscale inside their step.
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _in_a_step(optimizer: Optimizer) -> bool:
    """Whether a hook is called in a step of the optimizer that is within another step of it."""
    step = sys._getframe(2)  # torch's function around `step`, which has called the hook
    frame = step.f_back
    while frame is not None:
        if frame.f_code is step.f_code and any(one is optimizer for one in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False
