"""Which existing folders a new set of weights may replace: empty ones, and ones that hold weights and nothing else."""

import re
from pathlib import Path

from common.errors import UserError

_OURS = re.compile(
    r"config\.json|generation_config\.json|training\.json|optimizer\.safetensors"
    r"|model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json"
)


ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.safetensors")


def require_replaceable(folder: Path | str, ours: re.Pattern = _OURS) -> Path:
    """The path, unless replacing it would destroy a file, or a folder that holds more than weights (or an adapter)."""
    folder = Path(folder)
    if folder.is_dir():
        others = sorted(item.name for item in folder.iterdir() if item.is_dir() or not ours.fullmatch(item.name))
        if others:
            raise UserError(f"{folder} also holds {', '.join(others[:3])}, which would be lost; give a new folder.")
    elif folder.exists():
        raise UserError(f"{folder} is a file; a folder is to be written there.")
    return folder
