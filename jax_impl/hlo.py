"""What a compiled program does, read from its text as XLA prints it: per device, where it is spread."""

import functools
import math
import re

COMMENT = re.compile(r"/\*.*?\*/")
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.$-]+) .*\{$")
LINE = re.compile(r"^(?:ROOT )?%?([\w.$-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$-]+)|\bbranch_computations=\{([^}]*)\}"
)
ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
LIBRARY = re.compile(
    r'custom_call_target="([^"]*(?:matmul|gemm|dot|conv|fmha|attention|triton|mosaic)[^"]*)"', re.IGNORECASE
)


def compiled_flops(text):
    """FLOPs of one device in a compiled program, from its text as XLA prints it: matrix products, those that it makes
    again for the way back among them, a loop's body as often as XLA knows that it runs.

    Raises ValueError where a loop's rounds are not known, or a product's size is not told. What a library multiplies
    under another name than LIBRARY's is not seen; XLA has none such on a CPU.
    """
    programs, entry = {}, None
    for line in map(str.strip, COMMENT.sub("", text).splitlines()):
        if (head := HEAD.match(line)) and " = " not in line.partition("(")[0]:
            own = programs[head[1]] = {}
            entry = own if line.startswith("ENTRY") else entry
        elif found := LINE.match(line):
            own[found[1]] = found.groups()[1:]
    cost = functools.cache(lambda name: _cost(programs[name], cost))
    return _cost(entry, cost)


def _cost(program, cost):
    """Of all lines of a program; `cost(name)` of those that they call."""
    total = 0
    for shape, operation, rest in program.values():
        if operation == "dot":
            sizes = _sizes(_operand(program, rest))
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
            total += 2 * math.prod(_sizes(shape)) * math.prod(sizes[int(axis)] for axis in axes.split(",") if axis)
            continue
        if operation == "convolution" or (operation == "custom-call" and LIBRARY.search(rest)):
            raise ValueError(f"no FLOP rule for {LIBRARY.search(rest)[1] if operation == 'custom-call' else operation}")
        called = [cost(name) for one in CALLED.finditer(rest) for name in re.findall(r"[\w.$-]+", one[1] or one[2])]
        if operation == "conditional" and not called:
            raise ValueError("a conditional does not tell its branches")
        if operation == "while" and any(called):
            rounds = ROUNDS.search(rest)
            if rounds is None:
                raise ValueError("a while loop has no known number of rounds")
            total += int(rounds[1]) * sum(called)
        else:
            total += max(called, default=0) if operation == "conditional" else sum(called)
    return total


def _operand(program, rest):
    """The shape of the first operand: told where it is used, or where it is made."""
    found = re.match(r"(?:(\w+\[[\d,]*\])\S* )?%?([\w.$-]+)", rest)
    if found is None or not (found[1] or found[2] in program):
        raise ValueError("a product does not tell what it multiplies")
    return found[1] or program[found[2]][0]


def _sizes(shape):
    return [int(size) for size in SHAPE.match(shape)[1].split(",") if size]
