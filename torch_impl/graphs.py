"""CUDA graphs: the kernels of a call, recorded once for each shape of its inputs and launched all at once ever after.

A graph reads and writes where it was recorded: inputs are copied there, and what leaves is a copy, for the next replay
overwrites it. Parameters are read in place, so training that moves them in place needs no new recording.
"""

import contextlib
import functools
import weakref
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils import _pytree as trees

from common.errors import UserError
from common.preference import Pairs

with contextlib.suppress(ValueError):  # another copy of this package, with a bug planted in it, has said so already
    trees.register_pytree_node(
        Pairs,
        lambda pairs: ([pairs.labels, pairs.reference], pairs.preference),
        lambda arrays, kind: Pairs(*arrays, kind),
    )

WARM = 2  # calls before one is recorded: libraries allocate and compilers compile in the first
KEPT = 8  # recordings of one function; the oldest goes first


def check(execution):
    """Refuse graphs where there are none."""
    if execution.graphs == "none":
        return
    if not execution.device.startswith("cuda"):
        raise UserError(f"CUDA graphs run on a CUDA device, not on {execution.device!r}: use graphs='none'.")
    if execution.layout:
        raise UserError("CUDA graphs run on one device: use graphs='none' with a layout.")


class Eager:
    """Launches every kernel when it is called."""

    @staticmethod
    def call(function, device, lends=False):
        return function

    @staticmethod
    def decoder(served, device):
        return served


class Cuda:
    """Launches graphs."""

    @staticmethod
    def call(function, device, lends=False):
        return Replayed(function, device, lends)

    @staticmethod
    def decoder(served, device):
        return SimpleNamespace(model=Steps(served.model, device), head=served.head)


GRAPHS = {"none": Eager, "cuda": Cuda}


class Replayed:
    """`function(*inputs)` by graphs. Whole numbers among the inputs may change from call to call like tensors; all
    else (a module, a limit, None) is recorded. With `lends` only scalars are copied on the way out: what is larger
    is good until the next call.
    """

    def __init__(self, function, device, lends=False):
        self.function, self.device, self.lends, self.recordings = function, device, lends, {}

    def __call__(self, *inputs):
        leaves, form = _flat(inputs)
        key = _signature(leaves, form)
        if key not in self.recordings:
            while len(self.recordings) >= KEPT:
                del self.recordings[next(iter(self.recordings))]
            self.recordings[key] = Recording(self.function, leaves, form, self.device)
        found = self.recordings[key].replay(leaves)
        return trees.tree_map(lambda x: x if self.lends and x.ndim else x.clone(), found)


class Steps:
    """Steps of decoding: `decoder(ids, positions, caches)` -> (hidden states, caches) by graphs.

    Caches stay where their graph writes, so they are copied once, when the first step of a stream brings them. As long
    as somebody holds what a step returned, its graph is that stream's alone; another stream gets another.
    """

    def __init__(self, decoder, device):
        self.decoder, self.device, self.recordings = decoder, device, []

    def __call__(self, ids_B1, positions_B1, caches):
        given, form = trees.tree_flatten(caches)
        fed, whole = _flat((ids_B1, positions_B1, caches))
        # [1] the graph that wrote these caches, or a free one, or a new one
        for _, recording, lent in self.recordings:
            if lent and all(ref() is leaf for ref, leaf in zip(lent, given, strict=True)):
                (hidden_BTE,) = recording.replay(fed[:2])
                return hidden_BTE.clone(), caches
        key, place = _signature(fed, whole), None
        for entry in self.recordings:
            if entry[0] == key and not any(ref() is not None for ref in entry[2]):
                place = entry
        if place is None:
            self._forget()
            place = [key, Recording(self._step, fed, whole, self.device), []]
            self.recordings.append(place)
        # [2] the caches move in; whoever holds these tensors holds the graph
        (hidden_BTE,) = place[1].replay(fed)
        own = [leaf.detach() for leaf in place[1].held[2:]]
        place[2] = [weakref.ref(leaf) for leaf in own]
        return hidden_BTE.clone(), trees.tree_unflatten(own, form)

    def _step(self, ids_B1, positions_B1, caches):
        """One step whose caches end where they began."""
        hidden_BTE, after = self.decoder(ids_B1, positions_B1, caches)
        for held, new in zip(trees.tree_leaves(caches), trees.tree_leaves(after), strict=True):
            if new.data_ptr() != held.data_ptr():  # most are written in place; a counter is a new one
                held.copy_(new)
        return (hidden_BTE,)

    def _forget(self):
        """Let go of the oldest graphs that nobody holds."""
        free = [entry for entry in self.recordings if not any(ref() is not None for ref in entry[2])]
        gone = free[: max(0, len(free) - KEPT + 1)]
        self.recordings = [entry for entry in self.recordings if not any(entry is one for one in gone)]


class Recording:
    """A graph of one call, and where its inputs and outputs lie."""

    def __init__(self, function, leaves, form, device):
        self.held = [leaf.to(device, copy=True) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

        def call():
            return function(*trees.tree_unflatten(self.held, form))

        with _aside(device):
            for _ in range(WARM):
                self._fill(leaves)  # for a call may write into its inputs
                call()
        self.launch, self.outputs = record(call, device)

    def _fill(self, leaves):
        for held, new in zip(self.held, leaves, strict=False):
            if isinstance(held, torch.Tensor):
                held.copy_(new)

    def replay(self, leaves):
        """The outputs for these inputs (the first ones; the others are left as they are), until the next replay."""
        self._fill(leaves)
        self.launch()
        return self.outputs


def record(function, device):
    """(what launches it, its outputs): a call that has run before, recorded instead of run."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=_side(device)):
            outputs = function()
    except RuntimeError as error:
        if "captur" not in str(error):  # out of memory, say
            raise
        told = "it waits for the device on its way (experts='loop' does, for one)"
        raise UserError(f"PyTorch cannot record this as a CUDA graph, for {told}: use graphs='none'.") from error
    return graph.replay, outputs


@contextlib.contextmanager
def _aside(device):
    """Warm up on the stream on which calls are recorded, behind what the current one has to do, and wait for it."""
    here, side = torch.cuda.current_stream(device), _side(device)
    side.wait_stream(here)
    with torch.cuda.device(device), torch.cuda.stream(side):
        yield
    here.wait_stream(side)


@functools.cache
def _side(device):
    """One stream for all recordings: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)


def _flat(inputs):
    """(leaves, form) of inputs, with whole numbers as tensors."""
    leaves, form = trees.tree_flatten(inputs)
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):  # a key
        advice = "use graphs='none', or rates of 0"
        raise UserError(f"A CUDA graph draws no dropout, whose keys are made on the host: {advice}.")
    return [torch.tensor(leaf) if type(leaf) is int else leaf for leaf in leaves], form


def _signature(leaves, form):
    """What a recording depends on."""
    told = [(tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves]
    return repr(form), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *told
