"""The parallel integrator for Tucker-2 kernels, as Ceruti, Kusch, Lubich and Sulz write it.

arXiv:2412.00858, section 3, with explicit Euler steps. A kernel has the shape `(K, n, m)`.
"""

import numpy as np


def kernel_of(U, S, V):
    return np.einsum("cp,kpq,fq->kcf", U, S, V)


def unfolded(tensor, axis):
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)


def folded(matrix, axis, shape):
    rest = [extent for one, extent in enumerate(shape) if one != axis]
    return np.moveaxis(matrix.reshape(len(matrix), *rest), 0, axis)


def step(factors, gradient, h, rank):
    """One step; `rank(values, mode)` chooses a rank from the singular values of an unfolding."""
    U0, S0, V0 = factors
    G = gradient(kernel_of(*factors))
    halves = G @ V0, np.einsum("kcf,cp->kpf", G, U0)
    parts = []
    for axis, basis, half in zip((1, 2), (U0, V0), halves):
        # the unfolding of the core is R^T Q^T, that of the kernel K (Q^T x the other basis)
        Q, R = np.linalg.qr(unfolded(S0, axis).T)
        K1 = basis @ R.T - h * unfolded(half, axis) @ Q
        new = np.linalg.qr(np.hstack([basis, K1]))[0][:, basis.shape[1] :]
        parts.append((new, new.T @ K1 @ Q.T))
    (U_new, left), (V_new, right) = parts
    a, b = U_new.shape[1], V_new.shape[1]
    core = np.pad(S0 - h * np.einsum("cp,kcf,fq->kpq", U0, G, V0), [(0, 0), (0, a), (0, b)])
    places, p, q = S0.shape
    core[:, p:, :q] = folded(left, 1, (places, a, q))
    core[:, :p, q:] = folded(right, 2, (places, p, b))
    return truncated((np.hstack([U0, U_new]), core, np.hstack([V0, V_new])), rank)


def truncated(factors, rank):
    """The sequentially truncated higher-order SVD."""
    U, core, V = factors
    bases = []
    for mode, basis in enumerate((U, V)):
        P, values, _ = np.linalg.svd(unfolded(core, mode + 1), full_matrices=False)
        P = P[:, : rank(values, mode)]
        core = np.moveaxis(np.tensordot(P, core, (0, mode + 1)), 0, mode + 1)
        bases.append(basis @ P)
    return bases[0], core, bases[1]


def tangent_projection(factors):
    """The orthogonal projection onto the tangent space, from differences of the factors alone."""
    columns = []
    for index, part in enumerate(factors):
        for place in range(part.size):
            unit = np.zeros(part.size)
            unit[place] = 1.0
            moved = list(factors)
            moved[index] = unit.reshape(part.shape)  # the kernel is linear in each factor
            columns.append(kernel_of(*moved).ravel())
    left, values, _ = np.linalg.svd(np.transpose(columns), full_matrices=False)
    left = left[:, values > 1e-10 * values[0]]
    return lambda X: (left @ (left.T @ X.ravel())).reshape(X.shape)
