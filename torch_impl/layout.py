"""Training spread over processes by PyTorch's own engines, which are put around the clean network.

`data` alone is DDP; `shard` is FSDP2, block by block (with `data` beside it: hybrid); `tensor` makes DTensors of the
linear maps that layers name (`common/layout.py`). Every process gets the whole batch and computes its rows of it.
"""

import contextlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from common import backend as door
from common import params as parameters
from common.errors import UserError
from common.preference import Pairs

from . import rng
from .backend import TorchModel, _numpy, _scoped, log_probs, loss_sum
from .optim import OPTIMIZERS, empty_slots, muon
from .placing import added, cut_maps, cuts_of, local_of, mesh_of, part_of, whole_of
from .train import objective

PARTS = ("data", "shard")  # the axes along which rows of a batch are dealt out


class Network(nn.Module):
    """Functions of the network as the forward pass of one module: what engines hook into."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, function, *args):
        return function(self.net, *args)


class SpreadModel(TorchModel):
    """A model whose training is spread over processes; see `common.backend.Model`. All of them make the same calls.

    What is no training (generation, caches, components, accounts) is done by every process with the whole model.
    """

    def __init__(self, config, weights, execution):
        self.layout = execution.spread
        self.layout.check(config)
        _refuse(config, execution, self.layout)
        self.mesh = mesh_of(self.layout, execution.device.partition(":")[0])
        super().__init__(config, weights, execution)

    @property
    def leads(self):
        """Whether this process writes for all."""
        return dist.get_rank() == 0

    def local_shapes(self):
        """What of every parameter lies in this process."""
        return {name: tuple(local_of(p).shape) for name, p in self.net.named_parameters()}

    # --- how the network is cut ---

    def _fill(self, weights):
        if self.layout.tensor > 1:
            cut_maps(self.net, self.config, self.mesh["tensor"])
        if self.layout.shard > 1 or (self.layout.tensor > 1 and self.layout.data > 1):
            self.engine = Network(self.net)
            mesh = self.mesh["data", "shard"] if self.layout.data > 1 else self.mesh["shard"]
            for block in self.net.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(self.engine, mesh=mesh, reshard_after_forward=False)
            for part in self.engine.modules():
                if isinstance(part, FSDPModule):  # shares of one sum are added, never averaged
                    part.set_gradient_divide_factor(1.0)
                    part.set_force_sum_reduction_for_comms(True)
        else:
            self.engine = Network(self.net)
        self.engine.to_empty(device=self.execution.device)
        own = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, array in weights.items():
                local_of(own[name]).copy_(part_of(self._own(array), own[name]))
        self._gather()

    def _gather(self):
        """Have DDP add the gradients of what is trained, where batches alone are cut."""
        if self.layout.data > 1 and self.layout.shard == self.layout.tensor == 1:
            unused = any(entry.kind == "sparse" for entry in self.config.attention)
            unused |= any(getattr(entry, "choice_bias", False) for entry in self.config.feed_forward)
            group = self.mesh.get_group("data")
            self.engine = DistributedDataParallel(
                Network(self.net), process_group=group, find_unused_parameters=unused, gradient_as_bucket_view=True
            )

    # --- rows of a batch ---

    @property
    def _part(self):
        """(number of this process's rows, of how many parts)."""
        data, shard = (self.mesh.get_local_rank(axis) for axis in PARTS)
        return data * self.layout.shard + shard, self.layout.rows

    def _rows(self, arrays, axis):
        """This process's rows of a batch's arrays, and the first one's number."""
        part, parts = self._part
        size = arrays[0].shape[axis] // parts
        rows = (slice(None),) * axis + (slice(part * size, (part + 1) * size),)
        return [self._put(array[rows]) for array in arrays], part * size

    def _sum(self, tensor, axes=PARTS):
        """The sum over the processes along these axes of the layout."""
        for axis in axes:
            if getattr(self.layout, axis) > 1:
                dist.all_reduce(tensor, group=self.mesh.get_group(axis))
        return tensor

    # --- training ---

    def _loss_sum(self, ids, targets, positions):
        total, first = self._evaluated(loss_sum, ids, targets, positions)
        return total if first is None else self._sum(total)

    def _evaluated(self, function, ids, targets, positions):
        """(what a function finds of this process's rows, the first one's number); of all rows, and None, where they
        cannot be dealt out equally."""
        dealt = _units(ids, targets, 0) % self.layout.rows == 0
        own, first = self._rows([ids, targets], 0) if dealt else ([self._put(ids), self._put(targets)], None)
        with torch.no_grad():
            found = self.engine(function, *own, self._places(positions))
        if isinstance(self.engine, FSDPModule):  # without a backward pass the root would stay whole
            self.engine.reshard()
        return found, first

    def _gradients(self, inputs, targets, positions, count, key):
        """(mean loss, gradients cut like parameters) over micro-batches of whole batches."""
        if _units(inputs, targets, 1) % self.layout.rows:
            what = "pairs" if isinstance(targets, Pairs) else "rows"
            told = f"{_units(inputs, targets, 1)} {what}"
            raise UserError(f"{told} cannot be dealt out equally to {self.layout.rows} processes.")
        (inputs, targets), first = self._rows([inputs, targets], 1)
        places, shares = self._places(positions), 0.0
        averaged = isinstance(self.engine, DistributedDataParallel)
        scale = self.layout.data if averaged else 1
        for micro, (inputs_BT, targets_BT) in enumerate(zip(inputs, targets, strict=True)):
            own = None if key is None else rng.Part(rng.fold_in(key, micro), first)
            waits = averaged and micro + 1 < len(inputs)
            with self.engine.no_sync() if waits else contextlib.nullcontext():
                share = self.engine(objective, inputs_BT, targets_BT, places, count / scale, own)
                share.backward()
            shares = shares + share.detach() / scale
        own = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        grads = {name: torch.zeros_like(p) if p.grad is None else added(p.grad, p) for name, p in own.items()}
        for p in own.values():
            p.grad = None
        return self._sum(shares), grads

    def start_training(self, train, slots=None, step=0):
        self.layout.check(self.config, train)
        self.trained = parameters.trained(self.config, train)
        for name, p in self.net.named_parameters():
            p.requires_grad_(self.trained[name])
        self._gather()
        own = {name: p for name, p in self.net.named_parameters() if self.trained[name]}
        self.train, self.step, self.decays = train, step, door.decays(self.config, train)
        self.slots = empty_slots(own, parameters.turned(self.config, train.optimizer))
        if slots is not None:
            for name, slot in self.slots.items():
                local_of(slot).copy_(part_of(self._own(slots[name]), slot))

    def _train_step(self, inputs, targets):
        inputs, targets, positions, count = door.step_inputs(inputs, targets, self.config)
        key = door.step_key(self.config, (self.train.seed, self.step), self.address)
        loss, grads = self._gradients(inputs, targets, positions, count, key)
        with torch.no_grad():
            norm = self._norm(grads)
            limit = self.train.at(self.step).clip_norm
            if limit is not None:
                scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
                for grad in grads.values():
                    local_of(grad).mul_(scale)
            own = {name: p for name, p in self.net.named_parameters() if name in grads}
            self._move(own, grads, self.train.adam_scalars(self.step))
        self.step += 1
        self.served = None
        return loss, norm

    def _norm(self, grads):
        """The common norm of all gradients: squares of what lies here, summed along the axes that cut a tensor."""
        sums = {}
        for grad in grads.values():
            rows = torch.linalg.vector_norm(local_of(grad), dim=-1)  # as in `clip_by_global_norm`
            cut = tuple(cuts_of(grad))
            sums[cut] = sums.get(cut, 0.0) + torch.linalg.vector_norm(rows).square()
        return torch.stack([self._sum(total, cut) for cut, total in sums.items()]).sum().sqrt()

    def _move(self, own, grads, scalars):
        """One step of the optimizer: in place on what lies here; a matrix that Muon turns is put together for it."""
        adam = OPTIMIZERS[self.execution.optimizer]
        turned = [name for name in own if f"{name}.momentum" in self.slots]  # in one order: all put them together
        local = {name: local_of(p) for name, p in own.items() if name not in turned}
        slots = {name: local_of(s) for name, s in self.slots.items() if name.rpartition(".")[0] not in turned}
        here = {name: local_of(grads[name]) for name in local}
        adam(local, here, slots, scalars, self.train, self.decays)
        for name in turned:
            slot = f"{name}.momentum"
            p, grad, momentum = (whole_of(x).clone() for x in (own[name], grads[name], self.slots[slot]))
            muon({name: p}, {name: grad}, {slot: momentum}, scalars, self.train, self.decays)
            local_of(own[name]).copy_(part_of(p, own[name]))
            local_of(self.slots[slot]).copy_(part_of(momentum, self.slots[slot]))

    # --- the whole of it ---

    def _read(self, tensor):
        return _numpy(whole_of(tensor))

    def whole(self):
        """The model in this process alone, with the weights of now."""
        return TorchModel(self.config, self.weights(), self.execution.with_(layout=""))

    def base(self):
        return self.whole().base()

    def _serving(self):
        """The whole model of now, put together once between steps of training."""
        self.served = self.served or self.whole()
        return self.served

    @_scoped
    def log_probs(self, ids, targets):
        ids, targets, positions, _ = door.loss_inputs(ids, targets, self.config)
        found, first = self._evaluated(log_probs, ids, targets, positions)
        if first is not None:  # every process puts its rows where they are
            empty = [torch.zeros(len(ids), dtype=one.dtype, device=one.device) for one in found]
            for whole, part in zip(empty, found, strict=True):
                whole[first : first + len(part)] = part
            found = [self._sum(whole) for whole in empty]
        sums, counts = map(_numpy, found)
        return sums.astype(np.float64), counts

    def forward(self, ids, positions=None, taps=()):
        return self._serving().forward(ids, positions, taps)

    def component(self, path, inputs, cotangent):
        return self.whole().component(path, inputs, cotangent)

    def stream(self, prompts, sampling):
        yield from self._serving().stream(prompts, sampling)

    def generate(self, prompts, sampling):
        return self._serving().generate(prompts, sampling)

    def new_cache(self, batch, capacity):
        raise UserError("A model in a layout has no caches; take its weights into a model without one.")

    def prepare(self, task, inputs, targets=None, sampling=None):
        raise UserError("A model in a layout is not timed task by task; time its training.")

    def close(self):
        """Leave the group of processes, once all have come here."""
        dist.barrier()
        dist.destroy_process_group()


def _refuse(config, execution, layout):
    """What cannot be spread is refused."""
    if layout.rows > 1 and any(getattr(entry, "balance", 0) for entry in config.feed_forward):
        raise UserError("A balance loss is of all rows of a batch; in PyTorch a layout cannot cut them (data, shard).")
    if layout.rows > 1 and any(getattr(entry, "index_loss", 0) for entry in config.attention):
        raise UserError("An indexer's loss is a mean over all rows; in PyTorch a layout cannot cut them (data, shard).")
    if layout.tensor > 1 and config.dropout_attn:
        raise UserError("Dropout on attention weights is drawn for all heads; with tensor > 1 it must be 0 in PyTorch.")
    if execution.rng == "native":
        raise UserError("PyTorch's own generator draws the same for the rows of every process; leave out rng='native'.")
    if execution.compile:
        raise UserError("compile=True is for one process; leave it out, or the layout.")
    if layout.tensor > 1 and execution.projections != "plain":
        raise UserError(
            f"projections={execution.projections!r} reads matrices that tensor parallelism cuts; leave it out."
        )


def _units(inputs, targets, axis):
    """What of a batch is dealt out: rows, or pairs of them."""
    return inputs.shape[axis] // 2 if isinstance(targets, Pairs) else inputs.shape[axis]
