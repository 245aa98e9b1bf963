"""One change of a stack, from its begin to its end: what is on record, and what undoes it if it fails."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..config import OpsError
from . import journal
from .stack import Stack
from .terminal import say


@contextmanager
def change(
    stack: Stack,
    event: str,
    *,
    undo: Callable[[], object],
    undone: str,
    interrupted: str,
    finish: Callable[[], object] = lambda: None,
    begun: Mapping[str, object] | None = None,
    **facts: object,
) -> Iterator[Callable[[], float]]:
    """Make a change, and give a clock with its seconds. If the change fails, it is undone.

    An interruption undoes nothing: the change can be finished later.

    :param undone: the state of the stack after ``undo``, for the error message
    :param interrupted: printed after an interruption
    :param finish: removes what only ``undo`` would need
    :param begun: facts for the journal before the change, so that another command can finish it
    :param facts: facts for the journal in any case
    """
    if begun is not None:
        stack.record(event, **{**facts, **begun}, outcome=journal.BEGUN)
    began = time.monotonic()
    try:
        yield lambda: round(time.monotonic() - began, 1)
    except OpsError as error:
        undo()
        stack.record(event, **facts, outcome=journal.FAILED, reason=str(error))
        raise OpsError(f"{error}; {undone}") from None
    except KeyboardInterrupt:
        say(interrupted)
        raise
    seconds = round(time.monotonic() - began, 1)
    finish()
    stack.record(event, **facts, outcome=journal.DONE, seconds=seconds)
