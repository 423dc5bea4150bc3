"""Shared by the tests: examples that Hypothesis draws have no time limit each, for machines are shared."""

try:
    from hypothesis import settings
except ImportError:  # where nothing can be installed; tests that draw examples say so themselves
    pass
else:
    settings.register_profile("shared machines", deadline=None)
    settings.load_profile("shared machines")
