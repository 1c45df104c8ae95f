"""The coefficients of `normal_distribution` in functions.rs: erfc(t) exp(t^2) as u times a polynomial of degree 8 in u = 1 / (1 + t / 2).

Least squares of the relative error at Chebyshev nodes for t from 0 to 10, reweighted (Lawson) towards the minimax fit.

    pip install mpmath numpy
    python fit_normal_tail.py
"""
import mpmath
import numpy as np

DEGREE, NODES, SLOPE, MOST = 8, 600, 0.5, 10.0

least = 1 / (1 + SLOPE * MOST)
u = (np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES) * (1 - least) + 1 + least) / 2
t = (1 / u - 1) / SLOPE
f = np.array([float(mpmath.erfc(x) * mpmath.exp(mpmath.mpf(x) ** 2)) for x in t])
powers = np.vander(u, DEGREE + 1, increasing=True) * u[:, None] / f[:, None]
weights = np.ones(NODES)
for _ in range(60):
    root = np.sqrt(weights)
    coefficients = np.linalg.lstsq(powers * root[:, None], root, rcond=None)[0]
    error = abs(powers @ coefficients - 1)
    weights *= error / (weights * error).sum()
print([float(np.float32(c)) for c in coefficients], "relative error", error.max())
