"""What adapters cost and save: a training step of LoRA against full training, merged against unmerged decoding, a base
in 4 bits against a plain one, and PEFT's LoRA on transformers' GPT-2."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, TITLES, Scope, outside, wing
from common.adapters import Adapter

RANK = 16
EVERYWHERE = Adapter(targets=("model.layers.*",), rank=RANK, alpha=float(RANK))
# what PEFT's adapters on c_attn would be for queries, keys and values together is another function
SHARED = EVERYWHERE.with_(targets=("*.o_proj", "*.up_proj", "*.down_proj"))
SIZES = {"nano": (4, 128), "gpt2-124m": (1, 256)}
MAIN = {"nano": (64, 32), "gpt2-124m": (128, 64)}  # prompt and new tokens
STEPS = ("", "+nf4")
FOUR_BITS = "uneven nf4"  # weights that 4 bits stand for, so that both kinds of base compute the same


def cells(scope: Scope) -> Iterator[Cell]:
    """Steps with their memory, then decoding one prompt, both wings in their fast mode."""
    model, wings = scope.main, tuple(TITLES)
    config, size = scope.config(model), SIZES.get(model, (1, 256))
    prompt, new = MAIN.get(model, (128, 64))
    adapted = (f"LoRA rank {RANK}", config.with_(adapters=EVERYWHERE))
    every = (None, adapted)

    def cell(task, part, chosen, own=config, shape=size, more=0, **options) -> Cell:
        return Cell("finetune", task, model, own, *shape, "float32", chosen, more, part=part, **options)

    full = tuple(wing(who, FASTEST, model=own) for who in wings for own in every)
    yield cell("train", "LoRA and full", full, memory=True)
    theirs = outside("peft", "PEFT on transformers", "benchmarks.outside.peft_gpt2:backend", "transformers")
    both = (*(wing(who, FASTEST) for who in wings), *theirs)
    yield cell("train", "LoRA of o, up and down", both, config.with_(adapters=SHARED), memory=True)
    bases = tuple(wing(who, f"{FASTEST}{how}") for who in wings for how in STEPS)
    yield cell("train", "LoRA, base in NF4", bases, adapted[1], memory=True, weights=FOUR_BITS)
    merged = tuple(
        wing(who, FASTEST, model=own) for who in wings for own in (("merged", config), ("unmerged", adapted[1]))
    )
    yield cell("decode", "merged and unmerged", merged, shape=(1, prompt), more=new)
    yield cell("decode", "base in NF4", bases, shape=(1, prompt), more=new, memory=True, weights=FOUR_BITS)
