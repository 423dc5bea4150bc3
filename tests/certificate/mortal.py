"""A claim that ends the process that tries it on "mlp", or in its part "last". Others import it by this name."""

import multiprocessing
import os
import signal

from common.parity.rows import exact

NAME, TITLE, SENTENCE = "C1", "mortal", "Nobody dies."


def for_case(trial):
    if trial.case.name == "mlp":
        _die()
    yield exact(NAME, trial.case.name, "alive", {"torch": 0})


def declared(trial):
    return {("alive", "exact")}


def parts(session):
    return ["first", "last"]


def once(session, part):
    if part == "last":
        _die()
    yield exact(NAME, "", part, {"torch": 0})


def declared_once(session, part=""):
    return {(name, "exact") for name in ([part] if part else parts(session))}


def _die():
    assert multiprocessing.parent_process() is not None, "only in a process of its own"
    os.kill(os.getpid(), signal.SIGKILL)
