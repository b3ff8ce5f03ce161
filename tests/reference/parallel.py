"""The parallel integrator (Ceruti, Kusch, Lubich, arXiv:2304.05660) with explicit Euler steps."""

import numpy as np


def step(factors, gradient, h, rank):
    """One step from `W = U0 S0 V0^T`; arguments as in `rank_adaptive.step`."""
    U0, S0, V0 = factors
    G = gradient(U0 @ S0 @ V0.T)
    # K-, L- and S-step, each from the same point
    K1 = U0 @ S0 - h * G @ V0
    L1 = V0 @ S0.T - h * G.T @ U0
    S1 = S0 - h * U0.T @ G @ V0
    # augmentation: [U0, U~] and [V0, V~], orthonormal
    U1 = _augmented(U0, K1)
    V1 = _augmented(V0, L1)
    # the augmented core
    K_new, L_new = U1[:, len(S0) :].T @ K1, V1[:, len(S0) :].T @ L1
    core = np.block([[S1, L_new.T], [K_new, np.zeros((len(K_new), len(L_new)))]])
    # truncation
    P, values, Qt = np.linalg.svd(core)
    r = rank(values)
    return U1 @ P[:, :r], np.diag(values[:r]), V1 @ Qt[:r].T


def riemannian_step(factors, gradient, h):
    """One step of Riemannian gradient descent on full matrices, retracted by metric projection.

    Absil and Malick, SIAM J. Optim. 22 (2012).
    """
    U, S, V = factors
    W, r = U @ S @ V.T, len(S)
    G = gradient(W)
    left, right = U @ U.T, V @ V.T
    P, values, Qt = np.linalg.svd(W - h * (G @ right + left @ G - left @ G @ right))
    return P[:, :r], np.diag(values[:r]), Qt[:r].T


def _augmented(U0, K1):
    """`[U0, U~]`, with at most as many columns as rows."""
    U1, _ = np.linalg.qr(np.hstack([U0, K1]))
    return np.hstack([U0, U1[:, U0.shape[1] :]])
