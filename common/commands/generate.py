"""`parallax generate`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def generate(
    weights: Annotated[Path, typer.Option(help="Weights of any known kind, or a run of `parallax train`.")],
    prompt: Annotated[list[str], typer.Option(help="Text to continue; give it several times for a batch.")],
    backend: options.Backend = "torch",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens with this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws; equal in every backend.")] = 0,
    stop: Annotated[bool, typer.Option(help="Stop at the tokenizer's end token.")] = True,
    overflow: Annotated[str, typer.Option(help="When the context is full: error, or crop (oldest first).")] = "error",
    cache: Annotated[bool, typer.Option(help="Keep keys and values instead of recomputing them.")] = True,
    prefill_chunk: Annotated[int | None, typer.Option(help="Read the prompt in pieces of this many tokens.")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the file cannot tell.")] = None,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    adapter: options.Adapter = None,
    no_adapters: options.NoAdapters = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    mode: options.Mode = "default",
    more: options.Set = None,
    attention: options.Attention = None,
    compile: options.Compile = None,
    layers: options.Layers = None,
    threads: options.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print texts and token ids as JSON.")] = False,
) -> None:
    """Continue a text with trained weights; a single one streams as it is made."""
    from json import dumps

    from common import backend as door
    from common.config import SamplingConfig
    from common.errors import UserError
    from common.run import weights_of
    from common.tokenizers import Stream

    run = options.execution(backend, device, dtype, attention, compile, threads, layers, mode, more)
    found, text = weights_of(weights, heads=heads)
    if found.config.num_labels is not None:
        raise UserError(f"{weights} classifies texts; `parallax classify` asks it.")
    found = options.with_adapters(found, weights, adapter, no_adapters)
    encoder = options.tokenizer_for(
        tokenizer or options.tokenizer_of(text, weights), vocab, found.config.vocab_size, weights
    )
    sampling = SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        end_token=encoder.end_token if stop else None,
        seed=seed,
        overflow=overflow,
        cache=cache,
        prefill_chunk=prefill_chunk,
        tokens=encoder.vocab_size,
    )
    model = door.load(backend).build(found.config, found.weights, run)
    prompts = [encoder.encode(text).tolist() for text in prompt]
    if len(prompts) == 1 and not json:
        pieces = Stream(encoder)
        steps = model.stream(prompts, sampling)
        first = next(steps)  # whatever is wrong shows before anything is printed
        print(prompt[0] + _piece(pieces, first), end="", flush=True)
        for step in steps:
            print(_piece(pieces, step), end="", flush=True)
        print(pieces.finish())
        return
    new = model.generate(prompts, sampling)
    rows = [
        {"prompt": given, "text": given + encoder.decode(tokens), "tokens": tokens}
        for given, tokens in zip(prompt, new, strict=True)
    ]
    if json:
        print(dumps({"backend": backend, "rows": rows}))
    else:
        print("\n\n".join(row["text"] for row in rows))


def _piece(pieces, step: list[int | None]) -> str:
    return "" if step[0] is None else pieces.feed(step[0])
