"""The integrators as the papers write them, in plain float64 NumPy, and problems to run them on.

Nothing here is fast and nothing here is clever: full matrices, `numpy.linalg`, one gradient for
every phase. `trajectories` alone knows the package; the rest is what it is compared with.
"""
