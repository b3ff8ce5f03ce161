"""Losses of one matrix with a known gradient, and random starting matrices."""

import numpy as np


class LeastSquares:
    """`loss(W) = ||A W B - C||^2 / 2`, `G(W) = A^T (A W B - C) B^T`."""

    def __init__(self, A, B, C):
        self.A, self.B, self.C = A, B, C
        self.lipschitz = np.linalg.norm(A, 2) ** 2 * np.linalg.norm(B, 2) ** 2

    @classmethod
    def random(cls, rng, n, m):
        """A well-conditioned problem; each singular value of its target is 2.5 times the next."""
        A = np.eye(n) + 0.3 * rng.standard_normal((n, n)) / np.sqrt(n)
        B = np.eye(m) + 0.3 * rng.standard_normal((m, m)) / np.sqrt(m)
        target = with_spectrum(rng, n, m, 2.5 ** -np.arange(min(n, m)))
        return cls(A, B, A @ target @ B)

    def loss(self, W):
        return np.sum((self.A @ W @ self.B - self.C) ** 2) / 2

    def gradient(self, W):
        return self.A.T @ (self.A @ W @ self.B - self.C) @ self.B.T


class LogCosh:
    """`loss(W) = sum log cosh(W - C)`, `G(W) = tanh(W - C)`: nonlinear, and 1-smooth."""

    lipschitz = 1.0

    def __init__(self, C):
        self.C = C

    @classmethod
    def random(cls, rng, n, m):
        return cls(with_spectrum(rng, n, m, 3.0 * 2.0 ** -np.arange(min(n, m))))

    def loss(self, W):
        return np.sum(np.log(np.cosh(W - self.C)))

    def gradient(self, W):
        return np.tanh(W - self.C)


def orthonormal(rng, n, r):
    """A random `(n, r)` matrix with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((n, r)))[0]


def factors_with_spectrum(rng, n, m, values):
    """Random `(U, S, V)` with a full core S of the given singular values."""
    r = len(values)
    core = orthonormal(rng, r, r) @ np.diag(values) @ orthonormal(rng, r, r).T
    return orthonormal(rng, n, r), core, orthonormal(rng, m, r)


def with_spectrum(rng, n, m, values):
    """A random `(n, m)` matrix with the given singular values."""
    return matrix(factors_with_spectrum(rng, n, m, values))


def matrix(factors):
    """`U S V^T`, in float64."""
    U, S, V = (np.asarray(factor, "float64") for factor in factors)
    return U @ S @ V.T
