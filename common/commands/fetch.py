"""`parallax fetch`"""

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[str, typer.Argument(help="gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m.")],
    into: Annotated[Path | None, typer.Option(help="Folder for the files (default: Parallax's cache).")] = None,
) -> None:
    """Download pretrained weights: pinned revision, checksum, resumed where it stopped; nothing if they are there."""
    from common.weights.fetch import fetch as bring

    print(bring(name, into))
