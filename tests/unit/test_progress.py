"""What a person sees while a job runs: on a terminal a bar with its numbers, elsewhere plain lines."""

import io
import re
import sys
import time

import pytest
import rich.console

from common import meter
from common import run as runs
from common.commands import options
from reports.progress import Shown

ESCAPE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
HIDDEN, BACK, CLEARED = "\x1b[?25l", "\x1b[?25h", "\x1b[1A\x1b[2K"  # the cursor, and a line that is taken away
FEW = ["train", "--preset", "nano", "--length", 16, "--batch-size", 2, "--steps", 6, "--eval-every", 2]
RATE = r"[\d,]+ tokens/s"


class Screen:
    """A terminal that keeps all that it was shown; its clock stands still unless it is told."""

    def __init__(self, width=100):
        self.width, self.file, self.now = width, io.StringIO(), 0.0

    def console(self, **_):
        made = {"force_terminal": True, "width": self.width, "file": self.file, "get_time": lambda: self.now}
        return Console(**made, _environ={"TERM": "xterm"})

    @property
    def raw(self):
        return self.file.getvalue()

    @property
    def frames(self):
        return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", self.raw)) if line.strip()]

    def wait_for(self, text):
        end = time.monotonic() + 30
        while not any(text in frame for frame in self.frames):
            assert time.monotonic() < end, (text, self.frames[-3:])
            time.sleep(0.01)

    def ended(self):
        """Whether the bar is gone, and so the cursor is back."""
        return self.raw.count(HIDDEN) == self.raw.count(BACK) == 1 and self.raw.endswith(CLEARED)


Console = rich.console.Console


@pytest.fixture
def screen(monkeypatch):
    found = Screen()
    monkeypatch.setattr(rich.console, "Console", found.console)
    return found


