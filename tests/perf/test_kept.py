"""The reports that this checkout keeps follow from their raw samples."""

from pathlib import Path

import pytest

from reports.perf import job

PLACE = Path(job.__file__).parent
KEPT = sorted(path.name for path in PLACE.iterdir() if path.is_dir() and path.name[0] not in "._")
NONE = pytest.param(None, marks=pytest.mark.skip(reason="this checkout keeps no report"))


@pytest.mark.parametrize("name", KEPT or [NONE])
def test_a_kept_report_follows_from_its_samples(name):
    assert job.check(PLACE / name) == []
