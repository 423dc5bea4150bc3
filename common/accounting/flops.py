"""Matrix-multiplication FLOPs in closed form, 2 per multiply-add; elementwise work is counted apart (`elementwise.py`).

Every count exists twice. `causal=False` ("full") is what the kernels compute: all T x T scores, all slots of a cache.
`causal=True` is the work that has to be done: the visible pairs, T (T + 1) / 2. `flops_full` and `flops_causal` are
their sums; whoever publishes a rate says which one it is. A triangle of M rows that is solved for K columns counts
M^2 K in either, as BLAS's trsm is counted: half of the product of a square with them. Source: PaLM (Chowdhery et al.
2022), appendix B.
"""

from collections.abc import Callable, Mapping

from common.accounting.flow import Flow
from common.accounting.parts import HEADS, entry, holder, kind, low_rank, rules_under
from common.accounting.work import ADAPTERS, FEED_FORWARD, HEAD, ROW_NORMS, Component, Work
from common.adapters import PARTS
from common.backend import pick
from common.config import ModelConfig
from common.errors import UserError, unknown
from common.params import Parameter

KERNELS = ("plain", "loop", "blockwise", "fused", "masked", "checkpointed")  # of training; the last one: of blocks
Forms = Mapping[str, str]
PLAIN: Forms = {}
Rule = Callable[[ModelConfig, str, Work, Mapping[str, Parameter]], dict[str, int]]


