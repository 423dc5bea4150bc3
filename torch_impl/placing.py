"""Where tensors lie in several processes: a mesh of them by the axes of a layout, and how linear maps are cut."""

import functools
import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

from common import layout as layouts
from common.adapters import belongs
from common.errors import UserError
from common.keyed import DRAWN, keyed

from . import rng
from .quantise import QuantisedLinear


def mesh_of(layout, kind):
    """The processes of a layout, named by its axes."""
    rank, world = layouts.processes()
    if world != layout.devices:
        start = f"torchrun --nproc-per-node {layout.devices} -m common.cli …"
        raise UserError(
            f"The layout {layout} needs {layout.devices} processes, and {world} run; start them by: {start}"
        )
    if not dist.is_initialized():
        host, port = layouts.address()
        os.environ |= {layouts.HOST: host, layouts.PORT: str(port)}
        store, rank, world = next(dist.rendezvous("env://", rank, world))
        # torchrun's store remembers where the processes listened that it has ended
        store = dist.PrefixStore(os.environ.get(layouts.RESTARTS, "0"), store)
        dist.init_process_group("gloo" if kind == "cpu" else "nccl", store=store, rank=rank, world_size=world)
    return init_device_mesh(kind, layout.sizes, mesh_dim_names=layouts.AXES)


# --- what tensor parallelism cuts ---


def cut_maps(net, config, mesh):
    """Cut the linear maps of a network that layers name, with their adapters, along the processes of a mesh."""
    axes = layouts.splits(config)
    for name, axis in axes.items():
        path = name.removesuffix(".weight")
        if path != name and belongs(name) is None:
            own = {one.removeprefix(f"{path}."): Shard(at) for one, at in axes.items() if one.startswith(f"{path}.")}
            _cut(net.get_submodule(path), axis, mesh, own)
    for layer, block in enumerate(net.model.layers):
        if config.attention_of(layer).cut(config):
            _fewer_heads(block.self_attn, mesh)


def _cut(linear, axis, mesh, places):
    """Cut a linear map: by rows its outputs lie apart, by columns its inputs do, and outputs are added."""
    inside, outside = (Replicate(), Shard(-1)) if axis == 0 else (Shard(-1), Replicate())
    _spread(linear, mesh, places, inside, outside)
    if isinstance(linear, QuantisedLinear):  # no cut of W is one of its bits: blocks are 64 neighbours, row after row
        own = {"device_mesh": mesh, "placements": [places["weight"]], "src_data_rank": None}
        linear.place = functools.partial(distribute_tensor, **own)
    if linear.change is not None:
        linear.change = functools.partial(_changed, linear.change)


def _changed(change, linear, x, y):
    """What adapters make of a map that is cut: their dropout is drawn for all of x, and lies where x does."""
    key = DRAWN.key
    with keyed(None if key is None else Placed(key, x.device_mesh, x.placements)):
        return change(linear, x, y)


def _spread(module, mesh, places, inside, outside):
    """Make DTensors of all parameters in a module, whole ones but for `places`, and of its input, which lies `inside`;
    its output is handed on as what of it lies here when it lies `outside`."""

    def partition(path, part, mesh):
        for name, p in list(part.named_parameters(prefix=path, recurse=False)):
            own = [places.get(name, Replicate())]
            whole = nn.Parameter(distribute_tensor(p, mesh, own, src_data_rank=None))
            part.register_parameter(name.rpartition(".")[2], whole)

    def enter(_, inputs, mesh):
        return tuple(DTensor.from_local(x, mesh, [inside], run_check=False) for x in inputs)

    def leave(_, output, mesh):
        return output.redistribute(placements=[outside]).to_local()

    distribute_module(module, mesh, partition, enter, leave)


def _fewer_heads(attention, mesh):
    """Tell a layer how many heads it has here, and which; norms of single heads have one weight for those of all."""
    for name in ("num_heads", "heads", "groups"):
        if hasattr(attention, name):
            setattr(attention, name, getattr(attention, name) // mesh.size())
    for name in ("q_norm", "k_norm"):
        if getattr(attention, name, None) is not None:
            _spread(getattr(attention, name), mesh, {}, Shard(1), Shard(1))

    def enter(_, inputs):
        x_BTE, positions_BT, cache, key, *rest = inputs
        return x_BTE, positions_BT, cache, None if key is None else Heads(key, mesh), *rest

    attention.register_forward_pre_hook(enter)


# --- what is drawn for a tensor that is cut ---


class Placed(NamedTuple):
    """A key whose numbers are those of another one, drawn for a whole tensor, of which every process has its part."""

    key: Any
    mesh: DeviceMesh
    placements: tuple


class Heads(NamedTuple):
    """A key whose numbers are those of another one, drawn for all heads of [B, H, T, S], of which some are here."""

    key: Any
    mesh: DeviceMesh


@rng.fold_in_of.register(Placed)
@rng.fold_in_of.register(Heads)
def _(key, data):
    return key._replace(key=rng.fold_in(key.key, data))


@rng.bernoulli.register(Placed)
def _(key, probability, shape, device="cpu"):
    whole = rng.bernoulli(key.key, probability, shape, device)
    return distribute_tensor(whole, key.mesh, key.placements, src_data_rank=None)


@rng.bernoulli.register(Heads)
def _(key, probability, shape, device="cpu"):
    words, first = key.key if isinstance(key.key, rng.Part) else (key.key, 0)
    (rows, heads, *rest), processes, process = shape, key.mesh.size(), key.mesh.get_local_rank()
    # [1] row by row: the heads here are neighbours in each
    before = [((first + row) * processes + process) * heads for row in range(rows)]
    drawn = [rng.bernoulli(rng.Part(words, head), probability, (heads, *rest), device) for head in before]
    return torch.stack(drawn)


# --- parts and wholes ---


def dealt_bits(linear, mesh):
    """Leave of the bits of a matrix in every process its part of them, which are put together for every product."""
    for name, whole in linear.bits._asdict().items():
        if whole is not None:
            setattr(linear, name, distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None))
    linear.gather = whole_of


def local_of(tensor):
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_of(tensor):
    """A tensor with all its parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(whole, tensor):
    """What of a whole tensor lies in this process where another one is cut: FSDP cuts what tensor parallelism left."""
    for axis, dim in sorted(cuts_of(tensor).items(), reverse=True):  # tensor, then shard
        mesh = tensor.device_mesh[axis]
        parts = whole.chunk(mesh.size(), dim)
        at = mesh.get_local_rank()
        whole = parts[at] if at < len(parts) else whole.narrow(dim, 0, 0)
    return whole


def added(grad, p):
    """A gradient of which every process has an addend, cut as its parameter is."""
    apart = isinstance(grad, DTensor) and grad.placements != p.placements
    return grad.redistribute(placements=p.placements) if apart else grad


def cuts_of(tensor):
    """The axes of the layout that cut a tensor, and which of its own."""
    if not isinstance(tensor, DTensor):
        return {}
    placed = zip(tensor.device_mesh.mesh_dim_names, tensor.placements, strict=True)
    return {name: place.dim for name, place in placed if not place.is_replicate()}
