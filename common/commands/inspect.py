"""`parallax inspect`"""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of any known kind: a folder or a file.")],
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List names, shapes, dtypes and sizes of weights, and which preset and naming scheme they match."""
    from common.config import dumps
    from common.weights.inspect import inspect as look

    found = look(path)
    print(dumps(found.to_dict()) if json else found.to_text(), end="")
