"""`parallax convert`"""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights of any known kind: a folder or a file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, or a file ending in .safetensors or .pth.")],
    to: Annotated[str | None, typer.Option(help="hf, parallax, safetensors or pth (default: by OUT's suffix).")] = None,
    names: Annotated[str | None, typer.Option(help="Names in a file: canonical, hf, book or openai.")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the file cannot tell.")] = None,
    tie: Annotated[bool | None, typer.Option(help="Whether a head equal to the embedding is tied to it.")] = None,
    max_shard_bytes: Annotated[int | None, typer.Option(help="Split hf weights into shards of this size.")] = None,
) -> None:
    """Write weights in another form; what can be read are also OpenAI's TensorFlow checkpoints."""
    from common.weights import formats

    options = {"to": to, "names": names, "heads": heads, "tie": tie, "max_shard_bytes": max_shard_bytes}
    written = formats.convert(source, target, **options)
    print(f"Wrote {written}")