def _nothing(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """A module without products of its own: a container, a norm, a table whose rows are picked."""
    return {}


def _tokens(path: str, work: Work) -> int:
    """How many vectors a linear map is given."""
    return work.predicted if kind(path) in HEADS else work.tokens


def _linear(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    tokens = _tokens(path, work)
    layer = holder(config, path)
    component = HEAD if layer is None else layer.component(kind(path))
    return {component: 2 * tokens * own["weight"].size}


def _entry(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return entry(config, path).products(config, work)


def _experts(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """Every token is multiplied by the matrices of the experts that it chose, or of all where a wing's loop does so."""
    chosen = entry(config, path.rpartition(".")[0]).multiplied(work)
    matrices = (own[name] for name in ("gate_proj", "up_proj", "down_proj"))
    return {FEED_FORWARD: 2 * work.tokens * chosen * sum(p.size // p.shape[0] for p in matrices)}


def _low_rank(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """A and B multiply what the map gets; DoRA multiplies them by each other once a call, however many tokens there
    are, and nothing flows back through that."""
    changed, (out_dim, in_dim), adapter = low_rank(config, path)
    if kind(path.rpartition(".")[0]) == PARTS[2]:
        return {ROW_NORMS: 2 * out_dim * adapter.rank * in_dim}
    return {ADAPTERS: 2 * _tokens(changed, work) * own["weight"].size}


def _tied_head(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """A tied head has no parameters of its own, but the whole model multiplies by the token table."""
    return {HEAD: 2 * work.predicted * config.embed_dim * config.vocab_size} if config.tied else {}


RULES: dict[str, Rule] = {
    "": _tied_head,
    **dict.fromkeys(("model", "layers", "layers.#", "embedding", "layer_norm", "rms_norm"), _nothing),
    **dict.fromkeys(PARTS, _nothing),
    "lora": _low_rank,
    "self_attn": _entry,
    "mlp": _entry,
    **dict.fromkeys(("linear", "router"), _linear),
    "shared_expert": _nothing,
    "experts": _experts,
}


def components(config: ModelConfig) -> dict[str, Component]:
    """What a model's products count as, in order: as its layers have them, what one kind alone has behind what it
    follows there; then the head, and adapters."""
    found: list[Component] = []
    for layer in (*config.attention, *config.feed_forward):
        at = len(found)
        for own in layer.components:
            names = [one.name for one in found]
            if own.name in names:
                at = names.index(own.name)
            else:
                found.insert(at, own)
            at += 1
    more = [Component(HEAD), *([Component(ADAPTERS), Component(ROW_NORMS, backward=0)] if config.adapters else [])]
    return {one.name: one for one in (*found, *more)}


def _count(config: ModelConfig, path: str, work: Work, times: Callable | None = None) -> dict[str, int]:
    """By component; `times(module, its parameters, component)` is how often each product is made, None: once."""
    found: dict[str, int] = {}
    for module, rule, own in rules_under(config, path, RULES, "common/accounting/flops.py"):
        for component, flops in rule(config, module, work, own).items():
            made = flops if times is None else round(times(module, own, component) * flops)
            found[component] = found.get(component, 0) + made
    order = [*components(config), *found]  # what no layer declares comes last
    return {name: found[name] for name in sorted(found, key=order.index)}


def forward(
    config: ModelConfig,
    batch: int,
    length: int,
    causal: bool = False,
    path: str = "",
    forms: Forms = PLAIN,
    wing: str | None = None,
) -> dict[str, int]:
    """FLOPs of one forward pass over `batch` sequences of `length` tokens, by component; `path` names a submodule.

    `forms` are fields of the execution that change what is multiplied, here and below: {"latent": "absorbed"} makes no
    keys and values from latents. With a `wing`, here and below, it is what that framework multiplies, also where more
    than there is to do (experts whom no token chose, in JAX's loop).
    """
    return _count(config, path, Work(batch, length, length, batch * length, causal, forms=forms, wing=wing))


def training(
    config: ModelConfig,
    batch: int,
    length: int,
    causal: bool = False,
    path: str = "",
    attention: str = "plain",
    forms: Forms = PLAIN,
    trained: Mapping[str, bool] | None = None,
    wing: str | None = None,
) -> dict[str, int]:
    """FLOPs of forward and backward: every product again for its input and for its weight, so three times forward.

    `attention="fused"` is a kernel that computes its scores again on the way back: 3.5 times forward for these;
    "checkpointed" blocks compute attention again, 4 times. `trained` says by name which parameters are
    (`params.trained`), if not all: a frozen matrix has no gradient, and none flows below the first trained parameter.
    In JAX's scan (and so in checkpointed blocks) it flows through all layers: that has no closed form then. `wing` also
    adds or leaves out what a framework's own way back of a layer does otherwise (`Part.otherwise`), where all is
    trained.
    """
    if attention not in KERNELS:
        raise unknown("attention kernel", attention, KERNELS)
    work = Work(batch, length, length, batch * length, causal, forms=forms, wing=wing)
    if trained is not None and not all(trained.values()):
        return _training_a_part(config, work, path, attention, trained)
    declared, parts = components(config), forward(config, batch, length, causal, path, forms, wing)
    halves = {name: declared.get(name, Component(name)).halves(attention) for name in parts}
    more = _otherwise(config, path, work)
    return {name: halves[name] * flops // 2 + more.get(name, 0) for name, flops in parts.items()}


def _otherwise(config: ModelConfig, path: str, work: Work) -> dict[str, int]:
    """What the layers at a path do otherwise in a wing, by component."""
    found: dict[str, int] = {}
    for module, rule, _ in rules_under(config, path, RULES, "common/accounting/flops.py"):
        layer = entry(config, module).otherwise(config, work) if work.wing and rule is _entry else {}
        for component, flops in layer.get(work.wing, {}).items():
            found[component] = found.get(component, 0) + flops
    return found


def _training_a_part(
    config: ModelConfig, work: Work, path: str, attention: str, trained: Mapping[str, bool]
) -> dict[str, int]:
    if attention == "checkpointed":
        raise UserError("Checkpointed blocks of which a part is trained have no closed form of their products.")
    declared, flow = components(config), Flow(config, trained)

    def times(module: str, own: Mapping[str, Parameter], component: str) -> float:
        """Forward, and on the way back for the input and for the matrix."""
        kind_of, weight = declared.get(component, Component(component)), f"{module}.weight"
        part = next(iter(own.values())).part if own else None
        if part == "lora":
            return 1 + _back_low_rank(config, flow, module, trained)
        if part in ("linear", "router"):
            inputs = flow.inputs[module] if kind_of.backward == 2 else 0
            return 1 + (inputs + trained[weight] if kind_of.backward else 0)
        if part == "experts":
            return 1 + flow.inputs[module] + any(trained[f"{module}.{name}"] for name in own)
        if not module:
            return 1 + flow.inputs[""] + trained["model.embed_tokens.weight"]
        if kind(module) == "self_attn" and kind_of.again.get(attention):  # the whole kernel, or nothing
            return kind_of.halves(attention) / 2 if flow.back[module] else 1
        return 1 + flow.back[module] * kind_of.backward / 2

    return _count(config, path, work, times)


def _back_low_rank(config: ModelConfig, flow: Flow, path: str, trained: Mapping[str, bool]) -> int:
    """Products on the way back for one of A and B: for the matrix, and for what it is given. None for row norms."""
    changed, part, name = path.rsplit(".", 2)
    x, a = flow.inputs[changed], trained[f"{changed}.{PARTS[0]}.{name}.weight"]
    inputs = {PARTS[0]: x, PARTS[1]: x or a}
    return inputs[part] + trained[f"{path}.weight"] if part in inputs else 0


def prefill(
    config: ModelConfig,
    batch: int,
    length: int,
    causal: bool = False,
    slots: int | None = None,
    forms: Forms = PLAIN,
    wing: str | None = None,
) -> dict[str, int]:
    """FLOPs of filling an empty cache with `length` tokens a row; the head predicts at the last position only.

    `slots` is the cache's capacity, all of which the kernels read; None is a cache that is full afterwards.
    """
    slots = length if slots is None else slots
    return _count(config, "", Work(batch, length, slots, batch, causal, cached=True, forms=forms, wing=wing))


def decode_step(
    config: ModelConfig,
    batch: int,
    slots: int,
    causal: bool = False,
    visible: int | None = None,
    forms: Forms = PLAIN,
    wing: str | None = None,
) -> dict[str, int]:
    """FLOPs of one more token a row on a cache of `slots` slots, all of which the kernels read.

    With `causal` only the `visible` ones count, the token's own among them; None is a full cache.
    """
    past = (slots if visible is None else visible) - 1
    return _count(config, "", Work(batch, 1, slots, batch, causal, past, cached=True, forms=forms, wing=wing))


TASKS = {"forward": forward, "train": training, "prefill": prefill, "decode": decode_step}


def flops_full(config: ModelConfig, task: str, batch: int, length: int, **options) -> int:
    """All that the kernels compute in one call of a task ("decode": `length` slots); options are those of the task."""
    return sum(pick("task", task, TASKS)(config, batch, length, causal=False, **options).values())


def flops_causal(config: ModelConfig, task: str, batch: int, length: int, **options) -> int:
    """The same with visible pairs only: what a kernel that skips hidden ones would do."""
    return sum(pick("task", task, TASKS)(config, batch, length, causal=True, **options).values())
