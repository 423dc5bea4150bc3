"""`parallax train`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import groups

_RUN, _MODEL, _PLAN, _HOW = groups.Run(), groups.Model(), groups.Plan(), groups.How()
_LEARNING = groups.Learning()


@groups.grouped
def train(
    context: typer.Context,
    run: groups.Run = _RUN,
    model: groups.Model = _MODEL,
    variant: Annotated[
        str | None, typer.Option(help="Other layers of that model, as in '3*gated_deltanet + grouped_query'.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="pydoc (Python's own reference), the-verdict, tinyshakespeare, a file or folder of text, token files."
        ),
    ] = "pydoc",
    length: Annotated[int | None, typer.Option(help="Tokens per window (default: the model's context).")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window of training to the next (default: the length).")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the text, at its end, that is held out.")] = 0.1,
    pad_vocabulary: Annotated[
        int | None, typer.Option(help="Round the vocabulary up to a multiple, as in 64, by rows that no token has.")
    ] = None,
    learning: groups.Learning = _LEARNING,
    plan: groups.Plan = _PLAN,
    eval_windows: Annotated[int, typer.Option(help="Windows of held-out text that are evaluated.")] = 8,
    sample_every: Annotated[int, typer.Option(help="Steps between samples of text; 0 is none.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="What samples go on from (default: held-out text).")] = None,
    how: groups.How = _HOW,
) -> None:
    """Train a model in one framework; stop whenever you like and go on, in the same framework or in the other."""
    from common import backend as door
    from common import run as runs
    from common.commands import options, running
    from common.commands.finetune import tuning
    from common.config import TrainConfig
    from common.data import tokens
    from common.errors import UserError
    from common.tokenizers import holds
    from common.weights.grow import padded

    positive = {"--eval-windows": eval_windows, "--pad-vocabulary": 1 if pad_vocabulary is None else pad_vocabulary}
    positive["--stride"] = 1 if stride is None else stride
    here = running.Running(context, "pretrain", run, how, positive)
    here.one_of_both(plan)
    if sample_every < 0:
        raise UserError(f"--sample-every is {sample_every}; allowed is a whole number >= 0 (0 is none).")
    named = model.config is not None or model.weights is not None
    here.take_up(plan, named)
    if prompt is not None and not sample_every:
        asked = here.start is None and not here.typed("sample_every")  # else samples were left out on purpose
        if asked or here.typed("prompt"):
            raise UserError("--prompt is what samples go on from, and there are none: give --sample-every, too.")
    less = learning.train in groups.TRAINED and learning.train != "all"
    if here.start is None and model.weights is None and less:
        raise UserError(
            f"--train {learning.train} leaves most of a model as it is, and a new one has learned nothing yet: give"
            " --weights, or leave it out."
        )
    tokenizer, vocab = model.tokenizer, model.vocab
    if here.start is not None:
        start = here.start
        settings = TrainConfig.from_dict(start.record["train"])
        data, length, tokenizer = (start.record[key] for key in ("source", "length", "tokenizer"))
        held_out = start.record.get("held_out", runs.HELD_OUT)  # older runs say nothing of it
        stride = start.record.get("stride")
    else:
        if tokenizer is None and tokens.holds(data):
            tokenizer = tokens.read(data).head["tokenizer"]["name"]
            vocab = Path(data) if vocab is None and holds(Path(data), tokenizer) else vocab
        start = here.model(model, plan.seed, tokenizer, vocab, variant)
        if model.weights is not None and model.tokenizer is None and model.vocab is None and tokens.holds(data):
            options.check_tokens(tokens.read(data), here.origin, model.weights)
        tokenizer = here.tokenizer(model) if tokenizer is None else tokenizer
    encoder = options.tokenizer_for(tokenizer, vocab, start.config.vocab_size, model.weights or here.resumed)
    if sample_every and prompt is not None and not len(encoder.encode(prompt)):
        raise UserError("The --prompt is empty; give a text to go on from, or leave it out.")
    if here.start is None:
        if pad_vocabulary is not None:
            start.config, start.weights = padded(start.config, start.weights, pad_vocabulary, plan.seed)
        if less:
            start.config, start.weights = tuning.merged(here, model, start.config, start.weights)
        start.config, start.weights, trained = tuning.learns(start.config, start.weights, learning, plan.seed)
        settings = plan.train_config(trained=trained)
    here.execution.spread.check(start.config, settings)
    backend = here.backend()
    length = length or start.config.context_length
    door.check_length(length, start.config)
    state = start.record and start.record["data"]
    text = runs.prepare_data(data, encoder, length, settings, state, held_out, stride)
    settings = here.counted(settings, plan.epochs, text.batches)
    tuning.show_learning(here, start.config, settings)

    record = {
        "source": data,
        "corpus": text.text.describe(),
        "tokenizer": encoder.name,
        "length": length,
        "stride": stride,
    }
    task = running.Task(
        kind="pretrain",
        batches=text.batches,
        length=length,
        record={**record, "held_out": held_out},
        words=f"{text.text.name}: {len(text.batches.windows)} windows of {length}"
        + (f", one every {stride}" if stride else ""),
        evaluate=lambda model: {"held_out": runs.held_out_loss(model, text.held_out, eval_windows)},
        told=lambda found: f"held-out {found['held_out']:.4f}  perplexity {runs.perplexity(found['held_out']):.2f}",
        sample=lambda model: runs.sample(model, encoder, text, prompt, running.SAMPLE, settings.seed),
        sample_every=sample_every,
        # whoever goes on with this run finds its vocabulary there
        files=tuning.files_of(encoder),
        mfu=True,
    )
    own = {"steps": settings.steps, "epochs": None, "warmup_steps": settings.warmup_steps}
    own["preset"] = None if named else model.preset
    here.go(task, start, settings, backend, own)
