"""`parallax respond`"""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import groups, options

_HOW = groups.Ways()
PARTS = ("test", "validation", "train", "all")


@groups.grouped
def respond(
    weights: Annotated[Path, typer.Option(help="A run of `parallax finetune instruct`, or weights of any known kind.")],
    data: Annotated[str | None, typer.Option(help="Rows to answer (default: those of the run).")] = None,
    part: Annotated[str, typer.Option(help="Which of them: test, validation, train or all.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most so many rows.")] = None,
    style: Annotated[str | None, typer.Option(help="alpaca or phi3 (default: that of the run, or alpaca).")] = None,
    shares: Annotated[str | None, typer.Option(help="Shares of training and test (default: those of the run).")] = None,
    out: Annotated[Path, typer.Option(help="File for the rows with their answers.")] = Path("out/responses.json"),
    backend: options.Backend = "torch",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens with this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws; equal in every backend.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows that are answered at once.")] = 8,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the file cannot tell.")] = None,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    adapter: options.Adapter = None,
    no_adapters: options.NoAdapters = False,
    how: groups.Ways = _HOW,
) -> None:
    """Answer instructions and keep rows and answers as JSON; a call that was interrupted goes on where it was."""
    import json

    from common import backend as door
    from common import run as runs
    from common.commands.finetune import tuning
    from common.config import SamplingConfig
    from common.data import instructions
    from common.data.preferences import fitting, read_preferences
    from common.errors import UserError, unknown
    from common.files import place_of_file, write_text
    from common.tuning import answers

    if part not in PARTS:
        raise unknown("part of the data", part, PARTS)
    for name, value in (("--batch-size", batch_size), ("--limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; allowed is a whole number > 0.")
    place_of_file(out)
    execution = how.execution(backend)
    found, record = runs.weights_of(weights, heads)
    if found.config.num_labels is not None:
        raise UserError(f"{weights} classifies texts; `parallax classify` asks it.")
    found = options.with_adapters(found, weights, adapter, no_adapters)
    known = _rows_of(record)
    style = style or known.get("style", tuning.STYLE)
    encoder = options.tokenizer_for(
        tokenizer or options.tokenizer_of(record, weights), vocab, found.config.vocab_size, weights
    )
    if record.get("kind") == "prefer" and data is None:  # the rows that it was trained and tested on
        rows = read_preferences(known["data"])
        length = tuning.length_of(record)
        rows = [rows[i] for i in fitting(rows, encoder, style=known["style"], length=length)]
    else:
        rows = instructions.read_instructions(data or known.get("data", "instruction-data"))
    if part != "all":
        rows = getattr(tuning.split_rows(rows, shares or known.get("shares", "0.85,0.1")), part)
    rows = rows[:limit]
    instructions.style_of(style)
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, end_token=tuning.end_of(encoder), **drawn)
    kept = [one.name for one in found.config.adapters]
    asked = {"weights": _identity(weights), "adapters": kept, "rows": rows, "style": style, "batch": batch_size}
    asked = json.dumps({**asked, "sampling": sampling.to_dict(), "execution": execution.to_dict(), "in": backend})
    partial = out.with_name(f"{out.name}.partial")
    done = _taken_up(partial, asked, batch_size)
    room = answers.rooms(found.config.context_length, encoder, rows, style, max_new_tokens)
    full, fewer = room.count(0), sum(0 < one < max_new_tokens for one in room)
    if full:
        options.show(f"{full} prompts fill the context of {found.config.context_length} tokens and get no answer.")
    if fewer:
        options.show(f"The context leaves {fewer} answers fewer than --max-new-tokens {max_new_tokens}.")
    model = door.load(backend).build(found.config, found.weights, execution)
    if done:
        options.show(f"{len(done)} of {len(rows)} answers are there already.")
    made = answers.answers(model, encoder, rows[len(done) :], style, sampling, batch_size)
    for one in options.progress(made, len(rows) - len(done), lambda one: one["model_response"][:30]):
        done.append(one)
        if len(done) % batch_size == 0:
            write_text(partial, "".join(f"{line}\n" for line in (asked, *map(json.dumps, done))))
    write_text(out, json.dumps(done, indent=2, ensure_ascii=False) + "\n")
    partial.unlink(missing_ok=True)
    for one in done[:3]:
        options.show(f"\n{instructions.prompt(one, style).strip()}\n>> {one['model_response']}")
    empty = sum(not one["model_response"] for one in done)
    print(f"{len(done)} answers ({empty} of them empty) are in {out}.")


def _rows_of(record: dict[str, Any]) -> dict[str, Any]:
    """Which rows a run of instructions or preferences was trained on, and in which style; of others nothing."""
    from dataclasses import asdict

    from common.commands.finetune import tuning
    from common.commands.finetune.instruct import Instructions
    from common.commands.finetune.prefer import Preferences

    kind = {"instruct": Instructions, "prefer": Preferences}.get(record.get("kind"))
    if kind is None:
        return {}
    found = asdict(tuning.again(kind, record))
    return {**found, "style": found["style"] or tuning.STYLE}


def _identity(weights: Path) -> dict[str, Any]:
    """Which files the weights are, by name, size and time."""
    files = sorted(weights.rglob("*.safetensors")) if weights.is_dir() else [weights]
    return {"path": str(weights), "files": [[str(one), one.stat().st_size, one.stat().st_mtime_ns] for one in files]}


def _taken_up(path: Path, asked: str, batch: int) -> list[dict[str, Any]]:
    """The answers of an earlier call for the same: whole batches, since what is drawn depends on the place in one."""
    import json

    if not path.is_file():
        return []
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except ValueError:
        return []
    return rows[: len(rows) // batch * batch] if first == asked else []