@pytest.fixture
def plain(monkeypatch):
    """No terminal, whatever the environment of the tests says."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_bar_says_how_far_it_is_and_how_long_it_takes(screen):
    seen = []
    for step in options.progress(range(1, 5), 4, lambda step: f"loss {5 - step}.0"):
        screen.wait_for(f"{step}/4")
        screen.now += 10
        seen.append(step)
    assert seen == [1, 2, 3, 4]
    last = {number: [frame for frame in screen.frames if f"{number}/4" in frame][-1] for number in range(5)}
    assert last[0].startswith("starting ")
    assert last[0].endswith("0/4 -:--:--")
    for number, left in ((2, "0:00:20"), (3, "0:00:10"), (4, "0:00:00")):
        assert last[number].startswith(f"loss {5 - number}.0 ")
        assert last[number].endswith(f"{number}/4 {left}")
    assert screen.ended()


@pytest.mark.parametrize("width", [100, 80])
@pytest.mark.parametrize(("most", "share"), [(1e13, r"  MFU \d+%"), (None, "")])
def test_training_shows_loss_speed_and_the_share_of_the_peak(call, tmp_path, monkeypatch, screen, width, most, share):
    monkeypatch.setattr(meter, "most", lambda *_: most)
    screen.width = width
    code, out, err = call(*FEW, "--out", tmp_path / "run")
    assert code == 0, err
    losses = [line["loss"] for line in runs.read_log(tmp_path / "run" / "log.jsonl")]
    bars = [frame for frame in screen.frames if re.search(r"\d/6", frame)]
    assert re.fullmatch(rf"loss {losses[-1]:.4f}  {RATE}{share} ━+ 6/6 0:00:00", bars[-1]), bars[-1]
    lines = [frame for frame in screen.frames if frame.startswith("step ")]
    for step, line in zip((2, 4, 6), lines, strict=True):  # above the bar, which they do not break
        told = rf"step      {step}  loss {losses[step - 1]:.4f}  held-out [\d.]+  perplexity [\d.]+  {RATE}"
        assert re.fullmatch(told + (share if width == 100 else ".*"), line), line  # a long line is broken between words
    assert screen.ended()
    assert "steps 0 to 6" in err
    assert out.startswith("Step 6 of 6")
    assert "\x1b" not in out + err


def test_without_a_terminal_there_are_plain_lines(call, tmp_path, monkeypatch, plain):
    monkeypatch.setattr(meter, "most", lambda *_: 1e13)
    code, out, err = call(*FEW, "--out", tmp_path / "run")
    assert (code, out.startswith("Step 6 of 6")) == (0, True)
    first, *lines = err.splitlines()
    assert first.endswith("steps 0 to 6")
    assert [line.split()[:2] for line in lines] == [["step", "2"], ["step", "4"], ["step", "6"]]
    assert all(re.search(rf"loss [\d.]+  held-out .* {RATE}  MFU \d+%$", line) for line in lines)
    assert not set("\x1b\r━") & set(out + err)


def test_without_a_label_there_is_no_bar(screen):
    """Of several processes one tells for all."""
    assert list(options.progress(range(3), 3, None)) == [0, 1, 2]
    assert screen.raw == ""


def stops(number):
    yield from range(number)
    raise ZeroDivisionError


def test_a_bar_ends_with_whatever_ends_its_work(screen):
    """A step, who takes the steps, or Ctrl-C; what is said then is said below it, where it was said before."""
    before = sys.stderr
    with pytest.raises(ZeroDivisionError):
        list(options.progress(stops(2), 4, str))
    assert screen.ended()
    for error in (ValueError, KeyboardInterrupt):
        screen.file = io.StringIO()

        def taken(error=error):
            for step in options.progress(range(4), 4, str):
                if step == 2:
                    raise error

        with pytest.raises(error):
            taken()
        assert screen.ended()
        assert sys.stderr is before
    screen.file = io.StringIO()

    def counted():
        with options.bar("merges") as report:
            report(3, 9)
            raise KeyError

    with pytest.raises(KeyError):
        counted()
    assert "merges" in screen.frames[-1]
    assert "3/9" in screen.frames[-1]
    assert screen.ended()


def test_a_bar_ends_before_a_run_says_that_it_met_no_number(call, tmp_path, screen):
    wild = ["--learning-rate", 1e6, "--weight-decay", 1e6, "--warmup-steps", 0, "--steps", 50, "--eval-every", 50]
    code, out, err = call(*FEW, *wild, "--out", tmp_path / "run")
    steps = len(runs.read_log(tmp_path / "run" / "log.jsonl"))
    assert (code, out) == (2, "")
    assert f"{steps}/50" in screen.frames[-1]
    assert screen.ended()
    written, told = err.splitlines()[-2:]
    assert written.startswith(f"The log of {steps} lines is written")
    assert told.startswith("parallax: ")
    assert f" of step {steps} is " in told
    assert "lower the learning rate" in told


def test_phases_are_bars_that_are_ticked_off(screen):
    with Shown() as shown:
        with shown.phase("building") as report:
            report(0.5)
        with shown.phase("timing") as report:
            report(2.0)
        with shown.steps() as report:
            report("first", 0.2)
            screen.wait_for("first")
            report("second", 0.6)
    *_, building, timing, done = screen.frames
    for line, what in ((building, "building"), (timing, "timing"), (done, "done")):
        assert re.fullmatch(rf"✓ {what} +━{{24}} 0:00:00", line), line
    assert screen.raw.count(HIDDEN) == screen.raw.count(BACK) == 1


def test_a_phase_that_fails_is_not_ticked_off(screen):
    def built():
        with Shown() as shown, shown.phase("building") as report:
            report(0.5)
            raise KeyError

    with pytest.raises(KeyError):
        built()
    assert "building" in screen.frames[-1]
    assert "✓" not in screen.raw
    assert screen.raw.count(HIDDEN) == screen.raw.count(BACK) == 1


def test_without_a_terminal_phases_are_lines(capsys, plain, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with Shown() as shown:
        with shown.phase("building") as report:
            report(0.5)
            now[0] += 7
        with shown.steps() as report:
            for number, seconds in enumerate((2, 0.4, 3)):  # what takes less than a second is not worth a line
                report(f"step {number}", number / 3)
                now[0] += seconds
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["building … 7 s", "step 0 … 2 s", "step 2 … 3 s"]
