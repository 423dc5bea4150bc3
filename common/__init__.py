"""The ground floor: everything that is true in both wings. Imports NumPy, never torch or jax."""
