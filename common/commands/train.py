"""`parallax train`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options
from common.config import TrainConfig

_DEFAULT = TrainConfig()


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint and log.")] = Path("out/train"),
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, made by any backend.")] = None,
    backend: options.Backend = "torch",
    preset: Annotated[str, typer.Option(help="Model to start anew: nano, gpt2-124m, book-124m, …")] = "nano",
    weights: Annotated[Path | None, typer.Option(help="Start from these weights instead.")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the weights cannot tell.")] = None,
    data: Annotated[
        str, typer.Option(help="pydoc (Python's own reference), a UTF-8 file or folder, or a folder with a token file.")
    ] = "pydoc",
    length: Annotated[int | None, typer.Option(help="Tokens per window (default: the model's context).")] = None,
    dropout: Annotated[float | None, typer.Option(help="One rate for all three places.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = _DEFAULT.steps,
    until: Annotated[int | None, typer.Option(help="Stop early, before this step; resume goes on.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per micro-batch.")] = _DEFAULT.batch_size,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = _DEFAULT.accumulate,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = _DEFAULT.learning_rate,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = _DEFAULT.schedule,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up.")] = _DEFAULT.warmup_steps,
    weight_decay: Annotated[float, typer.Option(help="Decoupled decay of matrices.")] = _DEFAULT.weight_decay,
    clip_norm: Annotated[float, typer.Option(help="Limit of the gradient norm; 0 is none.")] = _DEFAULT.clip_norm,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = _DEFAULT.seed,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out text.")] = 50,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    mode: options.Mode = "default",
    more: options.Set = None,
    attention: options.Attention = None,
    compile: options.Compile = None,
    layers: options.Layers = None,
    threads: options.Threads = None,
) -> None:
    """Train a model in one framework; stop whenever you like and go on, in the same framework or in the other."""
    from common import backend as door
    from common import params
    from common import run as runs
    from common.config import preset as preset_of
    from common.data import tokens
    from common.errors import UserError
    from common.tokenizers import FROM_FILES, holds
    from common.tokenizers import tokenizer as of_name

    execution = options.execution(backend, device, dtype, attention, compile, threads, layers, mode, more)
    for name, value in {"--eval-every": eval_every, "--save-every": save_every}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; allowed is a whole number > 0.")
    if resume is not None:
        _only_how(context)
        start = runs.resume(resume)
        settings = TrainConfig.from_dict(start.record["train"])
        data, length, tokenizer = (start.record[key] for key in ("source", "length", "tokenizer"))
        out = resume if context.get_parameter_source("out").name == "DEFAULT" else out
    else:
        if tokenizer is None and tokens.holds(data):
            tokenizer = tokens.read(data).head["tokenizer"]["name"]
            vocab = Path(data) if vocab is None and holds(Path(data), tokenizer) else vocab
        if weights is not None and context.get_parameter_source("preset").name == "COMMANDLINE":
            raise UserError("--preset and --weights each name a model; give one of them.")
        if weights is None:
            config = preset_of(preset)
            config = config if heads is None else config.with_(num_heads=heads)
            if tokenizer in FROM_FILES:
                config = config.with_(vocab_size=of_name(tokenizer, vocab).vocab_size)
            start = runs.Start(config, params.initialise(config, seed))
        else:
            found, _ = runs.weights_of(weights, heads)
            start = runs.Start(found.config, found.weights)
        if dropout is not None:
            rates = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), dropout)
            start.config = start.config.with_(**rates)
        settings = TrainConfig(
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            final_rate=learning_rate / 10,
            weight_decay=weight_decay,
            clip_norm=clip_norm or None,
            seed=seed,
        )
    backend_of = door.load(backend)
    if resume is None and (out / runs.CHECKPOINT).exists():
        raise UserError(f"{out} already holds a run; go on with --resume {out}, or choose another --out.")
    encoder = options.tokenizer_for(tokenizer, vocab, start.config.vocab_size, weights or resume)
    length = length or start.config.context_length
    door.check_length(length, start.config)
    text = runs.prepare_data(data, encoder, length, settings, start.record and start.record["data"])
    until = settings.steps if until is None else min(until, settings.steps)
    if start.step >= until:
        raise UserError(f"The run is at step {start.step} and was to stop at {until}: there is nothing left to do.")

    runs.check_folder(out)
    if tokenizer in FROM_FILES:  # whoever goes on with this run finds its vocabulary there
        encoder.save(out)
    model = backend_of.build(start.config, start.weights, execution)
    model.start_training(settings, start.slots, start.step)
    log, folder = list(start.log), runs.RunFolder(out)

    def save(step: int) -> None:
        record = {
            "step": step,
            "backend": backend,
            "execution": execution.to_dict(),
            "train": settings.to_dict(),
            "source": data,
            "corpus": text.text.describe(),
            "tokenizer": encoder.name,
            "length": length,
            "data": text.batches.state(),
        }
        folder.save(model, record, log)

    done = start.step
    options.show(
        f"{params.count(start.config):,} parameters, {backend_of.title} on {device}, {execution.dtype};"
        f" {text.text.name}: {len(text.batches.windows)} windows of {length}; steps {start.step} to {until}"
    )
    steps_of = runs.train(model, text, settings, start=start.step, until=until, eval_every=eval_every)
    with options.Patience() as patience:
        for step in options.progress(steps_of, until - start.step, lambda step: f"loss {step.loss:.4f}"):
            log.append({**step.to_dict(), "backend": backend})
            done = step.step + 1
            if step.held_out is not None:
                words = f"held-out {step.held_out:.4f}  perplexity {step.perplexity:.2f}"
                options.show(f"step {done:>6}  loss {step.loss:.4f}  {words}")
            if patience.asked and done < until:
                save(done)
                options.show(f"Stopped after {done} steps; go on with: parallax train --resume {out}")
                raise KeyboardInterrupt
            if done % save_every == 0 and done < until:
                save(done)
    save(done)
    print(f"Step {done} of {settings.steps}: checkpoint and log are in {out}")
    if done < settings.steps:
        print(f"Go on with: parallax train --resume {out} (any backend)")


def _only_how(context: typer.Context) -> None:
    """A resumed run takes what it trains from its checkpoint; only how and where it runs may be chosen."""
    from common.errors import UserError

    free = {"resume", "out", "backend", "until", "eval_every", "save_every", "vocab"}
    free |= {"device", "dtype", "attention", "compile", "layers", "threads", "mode", "more"}
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in free]
    if fixed:
        raise UserError(f"A resumed run keeps its settings; leave out {', '.join(fixed)}, or start a new run.")
