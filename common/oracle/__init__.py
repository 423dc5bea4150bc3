"""The third implementation: plain NumPy in float64, no cleverness. It is the executable specification and the judge.

It has no backward pass. Every function accepts complex arrays, and the gradient is read off the imaginary part of a
complex step (`gradient.py`): a definition of the derivative that shares nothing with automatic differentiation.
"""
