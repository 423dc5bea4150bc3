"""What every kind of attention and feed-forward layer says of itself: settings, parameters, costs."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from common.accounting.work import (
    ACTIVATION,
    FEED_FORWARD,
    PROJECTIONS,
    SCORES,
    SOFTMAX,
    Buffers,
    Component,
    Pass,
    Work,
)
from common.parameter import Parameter
from common.record import Record

if TYPE_CHECKING:
    from common.config import GPTConfig

SOFTMAX_COST = 6  # of one score: divide by sqrt(D), maximum, subtract, exp, sum, divide
ACTIVATION_COST = {"gelu_tanh": 8, "gelu": 5, "silu": 4, "quick_gelu": 5}  # of one number
# A fused kernel kept no scores, so its backward has 5 products for 2: it computes them again. Checkpointed blocks keep
# neither scores nor what they weigh, and multiply for both again.
SCORED = Component(SCORES, again={"fused": 1, "masked": 1, "checkpointed": 2})


class Part(Record):
    """A frozen dataclass of settings. `kind` is its name in configs and that of its file in every implementation,
    `module` the class there. `aliases` are other words for it, behind which may stand what has to be set:
    "mqa with num_kv_heads=1". Accounts read the others: `components` are the kinds of its matrix FLOPs, in their order,
    the first one that of its linear maps unless `component` says otherwise; `inputs` the linear maps inside that read
    one and the same tensor (map -> tensor); `decodes` and `reads` the fields of an execution to decode with, and to
    read a text with, where plain ones cost far more. `splits` are the linear maps inside that tensor parallelism cuts:
    by rows (0) or columns (1), see `common/layout.py`. `bare` are, by field of an execution and what is chosen there,
    patterns of the linear maps inside whose matrix that way multiplies by itself: what an adapter adds is not seen.
    `mapped` says that its products are those which `common/accounting/flow.py` knows, map by map, so that training a
    part of it has a closed form; a kind that is made from such a one, and multiplies more, says that its are not.
    """

    kind: ClassVar[str]
    module: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    components: ClassVar[tuple[Component, ...]]
    inputs: ClassVar[Mapping[str, str]] = {}
    decodes: ClassVar[Mapping[str, str]] = {}
    reads: ClassVar[Mapping[str, str]] = {}
    splits: ClassVar[Mapping[str, int]] = {}
    mapped: ClassVar[bool] = False
    bare: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().to_dict()}

    def check(self, config: "GPTConfig") -> None:
        """Raise UserError if a model of this config cannot have it."""

    def parameters(self, config: "GPTConfig", path: str) -> Iterator[Parameter]:
        """Its entries of the parameter table, in the order in which they are used."""
        raise NotImplementedError

    def cut(self, config: "GPTConfig") -> dict[str, int]:
        """What tensor parallelism deals out, by a word for it: how many there are. Nothing: every device computes the
        whole layer."""
        return {}

    def shut(self, name: str) -> bool:
        """Whether no gradient leaves that linear map inside by its input."""
        return False

    def unreached(self) -> bool:
        """Whether it has parameters that no gradient reaches."""
        return False

    def component(self, name: str) -> str:
        """The component that a linear map inside counts as."""
        return self.components[0].name

    def products(self, config: "GPTConfig", work: Work) -> dict[str, int]:
        """FLOPs of matrix products beside those of its linear maps, by component."""
        return {}

    def otherwise(self, config: "GPTConfig", work: Work) -> dict[str, dict[str, int]]:
        """By wing and component: FLOPs of a training step that this wing makes beside those that follow from `products`
        and `components`, or (below 0) leaves out."""
        return {}

    def elements(self, config: "GPTConfig", work: Work) -> dict[str, int]:
        """Elementwise FLOPs beside those of its linear maps and norms, by component."""
        return {}

    def kept(self, config: "GPTConfig", at: Pass, path: str) -> Buffers:
        """(component, name, bytes) of what PyTorch's eager training keeps of it for the backward pass, beside inputs of
        its linear maps and norms: a buffer that several operations keep has one name, and counts once."""
        raise NotImplementedError


class Attention(Part):
    """Softmax attention over keys and values of `heads`, of which a cache holds `held` slots. `free_order`: it can do
    without a causal mask; `chooses`: it chooses keys for its queries, and shows them at the tap `chosen`."""

    components = (Component(PROJECTIONS), SCORED)
    inputs: ClassVar[Mapping[str, str]] = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "x")

    bare: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "attention": dict.fromkeys(("module", "module_weights"), ("*",)),
        "projections": dict.fromkeys(("joined", "einsum"), ("q_proj", "k_proj", "v_proj")),
    }

    free_order: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    window: int | None = None

    def heads(self, config: "GPTConfig") -> tuple[int, int, int]:
        """(query heads H, key and value heads K, head size D)."""
        return config.num_heads, config.num_heads, config.head_dim

    def check(self, config: "GPTConfig") -> None:
        self.heads(config)  # the model's head size is asked for by those that have none

    def values(self, config: "GPTConfig") -> str | None:
        """The linear map inside of whose rows every query head weighs its own, with weights that dropout may cut; None
        where heads share values, and where no weights are dropped."""
        return None

    def hands_on(self, config: "GPTConfig") -> bool:
        """Whether layers of this kind make keys and values for each other."""
        return False

    def rows_of(self, config: "GPTConfig", name: str) -> int:
        """How often a norm inside is taken for a token: "q_norm" may be taken head by head."""
        return 1

    def reach(self, config: "GPTConfig") -> int | None:
        """How many positions a query looks back, its own among them: a window, or all there are (None)."""
        if self.window is None or self.window >= config.context_length:
            return None
        return self.window

    def held(self, capacity: int) -> int:
        """Slots of a cache with room for `capacity` tokens: no more than can be seen."""
        return capacity if self.window is None else min(capacity, self.window)

    def cached_numbers(self, config: "GPTConfig", batch: int, capacity: int) -> int:
        """Numbers in its cache: keys and values, without their positions."""
        _, keys, dim = self.heads(config)
        return 2 * batch * self.held(capacity) * keys * dim

    def state_numbers(self, config: "GPTConfig", batch: int) -> int:
        """Those of them that are kept in the precision of reductions."""
        return 0

    def read_numbers(self, config: "GPTConfig", batch: int, slots: int) -> int:
        """Numbers of its cache that a decoding step reads."""
        return self.cached_numbers(config, batch, slots)

    def quiet(self, name: str) -> bool:
        """Whether nothing flows back through that linear map or norm inside."""
        return False

    def products(self, config: "GPTConfig", work: Work) -> dict[str, int]:
        """q k^T and weights v: 2 D each for every pair and head."""
        heads, _, dim = self.heads(config)
        return {SCORES: 2 * 2 * work.pairs(self.window) * heads * dim}

    def elements(self, config: "GPTConfig", work: Work) -> dict[str, int]:
        heads, _, _ = self.heads(config)
        return {SOFTMAX: SOFTMAX_COST * work.pairs(self.window) * heads}


class FeedForward(Part):
    """E -> F -> E, each position by itself."""

    components = (Component(FEED_FORWARD),)
    inputs: ClassVar[Mapping[str, str]] = dict.fromkeys(("gate_proj", "up_proj"), "x")

    def elements(self, config: "GPTConfig", work: Work) -> dict[str, int]:
        return {ACTIVATION: ACTIVATION_COST[config.activation] * work.tokens * config.ff_dim}

    def bent(self, config: "GPTConfig", at: Pass, path: str, numbers: int) -> Buffers:
        """What the activation of that many numbers keeps: what it is given, and its sigmoid where PyTorch has no kernel
        of its own for it, both in 32 bits at least."""
        if config.activation != "quick_gelu":
            yield FEED_FORWARD, f"{path} before the activation", numbers * at.compute
            return
        for what in ("before the activation", "sigmoid of the activation"):
            yield FEED_FORWARD, f"{path} {what}", numbers * max(at.compute, 4)
