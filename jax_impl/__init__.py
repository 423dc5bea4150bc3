"""The JAX wing in Flax NNX: room for room the twin of `torch_impl`, judged by `common/oracle`."""
