"""The reports that this checkout keeps follow from their raw samples."""

import re
from pathlib import Path

import pytest

from reports.perf import agree, job

PLACE = Path(job.__file__).parent
KEPT = sorted(path.name for path in PLACE.iterdir() if path.is_dir() and path.name[0] not in "._")
NONE = pytest.param(None, marks=pytest.mark.skip(reason="this checkout keeps no report"))


@pytest.mark.parametrize("name", KEPT or [NONE])
def test_a_kept_report_follows_from_its_samples(name):
    assert job.check(PLACE / name) == []


def test_the_page_of_kept_reports_leads_to_each_of_them():
    page = (PLACE / "README.md").read_text(encoding="utf-8")
    files = set(re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page))
    led = {a or b for a, b in files}
    assert [name for name in led if not (PLACE / name).exists()] == []
    assert {Path(name).parts[0] for name in led} - {".."} == set(KEPT)


def test_kept_runs_of_one_command_say_the_same():
    """The same command three times: nobody is ahead in one run and behind in another, and no factor lies apart."""
    runs = {name: job.derive(PLACE / name) for name in KEPT if "-optimizer-random" in name}
    assert len(runs) == 3
    assert len({found["command"].rpartition(" --out ")[0] for found in runs.values()}) == 1
    held = agree.hold(runs)
    tally = agree.counts(held)
    assert tally[agree.CONTRADICT] == 0
    assert tally[agree.AGREE] > len(held) / 2
