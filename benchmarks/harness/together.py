"""Work whose time nobody measures, several pieces at once."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from benchmarks.harness.worker import WorkerFault
from common.cores import usable_cores
from common.errors import UserError


def at_once(
    work: Mapping[str, Sequence[Callable[[], Any]]], together: int | None = None
) -> dict[str, list[Any] | UserError | WorkerFault]:
    """What every piece of work gives, by name, or the first error; as many run at once as there are cores, or
    `together`. An interruption drops what has not begun."""
    pool = ThreadPoolExecutor(together or len(usable_cores()))
    try:
        promised = {name: [pool.submit(copy_context().run, piece) for piece in pieces] for name, pieces in work.items()}
        found: dict[str, list[Any] | UserError | WorkerFault] = {}
        for name, ones in promised.items():
            try:
                found[name] = [one.result() for one in ones]
            except (UserError, WorkerFault) as error:
                found[name] = error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return found
