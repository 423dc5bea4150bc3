"""The closed form beside what each framework counts, and beside XLA's own figure with the reason why it differs."""

import functools
from dataclasses import dataclass

from common import backend, params
from common.accounting import flops
from common.config import Execution, ModelConfig

TASKS = {"forward": "forward", "train": "gradients"}  # ours -> the door's
WAYS = ("loop", "scan")  # of JAX's layers
ONCE = "XLA counts the body of the scan once, not {layers} times, and adds elementwise work"
LOOPS = "XLA counts the bodies of loops inside layers once, {missed:.3g} FLOPs less, and adds elementwise work"
MORE = "XLA adds elementwise work, {share:.1%} here"
LESS = "XLA does not know what is multiplied inside a library's kernel"
NONE = "XLA gives no figure on this device"


@dataclass(frozen=True)
class Row:
    """FLOPs of one call of a task. `closed` is the work that there is, which is what PyTorch multiplies; `closed_jax`
    is what JAX does, where a loop over experts multiplies all tokens by all of them. `jaxpr` counts its program with
    its layers in a "loop" or a "scan", `xla` is what its compiler says of it.
    """

    task: str
    layers: str
    closed: int
    causal: int
    torch: int
    jaxpr: int
    xla: float | None
    reason: str
    closed_jax: int

    @property
    def equal(self) -> bool:
        """Whether both counters found their closed form."""
        return self.closed == self.torch and self.closed_jax == self.jaxpr


def rows(config: ModelConfig, batch: int, length: int, path: str = "", device: str = "cpu") -> list[Row]:
    """Forward and training of a model, JAX's layers both ways, or of its submodule at `path`; plain kernels. Of a model
    with adapters these alone are trained, and layers run in a loop: through a scan gradients flow from its first layer.

    Builds the model in both wings and runs each task once in PyTorch.
    """
    trained = params.trained(config, params.EVERYTHING)
    part = not path and not all(trained.values())
    weights, found = params.initialise(config, 0), []
    torch = backend.load("torch").build(config, weights, Execution(device=device))
    for layers in ("loop",) if path or part else WAYS:
        jax = backend.load("jax").build(config, weights, Execution(device=device, layers=layers))
        for task, counted in TASKS.items():
            more = {"trained": trained} if part and task == "train" else {}
            counted = "train" if more else counted
            full = functools.partial(flops.flops_full, config, task, batch, length, path=path, **more)
            own, reported = full(wing="jax"), jax.reported_flops(counted, batch, length, path)
            row = Row(
                task=task,
                layers=layers,
                closed=full(),
                causal=flops.flops_causal(config, task, batch, length, path=path, **more),
                torch=torch.matmul_flops(counted, batch, length, path),
                jaxpr=jax.matmul_flops(counted, batch, length, path),
                xla=None if reported is None else reported.flops,
                reason=reason(own, reported, layers, config.num_layers),
                closed_jax=own,
            )
            found.append(row)
    return found


def reason(closed: int, reported: backend.Reported | None, layers: str, count: int) -> str:
    """Why XLA's figure is not the closed form of what JAX multiplies; `count` is the number of layers that run."""
    if reported is None:
        return NONE
    if layers == "scan" and count > 1:
        return ONCE.format(layers=count)
    if reported.missed:
        return LOOPS.format(missed=reported.missed)
    if reported.flops < closed:
        return LESS
    return MORE.format(share=(reported.flops - closed) / reported.flops) if reported.flops else ""
