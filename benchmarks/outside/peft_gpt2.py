"""PEFT's LoRA on transformers' GPT-2 as people train it: our adapter, through its files, and the loop of their
documentation with PyTorch's AdamW on what takes gradients.

Adapters must lie on maps that are one for one in both models: not on queries, keys and values, of which theirs is one.
"""

from tempfile import TemporaryDirectory

import torch

from benchmarks.outside import transformers_gpt2
from common import adapters
from common import backend as door
from common.errors import UserError
from common.weights import peft_names
from common.weights.peft import save_adapter


class Timed(transformers_gpt2.Timed):
    """The training step alone; see `common.backend.Model.prepare`."""

    def __init__(self, net, config, execution, names):
        self.net, self.config, self.execution, self.names = net, config, execution, names

    def prepare(self, task, inputs, targets=None):
        if task != "train":
            raise UserError(f"PEFT's model has no task {task!r} here.")
        return super().prepare(task, inputs, targets)

    def start_training(self, train):
        """All that takes gradients are matrices, which decay."""
        self.train, self.step = train, 0
        self.own = [p for p in self.net.parameters() if p.requires_grad]
        more = {"weight_decay": train.weight_decay, "betas": (train.beta1, train.beta2), "eps": train.adam_eps}
        self.optimizer = torch.optim.AdamW(self.own, lr=train.rate(0), **more)
        named, shown = dict(self.net.named_parameters()), door.shown(self.config, train)
        self.shown = {name: named[self.names[name]] for name in shown}

    def _averages(self):
        return {f"exp_avg/{name}": self.optimizer.state[own]["exp_avg"] for name, own in self.shown.items()}


class Contender(transformers_gpt2.Contender):
    """See `common.backend.Backend`: what a contest needs of it."""

    name, title = "peft", "PEFT"

    def versions(self):
        import peft

        return {**super().versions(), "peft": peft.__version__}

    def build(self, config, weights, execution):
        from peft import PeftModel

        (adapter,) = config.adapters
        base, own = adapters.without(config, weights)
        inner = super().build(base, own, execution)
        sites, names = peft_names.sites(peft_names.usual(config), config), {}
        for module, paths in sites.items():
            for path in paths:
                for part in adapters.PARTS[:2]:
                    names[f"{path}.{part}.{adapter.name}.weight"] = f"base_model.model.{module}.{part}.default.weight"
        asked = {adapters.base_of(name) for name in adapters.names(config)}
        if any(len(paths) > 1 and asked & set(paths) for paths in sites.values()):
            raise UserError("PEFT's adapter of queries, keys and values together is another function than ours.")
        with TemporaryDirectory() as folder:
            save_adapter(f"{folder}/adapter", config, weights, adapter.name)
            net = PeftModel.from_pretrained(inner.net, f"{folder}/adapter", is_trainable=True)
        return Timed(net, config, execution, names)


backend = Contender()
