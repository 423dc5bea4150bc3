"""Which existing folders a new set of weights may replace: empty ones, and ones that hold weights and nothing else."""

import re
from collections.abc import Collection
from pathlib import Path

from common.errors import UserError

_OURS = re.compile(
    r"config\.json|generation_config\.json|training\.json|optimizer\.safetensors"
    r"|model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json"
)


ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.safetensors")


def require_replaceable(folder: Path | str, ours: re.Pattern = _OURS, anew: Collection[str] = ()) -> Path:
    """The path, unless replacing it would destroy a file, or a folder that holds more than weights (or an adapter) and
    files that are written `anew`, by name."""
    folder = Path(folder)
    if folder.is_dir():
        known = [item.name for item in folder.iterdir() if not item.is_dir() and ours.fullmatch(item.name)]
        others = sorted({item.name for item in folder.iterdir()} - {*known, *anew})
        if others:
            raise UserError(f"{folder} also holds {', '.join(others[:3])}, which would be lost; give a new folder.")
    elif folder.exists():
        raise UserError(f"{folder} is a file; a folder is to be written there.")
    return folder
