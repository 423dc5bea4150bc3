"""Several processes that try parcels side by side, each with frameworks, models and truths of its own.

They are started anew, never forked: the threads of frameworks that are loaded do not survive a fork. What is decided
when a process starts (threads, allocator) stands in the environment, which they inherit. They end with their parent,
and Ctrl-C is the parent's to answer.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from common.cases import case as case_of
from common.errors import UserError
from common.parity import pieces
from common.parity.pieces import Outcome, Parcel, Piece
from common.parity.trial import Session, subjects

PATIENCE = 5.0  # seconds in which a process that is told to end should have ended
STOPS = ("SIGINT", "SIGHUP")  # what a terminal sends to the parent and its workers alike


@dataclass(frozen=True)
class Recipe:
    """A session and its claims by name, for modules and backends do not travel between processes."""

    backends: tuple[str, ...]
    claims: tuple[str, ...]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, session: Session, claims: Sequence[ModuleType]) -> "Recipe":
        options = {one.name: getattr(session, one.name) for one in fields(session) if one.name != "subjects"}
        return cls(tuple(session.subjects), tuple(claim.__name__ for claim in claims), options)

    def made(self) -> tuple[Session, list[ModuleType]]:
        return Session(subjects(self.backends), **self.options), [import_module(name) for name in self.claims]


def tried(
    session: Session, claims: Sequence[ModuleType], parcels: Sequence[Parcel], processes: int
) -> Iterator[tuple[Piece, Outcome]]:
    """Every piece when it begins and when it is finished, as they come. What is lost with a process is a failed row;
    another process goes on with the parcels that are left."""
    recipe, waiting = Recipe.of(session, claims), deque(longest_first(parcels))
    workers: list[Worker] = []
    try:
        while waiting or any(worker.left for worker in workers):
            while waiting and len(workers) < processes:
                workers.append(Worker(recipe))
                yield workers[-1].take(waiting.popleft()), Outcome()
            for worker in _heard(workers):
                answer = worker.answer()
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    workers.remove(worker)
                    yield from worker.lost(claims)
                    continue
                yield worker.left.popleft(), answer
                if worker.left:
                    yield worker.left[0], Outcome()
                elif waiting:
                    yield worker.take(waiting.popleft()), Outcome()
    finally:
        _end(workers)


def longest_first(parcels: Sequence[Parcel]) -> list[Parcel]:
    """In an order in which all processes end at about the same time: what cannot be cut further, models by their size,
    components, and then the parts of claims."""

    def rank(parcel: Parcel) -> tuple[int, int]:
        first = parcel.pieces[0]
        if first.part:
            return 3, -parcel.size
        if not first.case:
            return 0, 0
        case = case_of(first.case)
        return (2 if case.path else 1), -case.config.embed_dim * case.config.num_layers * case.length

    return sorted(parcels, key=rank)


class Worker:
    """A process that tries parcels, seen from the parent; `left` is what it has yet to finish, in order."""

    def __init__(self, recipe: Recipe):
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.left: deque[Piece] = deque()
        self.process = context.Process(target=_serve, args=(theirs, recipe), daemon=True)
        resource_tracker.ensure_running()  # else it is started below, and takes the shelter away
        with _sheltered():
            self.process.start()
        theirs.close()

    def take(self, parcel: Parcel) -> Piece:
        """Give it a parcel; the piece that begins."""
        self.left.extend(parcel.pieces)
        with contextlib.suppress(OSError):  # a process that is no more is noticed where its answer is awaited
            self.line.send(parcel)
        return self.left[0]

    def answer(self) -> Outcome | Exception | None:
        """What it says; None if the process is no more."""
        try:
            return self.line.recv()
        except (EOFError, OSError):
            return None

    def lost(self, claims: Sequence[ModuleType]) -> Iterator[tuple[Piece, Outcome]]:
        """Failed rows for the piece in its hands and those that were to follow."""
        self.process.join(PATIENCE)
        ended = _ending(self.process.exitcode)
        _end([self])
        for number, piece in enumerate(self.left):
            claim = claims[piece.claim]
            told = "not tried, for" if number else f"{pieces.title(claim, piece)} was not finished:"
            row = pieces.event(claim, piece, "lost", f"{told} the process {ended}")
            yield piece, Outcome([row], finished=True, lost=True)


def _heard(workers: Sequence[Worker]) -> list[Worker]:
    """The busy workers that have said something, or have ended."""
    busy = [worker for worker in workers if worker.left]
    ready = wait([worker.line for worker in busy], PATIENCE)
    return [worker for worker in busy if worker.line in ready or worker.process.exitcode is not None]


def _ending(code: int | None) -> str:
    if code is None:
        return "no longer answered"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as happens where memory runs out" if name == "SIGKILL" else "")


def _end(workers: Sequence[Worker]) -> None:
    """End all of them, whatever they are doing."""
    with _sheltered():
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()
            worker.line.close()


@contextlib.contextmanager
def _sheltered() -> Iterator[None]:
    """Signals of a terminal wait; a process that is started meanwhile never gets them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in STOPS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the worker ----------------------------------------------------------------------------------------------------


def _serve(line: Connection, recipe: Recipe) -> None:
    """Try parcels until the parent wants no more."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        session, claims = recipe.made()
        while True:
            for _, outcome in pieces.tried(session, claims, line.recv()):
                if outcome.finished:
                    line.send(outcome)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        return
    except UserError as error:
        line.send(UserError(str(error)))
    except Exception:
        line.send(RuntimeError(traceback.format_exc()))


def _leave(*_: object) -> None:
    """End now, silently, but tidy up."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
