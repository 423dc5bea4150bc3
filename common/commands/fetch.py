"""`parallax fetch`"""

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[
        str, typer.Argument(help="gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m; the-verdict, tinyshakespeare.")
    ],
    into: Annotated[Path | None, typer.Option(help="Folder for the files (default: Parallax's cache).")] = None,
) -> None:
    """Download pretrained weights, or a text: pinned by its sum, resumed where it stopped; nothing if it is there."""
    from common.data import downloads
    from common.errors import unknown
    from common.weights import fetch as weights

    if name in downloads.TEXTS:
        print(downloads.obtain(name, into))
    elif name in weights.REGISTRY:
        print(weights.fetch(name, into))
    else:
        raise unknown("download", name, [*weights.REGISTRY, *downloads.TEXTS])
