"""References for the tests: the integrators of the papers in NumPy, and problems to run them on.

The integrators are plain float64: full matrices, `numpy.linalg`, one gradient for each phase. The
other modules make the layers, models and data that several tests share.
"""
