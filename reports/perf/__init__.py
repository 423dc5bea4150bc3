"""The benchmark report: tables, plots and a page from what `benchmarks.harness.summary` makes of the raw samples."""
