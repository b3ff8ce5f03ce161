"""The unconventional (KLS) integrator, arXiv:2205.13571 section 4.2, with explicit Euler steps."""

import numpy as np


def step(factors, gradient, h, rule=None):
    """One step from `W = U0 S0 V0^T`; arguments as in `rank_adaptive.step`, its rule unused."""
    U0, S0, V0 = factors
    # K-step
    K0 = U0 @ S0
    K1 = K0 - h * gradient(K0 @ V0.T) @ V0
    U1, _ = np.linalg.qr(K1)
    M = U1.T @ U0
    # L-step
    L0 = V0 @ S0.T
    L1 = L0 - h * gradient(U0 @ L0.T).T @ U0
    V1, _ = np.linalg.qr(L1)
    N = V1.T @ V0
    # S-step
    S0 = M @ S0 @ N.T
    S1 = S0 - h * U1.T @ gradient(U1 @ S0 @ V1.T) @ V1
    return U1, S1, V1
