"""`parallax doctor`"""

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False) -> int:
    """Examine this machine: versions, devices, threads, memory, data; say what to do about what is missing."""
    from dataclasses import asdict

    from common.config import dumps
    from common.doctor import examine

    checks = examine()
    if json:
        print(dumps({"checks": [asdict(check) for check in checks]}), end="")
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            print(f"{f'[{check.status}]':<6} {check.what:<{width}}  {check.found}")
            if check.advice:
                print(f"{'':<6} {'':<{width}}  -> {check.advice}")
    return int(any(check.status == "fail" for check in checks))
