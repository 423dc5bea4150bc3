"""`parallax train`"""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from common.commands import options, settings
from common.config import TrainConfig

_DEFAULT = TrainConfig()
_SAMPLE = 64  # tokens of a sample


def train(
    context: typer.Context,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            is_eager=True,
            callback=settings.of_file,
            help="TOML file whose keys are these options; what the command line says goes before it.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint and log.")] = Path("out/train"),
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, made by any backend.")] = None,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Go on with this run if --out holds it; torchrun's restarts do so anyway."),
    ] = False,
    backend: options.Backend = "torch",
    preset: Annotated[str, typer.Option(help="Model to start anew: nano, gpt2-124m, book-124m, …")] = "nano",
    config: Annotated[Path | None, typer.Option(help="Model to start anew: a JSON file, as for estimate.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="Other layers of that model, as in '3*gated_deltanet + grouped_query'.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Start from these weights instead.")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the weights cannot tell.")] = None,
    data: Annotated[
        str,
        typer.Option(
            help="pydoc (Python's own reference), the-verdict, tinyshakespeare, a file or folder of text, token files."
        ),
    ] = "pydoc",
    length: Annotated[int | None, typer.Option(help="Tokens per window (default: the model's context).")] = None,
    dropout: Annotated[float | None, typer.Option(help="One rate for all three places.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = _DEFAULT.steps,
    epochs: Annotated[int | None, typer.Option(help="Times that all windows are seen, in place of steps.")] = None,
    until: Annotated[int | None, typer.Option(help="Stop early, before this step; resume goes on.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per micro-batch.")] = _DEFAULT.batch_size,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = _DEFAULT.accumulate,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the matrices inside layers.")] = _DEFAULT.optimizer,
    momentum: Annotated[float, typer.Option(help="Muon's decay of the mean gradient.")] = _DEFAULT.momentum,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = _DEFAULT.learning_rate,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = _DEFAULT.schedule,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up.")] = _DEFAULT.warmup_steps,
    initial_rate: Annotated[float, typer.Option(help="Rate at which the warm-up begins.")] = _DEFAULT.initial_rate,
    final_rate: Annotated[float | None, typer.Option(help="Rate at the end (default: a tenth of the peak).")] = None,
    beta1: Annotated[float, typer.Option(help="AdamW's decay of the mean gradient.")] = _DEFAULT.beta1,
    beta2: Annotated[float, typer.Option(help="AdamW's decay of the mean squared gradient.")] = _DEFAULT.beta2,
    adam_eps: Annotated[float, typer.Option(help="AdamW's epsilon.")] = _DEFAULT.adam_eps,
    weight_decay: Annotated[float, typer.Option(help="Decoupled decay.")] = _DEFAULT.weight_decay,
    decay: Annotated[str, typer.Option(help="What decays: matrices, or all (as in the book).")] = _DEFAULT.decay,
    clip_norm: Annotated[float, typer.Option(help="Limit of the gradient norm; 0 is none.")] = _DEFAULT.clip_norm,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = _DEFAULT.seed,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out text.")] = 50,
    eval_windows: Annotated[int, typer.Option(help="Windows of held-out text that are evaluated.")] = 8,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    keep: Annotated[int, typer.Option(help="Checkpoints to keep: the newest ones.")] = 1,
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Keep the one with the lowest held-out loss.")] = False,
    sample_every: Annotated[int, typer.Option(help="Steps between samples of text; 0 is none.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="What samples go on from (default: held-out text).")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
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
    layout: options.Layout = None,
) -> None:
    """Train a model in one framework; stop whenever you like and go on, in the same framework or in the other."""
    from common import backend as door
    from common import gpu, meter, params
    from common import layout as layouts
    from common import run as runs
    from common.commands import variations
    from common.config import preset as preset_of
    from common.data import tokens
    from common.errors import UserError
    from common.files import write_text
    from common.tokenizers import FROM_FILES, holds
    from common.tokenizers import tokenizer as of_name

    execution = options.execution(backend, device, dtype, attention, compile, threads, layers, mode, more, layout)
    leads = layouts.leads()
    show = options.show if leads else _silent
    positive = {"--eval-every": eval_every, "--eval-windows": eval_windows, "--save-every": save_every, "--keep": keep}
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} is {value}; allowed is a whole number > 0.")
    if epochs is not None and (epochs < 1 or context.get_parameter_source("steps").name != "DEFAULT"):
        raise UserError(f"--epochs {epochs} stands in place of --steps, and is a whole number > 0.")
    if sample_every < 0:
        raise UserError(f"--sample-every is {sample_every}; allowed is a whole number >= 0 (0 is none).")
    again, there = layouts.restarted(), (out / runs.CHECKPOINT).exists()
    automatic = resume is None and (auto_resume or again) and there
    if automatic:
        if not (out / settings.FILE).is_file():
            raise UserError(f"{out} holds a run without {settings.FILE}; go on with --resume {out}.")
        free = _FREE | ({"epochs", "steps"} if epochs is not None else {"epochs"})
        own = {} if config is None and weights is None else {"preset": None}
        other = settings.changed(context, out / settings.FILE, free, **own)
        if other:
            raise UserError(f"{out} holds a run with other settings: {'; '.join(other)}.")
        resume = out
    elif resume is not None:
        _only_how(context, resume)
        if there and context.get_parameter_source("out").name != "DEFAULT" and out.resolve() != resume.resolve():
            if not again:
                raise UserError(f"{out} already holds a run; choose another --out.")
            resume = out
    if resume is not None:
        start = runs.resume(resume)
        plan = TrainConfig.from_dict(start.record["train"])
        data, length, tokenizer = (start.record[key] for key in ("source", "length", "tokenizer"))
        out = resume if context.get_parameter_source("out").name == "DEFAULT" else out
    else:
        if tokenizer is None and tokens.holds(data):
            tokenizer = tokens.read(data).head["tokenizer"]["name"]
            vocab = Path(data) if vocab is None and holds(Path(data), tokenizer) else vocab
        named = [one for one in ("preset", "config", "weights") if context.get_parameter_source(one).name != "DEFAULT"]
        if len(named) > 1:
            raise UserError(f"--{named[0]} and --{named[1]} each name a model; give one of them.")
        if weights is None:
            model_config = preset_of(preset) if config is None else variations.read(config)
            if heads is not None:
                model_config = model_config.with_(num_heads=heads)
            if variant is not None:
                _, model_config = variations.varied(model_config, variant)
            if tokenizer in FROM_FILES:
                model_config = model_config.with_(vocab_size=of_name(tokenizer, vocab).vocab_size)
            start = runs.Start(model_config, params.initialise(model_config, seed))
        elif variant is not None:
            raise UserError("--variant is for a new model, and --weights has one; leave one of them out.")
        else:
            found, _ = runs.weights_of(weights, heads)
            start = runs.Start(found.config, found.weights)
        if dropout is not None:
            rates = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), dropout)
            start.config = start.config.with_(**rates)
        plan = TrainConfig(
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            initial_rate=initial_rate,
            final_rate=learning_rate / 10 if final_rate is None else final_rate,
            optimizer=optimizer,
            momentum=momentum,
            beta1=beta1,
            beta2=beta2,
            adam_eps=adam_eps,
            weight_decay=weight_decay,
            decay=decay,
            clip_norm=clip_norm or None,
            seed=seed,
        )
    execution.spread.check(start.config, plan)
    backend_of = door.load(backend)
    if resume is None and (out / runs.CHECKPOINT).exists():
        raise UserError(f"{out} already holds a run; go on with --resume {out}, or choose another --out.")
    encoder = options.tokenizer_for(tokenizer, vocab, start.config.vocab_size, weights or resume)
    length = length or start.config.context_length
    door.check_length(length, start.config)
    text = runs.prepare_data(data, encoder, length, plan, start.record and start.record["data"])
    if epochs is not None:
        whole = epochs * (len(text.batches.windows) // (plan.batch_size * plan.accumulate))
        if automatic and whole != plan.steps:
            raise UserError(f"{out} holds a run of {plan.steps} steps, and {epochs} epochs are {whole}.")
        plan = plan.with_(steps=whole) if resume is None else plan
    until = plan.steps if until is None else min(until, plan.steps)
    if start.step >= until and not (auto_resume or again):
        raise UserError(f"The run is at step {start.step} and was to stop at {until}: there is nothing left to do.")

    runs.check_folder(out)
    board = options.tensorboard(out) if tensorboard and leads else contextlib.nullcontext()
    model = backend_of.build(start.config, start.weights, execution)
    if tokenizer in FROM_FILES and leads:  # whoever goes on with this run finds its vocabulary there
        encoder.save(out)
    model.start_training(plan, start.slots, start.step)
    log, folder = list(start.log), runs.RunFolder(out, keep, keep_best) if leads else None
    best = runs.lowest(log)
    speed = meter.of_run(start.config, plan, length, execution, gpu.name(device) if device != "cpu" else None)

    def save(step: int, best: bool = False) -> None:
        record = {
            "step": step,
            "backend": backend,
            "execution": execution.to_dict(),
            "train": plan.to_dict(),
            "source": data,
            "corpus": text.text.describe(),
            "tokenizer": encoder.name,
            "length": length,
            "data": text.batches.state(),
        }
        state = runs.State.of(model)  # all processes put it together
        if folder is not None:
            folder.save(state, record, log, best)

    done = start.step
    show(
        f"{params.count(start.config):,} parameters, {backend_of.title} on {_where(execution)}, {execution.dtype};"
        f" {text.text.name}: {len(text.batches.windows)} windows of {length}; steps {start.step} to {until}"
    )
    steps_of = runs.train(
        model, text, plan, start=start.step, until=until, eval_every=eval_every, eval_windows=eval_windows
    )
    alone = folder.alone() if folder is not None else contextlib.nullcontext()
    with alone, options.Patience(layouts.processes()[1] == 1) as patience, board as shown:
        if resume is None and leads:
            other = config is not None or weights is not None
            own = {"steps": plan.steps, "epochs": None, "preset": None if other else preset}
            write_text(out / settings.FILE, settings.text(context, **own))
        label = (lambda step: f"loss {step.loss:.4f}{speed}") if leads else None
        for step in options.progress(steps_of, until - start.step, label):
            done = step.step + 1
            speed.add(step.seconds)
            line = {**step.to_dict(), "backend": backend, "tokens_per_second": speed.tokens_per_second}
            if sample_every and done % sample_every == 0:
                line["sample"] = runs.sample(model, encoder, text, prompt, _SAMPLE, plan.seed)
                show(f"step {done:>6}  {line['sample']!r}")
            log.append({name: value for name, value in line.items() if value is not None})
            if shown is not None:
                shown(done, log[-1])
            better = step.held_out is not None and step.held_out < best
            if step.held_out is not None:
                best = min(best, step.held_out)
                words = f"held-out {step.held_out:.4f}  perplexity {step.perplexity:.2f}{speed}"
                show(f"step {done:>6}  loss {step.loss:.4f}  {words}")
            if patience.asked and done < until:
                save(done, better)
                show(f"Stopped after {done} steps; go on with: parallax train --resume {out}")
                raise KeyboardInterrupt
            if done < until and (done % save_every == 0 or (better and keep_best)):
                save(done, better)
        if done > start.step:
            save(done, better)
    if execution.layout:
        model.close()
    if not leads:
        return
    print(f"Step {done} of {plan.steps}: checkpoint and log are in {out}; see them with: parallax curves {out}")
    if done < plan.steps:
        print(f"Go on with: parallax train --resume {out} (any backend)")


_FREE = {"resume", "out", "backend", "until", "eval_every", "eval_windows", "save_every", "vocab", "settings_file"}
_FREE |= {"device", "dtype", "attention", "compile", "layers", "threads", "mode", "more", "layout", "auto_resume"}
_FREE |= {"keep", "keep_best", "sample_every", "prompt", "tensorboard"}


def _silent(*parts: object) -> None:
    """For processes that do not lead: one tells for all."""


def _where(execution) -> str:
    """The devices of a run, in words."""
    return f"{execution.device} ({execution.layout})" if execution.layout else execution.device


def _only_how(context: typer.Context, folder: Path) -> None:
    """A resumed run takes what it trains from its checkpoint; only how and where it runs may be chosen."""
    from common.errors import UserError

    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in _FREE]
    if fixed:
        raise UserError(f"A resumed run keeps its settings; leave out {', '.join(fixed)}, or start a new run.")
    other = settings.others(context, folder / settings.FILE, _FREE)
    if other:
        raise UserError(f"A resumed run keeps its settings, and the file has others: {'; '.join(other)}.")
