"""Where gradients flow in a training step that trains only some parameters: which products it makes on the way back.

A product has one on the way back for each of its two factors that takes a gradient. A matrix takes one if it is
trained; what it multiplies, if something below it is: under the first trained parameter nothing flows.
"""

from collections.abc import Mapping

from common import adapters
from common.config import ModelConfig
from common.errors import UserError
from common.variants.part import FeedForward, Part


class Flow:
    """What takes a gradient in a model whose parameters are `trained` or not. `inputs` are those of linear maps by path
    ("" is the tied head's); `back` are the products on the way back of what an attention layer multiplies beside its
    maps, for each of its own: 2 where all is trained. Raises UserError where a layer is trained in part whose inside is
    not known.
    """

    def __init__(self, config: ModelConfig, trained: Mapping[str, bool]):
        self.config, self.trained = config, trained
        self.inputs: dict[str, bool] = {}
        self.back: dict[str, float] = {}
        x = self.learns("model.embed_tokens", "model.embed_positions")
        for index in range(config.num_layers):
            layer = f"model.layers.{index}"
            normed = x or self.learns(f"{layer}.input_layernorm")
            x = self._layer(config.attention_of(index), f"{layer}.self_attn", normed) or x
            normed = x or self.learns(f"{layer}.post_attention_layernorm")
            x = self._layer(config.feed_forward_of(index), f"{layer}.mlp", normed) or x
        self.inputs |= dict.fromkeys(("", "lm_head", "score"), x or self.learns("model.norm"))

    def learns(self, *paths: str) -> bool:
        """Whether something of these modules is trained."""
        return any(on for name, on in self.trained.items() if name.startswith(tuple(f"{path}." for path in paths)))

    def _layer(self, part: Part, path: str, x: bool) -> bool:
        """Note what flows in a layer whose input takes a gradient or not; says whether its output takes one."""
        own = {name: on for name, on in self.trained.items() if name.startswith(f"{path}.")}
        some, every = x or any(own.values()), x and all(own.values())
        if some and not every:
            if part.mapped and isinstance(part, FeedForward):
                return self._feeding(path, x)
            if part.mapped and not part.hands_on(self.config):
                return self._attending(path, x)
            if not (x and all(one.backward >= 2 for one in part.components)):
                raise UserError(
                    f"{path}, of the kind {part.kind!r}, is trained in part: which products that takes has no closed"
                    " form."
                )
        maps = (name.rpartition(".")[0] for name in own if adapters.belongs(name) is None)
        self.inputs |= dict.fromkeys(maps, some)
        self.back[path] = 2.0 * some
        return some

    def _feeding(self, path: str, x: bool) -> bool:
        inner = x or self.learns(f"{path}.gate_proj", f"{path}.up_proj")
        self.inputs |= {f"{path}.gate_proj": x, f"{path}.up_proj": x, f"{path}.down_proj": inner}
        return inner or self.learns(f"{path}.down_proj")

    def _attending(self, path: str, x: bool) -> bool:
        """Scores are made of q and k, contexts of their softmax and v."""
        q, k = (x or self.learns(f"{path}.{name}_proj", f"{path}.{name}_norm") for name in "qk")
        v, gate = (x or self.learns(f"{path}.{name}_proj") for name in ("v", "gate"))
        weights = q or k or self.trained.get(f"{path}.sinks", False)
        inner = weights or v or gate
        self.inputs |= {f"{path}.{name}_proj": x for name in ("q", "k", "v", "gate")}
        self.inputs[f"{path}.o_proj"] = inner
        self.back[path] = (q + k + weights + v) / 2
        return inner or self.learns(f"{path}.o_proj")
