"""Derivatives by a complex step: f(x + ihv) = f(x) + ih <grad f, v> + O(h^2), with no subtraction to cancel.

With h = 1e-30 the imaginary part divided by h is the directional derivative, exact to rounding.
Source: Squire and Trapp 1998. The oracle's own; the wings differentiate automatically.
"""

import numpy as np

STEP = 1e-30


def slope(function, params, directions):
    """Directional derivative of `function(params)` along `directions` (name -> array, others do not move)."""
    moved = {name: params[name] + 1j * STEP * v for name, v in directions.items()}
    return function({**params, **moved}).imag / STEP


def gradient(function, params, names=None):
    """The full gradient by one complex step per number: for small models only."""
    grads = {}
    for name in params if names is None else names:
        flat = np.empty(params[name].size)
        for i in range(flat.size):
            unit = np.zeros(flat.size)
            unit[i] = 1.0
            flat[i] = slope(function, params, {name: unit.reshape(params[name].shape)})
        grads[name] = flat.reshape(params[name].shape)
    return grads
