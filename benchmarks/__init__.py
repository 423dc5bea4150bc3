"""What measures: the harness and the benchmarks. Nothing here contains a model."""
