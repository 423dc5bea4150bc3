"""Decoding by every kind of attention over contexts, and experts against a dense layer: all else is equal."""

from collections.abc import Iterator, Mapping

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, wing
from common.config import MODES, GPTConfig, mode
from common.errors import UserError
from common.variants import ATTENTIONS, GatedDeltaNet, GatedMLP, GroupedQuery, Latent, MixtureOfExperts, Sparse
from common.variants.rotary import Rotary

HEADS, LAYERS = 8, 4  # four, and all kinds are measured within an hour
CONTEXTS = {True: (32, 96), False: (256, 1024, 4096)}
WINDOW, CHOSEN = {True: 16, False: 256}, {True: 8, False: 128}
SHORT = 16
EXPERTS, TOP = 8, 2


def base(quick: bool) -> GPTConfig:
    """What all of them have: RMS norms, SwiGLU, positions inside attention."""
    context, width = (128, 128) if quick else (8192, 512)
    common = {"activation": "silu", "feed_forward": GatedMLP(), "norm": "rms_norm", "positions": "none"}
    return GPTConfig(256, context, width, LAYERS, HEADS, ff_dim=3 * width, **common)


def kinds(quick: bool) -> dict[str, tuple]:
    """Patterns of attention over the layers, by name; a kind that is in none of them has one of its own."""
    full = GroupedQuery(HEADS, rotary=Rotary())
    few, delta = full.with_(num_kv_heads=2), GatedDeltaNet()
    local = few.with_(window=WINDOW[quick])
    found = {
        "multi-head, rotary": (full,),
        "grouped-query, 2 groups": (few,),
        "multi-query": (full.with_(num_kv_heads=1),),
        "3 windows to 1 full": (local, local, local, few),
        "ALiBi, 2 groups": (few.with_(rotary=None, alibi=True),),
        "sinks, 2 groups": (few.with_(sinks=True),),
        "soft cap, 2 groups": (few.with_(softcap=30.0),),
        "gate, 2 groups": (few.with_(gate=True),),
        "query and key norms, 2 groups": (few.with_(qk_norm="head"),),
        "no positions, 2 groups": (few.with_(rotary=None),),
        "half of the layers share": (few,) * (LAYERS // 2) + (few.with_(shares=True),) * (LAYERS // 2),
        "latent": (Latent(rank=64, rotary=Rotary()),),
        "latent without rotary part": (Latent(rank=64),),
        "sparse": (Sparse(2, rotary=Rotary(), top_k=CHOSEN[quick], index_heads=4, index_dim=32),),
        "3 DeltaNets to 1 full": (delta, delta, delta, few.with_(gate=True)),
        "DeltaNet": (delta,),
    }
    there = {one.kind for pattern in found.values() for one in pattern}
    return found | {kind: (ATTENTIONS[kind](),) for kind in ATTENTIONS if kind not in there}


def mode_of(fields: Mapping[str, str]) -> str:
    """The mode that sets these fields of an execution in both wings, and no others."""
    for name in MODES:
        if mode(name, "torch") == mode(name, "jax") == dict(fields):
            return name
    raise UserError(
        f"No mode of common/config.py sets {dict(fields)} in both wings; give it one, or leave `reads` out."
    )


def cells(scope: Scope) -> Iterator[Cell]:
    """A token after texts of several lengths, in a filled cache, whose bytes are shown too."""
    for name, attention in kinds(scope.quick).items():
        config = base(scope.quick).with_(attention=attention)
        how = "+".join((FASTEST, *sorted({mode_of(one.reads) for one in attention if one.reads})))
        chosen = (wing("torch", how), wing("jax", how))
        for length in CONTEXTS[scope.quick]:
            along = {"axis": ("context", length), "part": "context", "memory": True}
            yield Cell("variants", "continue", name, config, 1, length, "float32", chosen, SHORT, **along)


def ablations(scope: Scope) -> Iterator[Cell]:
    """The forms that kinds have beside their plain ones, each where it pays: latents are absorbed while decoding, the
    delta rule is computed in chunks for whole texts."""
    quick = scope.quick
    length = max(CONTEXTS[quick][:2])
    for name, kind, how, task in (
        ("latent", Latent(rank=64, rotary=Rotary()), "absorbed", "continue"),
        ("DeltaNet", GatedDeltaNet(), "chunked rule", "forward"),
    ):
        config = base(quick).with_(attention=(kind,))
        chosen = tuple(wing(who, form) for who in ("torch", "jax") for form in ("default", how))
        new = SHORT if task == "continue" else 0
        yield Cell("ablation", task, name, config, 1, length, "float32", chosen, new, memory=True)
    yield from _choosing(quick)


def _choosing(quick: bool) -> Iterator[Cell]:
    """What a token saves that reads the keys which an indexer chose, and not all, of as many heads."""
    own = {"top_k": CHOSEN[quick], "index_heads": 4, "index_dim": 32}
    some = base(quick).with_(attention=(Sparse(HEADS, rotary=Rotary(), **own),))
    dense = base(quick).with_(attention=(GroupedQuery(HEADS, rotary=Rotary()),))
    wings = ("torch", "jax")
    chosen = (*(wing(who, FASTEST) for who in wings), *(wing(who, FASTEST, model=("dense", dense)) for who in wings))
    for length in CONTEXTS[quick][1:]:
        yield Cell("ablation", "continue", "sparse", some, 1, length, "float32", chosen, SHORT, memory=True)


def experts(scope: Scope) -> Iterator[Cell]:
    """Experts of which every token takes two against a dense layer of the same active size: forward and a training step
    in the forms for many tokens, and decoding, where what streams gathers the matrices of a token (of a thousand tokens
    9 GB).
    """
    dense, wings = base(scope.quick).with_(num_layers=2 * LAYERS), ("torch", "jax")
    mixed = dense.with_(feed_forward=MixtureOfExperts(EXPERTS, TOP, expert_dim=dense.ff_dim // TOP))
    rivals = tuple(wing(who, FASTEST, model=("dense", dense)) for who in wings)
    many, one = (FASTEST, f"{FASTEST}+grouped experts"), (FASTEST, "default", "grouped experts")
    whole, steps = ((*(wing(who, how) for who in wings for how in forms), *rivals) for forms in (many, one))
    name, (batch, length) = f"{EXPERTS} experts, {TOP} taken", (2, 64) if scope.quick else (4, 256)
    for task, part in (("forward", ""), ("train", "training")):
        yield Cell("experts", task, name, mixed, batch, length, "float32", whole, part=part, memory=True)
    yield Cell("experts", "continue", name, mixed, 1, length, "float32", steps, SHORT, memory=True)
