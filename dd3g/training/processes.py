"""What several processes of one run do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from dd3g.errors import UserError, first_line
from dd3g.io.atomic import only_user

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main process, on all of them; the others only wait for it.

    Raises:
        UserError: on all, when `work` raises it; on the others also when it fails in another way, since they
            would wait for ever.
    """
    state = PartialState()
    found: list[Any] = [None, None]
    defect: Exception | None = None
    if state.is_main_process:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = str(error)
        except Exception as error:  # not ours to explain: the main process shows it
            found[1], defect = f"the main process failed ({first_line(error)})", error
    if state.num_processes > 1:
        found = broadcast_object_list(found)
    if defect is not None:
        raise defect
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def from_all(value: T) -> list[T]:
    """The value of each process, by rank, on all of them."""
    return gather_object([value]) if PartialState().num_processes > 1 else [value]


@contextmanager
def held_by_main(folder: Path) -> Iterator[None]:
    """`only_user` of a folder for all processes of a run."""
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(only_user(folder)))
        yield
