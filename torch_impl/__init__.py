"""The PyTorch wing: room for room the twin of `jax_impl`, judged by `common/oracle`."""
