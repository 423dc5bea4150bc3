"""README and ARCHITECTURE say what is so: files, commands, options, make targets and quoted code exist."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "ARCHITECTURE.md")
ALL = (*PAGES, "reports/perf/README.md")
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["parallax.commands"]


def options_of(name, words):
    """The options of a command, or of that command of its own which the words begin with."""
    module, function = COMMANDS[name].split(":")
    found, tool = getattr(import_module(module), function), typer.Typer()
    if isinstance(found, typer.Typer):
        own = get_command(found).commands
        assert not words or words[0] in own, words
        command = own[words[0]] if words else get_command(found)
    else:
        tool.command(name)(found)
        command = get_command(tool)
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
    named = re.findall(r"[`(]((?:common|torch_impl|jax_impl|benchmarks|tests|reports|\.ci)/[\w./-]*)[`)]", read(page))
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ALL)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", read(page), re.MULTILINE))
    assert {a or b for a, b in named} <= targets


@pytest.mark.parametrize("page", ALL)
def test_commands_and_options_exist(page):
    lines = re.findall(r"^(?:\$ )?parallax ([a-z]+)(.*)$|`parallax ([a-z]+)([^`]*)`", read(page), re.MULTILINE)
    for first, rest, second, more in lines:
        name = first or second
        assert name in COMMANDS, name
        asked = set(re.findall(r"(?<=\s)(--[a-z-]+)", rest + more))
        known = options_of(name, (rest + more).split())
        assert asked <= known, asked - known


def test_the_reader_of_vectors_runs(monkeypatch):
    """The NumPy reader of ARCHITECTURE.md reads and checks a case, and fails where a number is wrong."""
    page = read("ARCHITECTURE.md")
    code = page[page.index("## Reading a vector") :].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(ROOT)
    exec(code, {})
    with pytest.raises(AssertionError):
        exec(code.replace("0.044715", "0.0447"), {})


def test_quoted_code_is_the_code():
    """The lines under "the heart of it, three times" stand in the three kernels, to the letter."""
    page = read("ARCHITECTURE.md")
    block = page[page.index("```python\n# NumPy") :].split("```")[1]
    places = {"# NumPy": "common/oracle", "# PyTorch": "torch_impl", "# JAX": "jax_impl"}
    seen = 0
    for line in block.splitlines()[1:]:
        if line in places:
            source = read(f"{places[line]}/attention/kernels.py")
        elif line:
            assert f"    {line}\n" in source, line
            seen += 1
    assert seen >= 9
