"""Algorithm 1 of arXiv:2205.13571, one explicit Euler step in each of its three phases."""

import numpy as np


def step(factors, gradient, h, rank):
    """One step from `W = U0 S0 V0^T`.

    Args:
        factors: `(U0, S0, V0)`.
        gradient: callable from the full matrix W to the full gradient.
        h: float, the step size.
        rank: callable from descending singular values to the rank to keep.
    """
    U0, S0, V0 = factors
    # K-step
    K0 = U0 @ S0
    K1 = K0 - h * gradient(K0 @ V0.T) @ V0
    U1, _ = np.linalg.qr(np.hstack([K1, U0]))
    M = U1.T @ U0
    # L-step
    L0 = V0 @ S0.T
    L1 = L0 - h * gradient(U0 @ L0.T).T @ U0
    V1, _ = np.linalg.qr(np.hstack([L1, V0]))
    N = V1.T @ V0
    # S-step
    S0 = M @ S0 @ N.T
    S1 = S0 - h * U1.T @ gradient(U1 @ S0 @ V1.T) @ V1
    # truncation
    P, values, Qt = np.linalg.svd(S1)
    r = rank(values)
    return U1 @ P[:, :r], np.diag(values[:r]), V1 @ Qt[:r].T
