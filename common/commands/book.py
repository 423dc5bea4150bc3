"""`parallax book`"""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

_SAMPLE = 50  # tokens that go on from the prompt


def book(
    data: Annotated[str, typer.Option(help="the-verdict, or a file of text.")] = "the-verdict",
    preset: Annotated[str, typer.Option(help="Model: book-124m, or a smaller one to try.")] = "book-124m",
    length: Annotated[int, typer.Option(help="Tokens per window, and of the model's context.")] = 256,
    dropout: Annotated[float, typer.Option(help="One rate for all three places.")] = 0.1,
    epochs: Annotated[int, typer.Option(help="Times that all windows are seen.")] = 10,
    more_epochs: Annotated[
        int, typer.Option(help="Go on for so many, seeded anew, by the optimizer as it is (exercise 5.4).")
    ] = 0,
    shuffle: Annotated[bool, typer.Option(help="Windows in another order every epoch.")] = True,
    batch_size: Annotated[int, typer.Option(help="Windows per step.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="AdamW's rate.")] = 4e-4,
    weight_decay: Annotated[float, typer.Option(help="Decoupled decay, of all parameters.")] = 0.1,
    schedule: Annotated[str, typer.Option(help="constant, or cosine as in appendix D.")] = "constant",
    warmup_steps: Annotated[
        int, typer.Option(help="Steps of a linear warm-up, in which no gradients are clipped.")
    ] = 0,
    initial_rate: Annotated[float, typer.Option(help="Rate at which the warm-up begins.")] = 1e-5,
    final_rate: Annotated[float, typer.Option(help="Rate at which the cosine ends.")] = 1e-5,
    clip_norm: Annotated[float, typer.Option(help="Largest common norm of gradients; 0: as they are.")] = 0.0,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 5,
    eval_batches: Annotated[int, typer.Option(help="Batches of either part that are evaluated.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of PyTorch's global generator.")] = 123,
    prompt: Annotated[
        str, typer.Option(help="What the model goes on from after every epoch.")
    ] = "Every effort moves you",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="gpt2, bytes, … (default: book, book-greedy or words where --vocab is of them, else gpt2)."),
    ] = None,
    vocab: options.Vocab = None,
    threads: options.Threads = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the log (default: none).")] = None,
) -> None:
    """The book's training runs (chapter 5, appendix D) with PyTorch's own random numbers, in the book's order."""
    from common import backend as door
    from common import run as runs
    from common.config import PRESETS, SamplingConfig, TrainConfig
    from common.config import preset as preset_of
    from common.data.corpora import corpus, split
    from common.errors import UserError
    from common.tokenizers import tokenizer as of_name

    positive = {"--epochs": epochs, "--eval-every": eval_every, "--eval-batches": eval_batches, "--length": length}
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} is {value}; allowed is a whole number > 0.")
    if more_epochs < 0:
        raise UserError(f"--more-epochs is {more_epochs}; allowed is a whole number >= 0.")
    if schedule == "constant" and warmup_steps:
        raise UserError("A constant rate has no warm-up; take --schedule cosine, or constant_with_warmup.")
    train = TrainConfig(
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        schedule=schedule,
        warmup_steps=warmup_steps,
        initial_rate=initial_rate,
        final_rate=final_rate,
        clip_norm=clip_norm or None,
        clip_from=warmup_steps,
    )
    execution = options.execution("torch", "cpu", None, threads=threads)
    if tokenizer is None:
        size = PRESETS["gpt2-124m"].vocab_size  # unless another one is named, it is GPT-2's
        tokenizer = options.kind_in([] if vocab is None else [vocab], size) or "gpt2"
    encoder = of_name(tokenizer, vocab)
    rates = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), dropout)
    config = preset_of(preset).with_(vocab_size=encoder.vocab_size, context_length=length, **rates)
    if config.tie_embeddings or config.positions != "learned":
        raise UserError(
            f"The preset {preset} is no model of the book's: its head is its own, and its positions learned."
        )
    if not len(encoder.encode(prompt)):
        raise UserError("The --prompt is empty; give a text to go on from.")
    kept, held_out = map(encoder.encode, split(corpus(data).text, runs.HELD_OUT))
    log, folder = [], None
    if out is not None:
        runs.check_folder(out)
        folder = runs.RunFolder(out)
        if folder.checkpoint.exists():
            raise UserError(f"{out} already holds a run, whose log is its own; choose another --out.")
    options.show(f"{len(kept):,} tokens to train on, {len(held_out):,} held out")
    model, lines = door.load("torch").book_run(
        config,
        execution,
        kept,
        held_out,
        train,
        epochs=epochs,
        more=more_epochs,
        every=eval_every,
        batches=eval_batches,
        shuffle=shuffle,
    )
    start = encoder.encode(prompt)[-length:].tolist()
    alone = folder.alone() if folder is not None else contextlib.nullcontext()
    logged = folder.logged(log, options.show) if folder is not None else contextlib.nullcontext()
    over = 0  # epochs
    with alone, logged:
        for line in lines:
            if line is None:  # an epoch is over
                over += 1
                (row,) = model.generate([start], SamplingConfig(_SAMPLE, overflow="crop"))
                print(prompt + encoder.decode(row).replace("\n", " "), flush=True)
                continue
            print(
                f"Ep {line.epoch} (Step {line.step:06d}): Train loss {line.loss:.3f}, Val loss {line.held_out:.3f}",
                flush=True,
            )
            log.append({"epoch": over + 1, "step": line.at, "loss": line.loss, "held_out": line.held_out})
            if folder is not None:
                folder.follow(log)
        if folder is not None:
            folder.write_log(log)
