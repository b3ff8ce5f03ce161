"""Keras's optimizers on the rank-r manifold, with full n x m matrices.

Each function returns a step `(factors, gradient, state, h, rank) -> (factors, state)`. The state is
full matrices and vectors, `gradient` is a callable of W, and `rank` maps singular values to a rank.
The step is that of the parallel integrator, along a direction in the tangent space.
"""

import numpy as np

from reference import parallel


def project(A, factors):
    """The projection of A onto the tangent space: `A V V^T + U U^T A - U U^T A V V^T`."""
    U, _, V = factors
    left, right = U @ U.T, V @ V.T
    return A @ right + left @ A - left @ A @ right


def _start(factors, gradient):
    W = factors[0] @ factors[1] @ factors[2].T
    return W, project(gradient(W), factors)


def _move(factors, D, h, rank):
    return parallel.step(factors, lambda W: D, h, rank)


def sgd(mu, nesterov=False):
    def step(factors, gradient, state, h, rank):
        _, G = _start(factors, gradient)
        M = mu * project(state.get("M", 0 * G), factors) + h * G
        D = mu * M + h * G if nesterov else M
        return _move(factors, D, 1.0, rank), {"M": M}

    return step


def _mean_squares(G, factors):
    U, _, V = factors
    return np.mean((G @ V) ** 2, axis=1), np.mean((G.T @ U) ** 2, axis=1)


def _divided(M, p, q, floor, factors, limit):
    """The tangent vector nearest to `diag(a) M diag(b)`, with the norm of a full-rank update."""
    U, _, V = factors
    K, L = M @ V, M.T @ U
    used = [np.sum(part > 0) for part in (p, q)]
    means = [np.sum(part) / count for part, count in zip((p, q), used)]
    scaled, sizes, scales = [], [], []
    for part, squares, mean in zip((K, L), (p, q), means):
        present = np.mean(part**2, axis=1)
        a = np.minimum(limit * squares / present, 1) / np.sqrt(
            squares + floor**2 * mean / max(means)
        )
        scaled.append(a[:, None] * part)
        sizes.append(np.sum(a**2 * present))
        scales.append(np.sqrt(sizes[-1] / np.sum(present)))
    K, L = scales[1] * scaled[0], scales[0] * scaled[1]
    S = (U.T @ K + L.T @ V) / 2
    outside_K, outside_L = K - U @ (U.T @ K), L - V @ (V.T @ L)
    D = U @ S @ V.T + outside_K @ V.T + U @ outside_L.T
    wanted = min(used[0] * sizes[1], used[1] * sizes[0])
    return np.sqrt(wanted) * D / np.linalg.norm(D)


def adam(beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    def step(factors, gradient, state, h, rank):
        _, G = _start(factors, gradient)
        t = state.get("t", 0) + 1
        p, q = _mean_squares(G, factors)
        M = beta_1 * project(state.get("M", 0 * G), factors) + (1 - beta_1) * G
        p = beta_2 * state.get("p", 0 * p) + (1 - beta_2) * p
        q = beta_2 * state.get("q", 0 * q) + (1 - beta_2) * q
        h = h * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        limit = 1 / ((1 - beta_2) * (1 - beta_1**2 / beta_2))
        D = _divided(M, p, q, epsilon, factors, limit * (1 - beta_1) ** 2)
        return _move(factors, D, h, rank), {"M": M, "p": p, "q": q, "t": t}

    return step


def _squares_in(squares, old, new):
    """Mean squares of coordinates in other bases: uncorrelated, and the mean where unknown."""
    weights = []
    for basis, other in ((old[0], new[0]), (old[2], new[2])):
        inside = (basis.T @ other) ** 2
        weights.append(inside + (1 - np.sum(inside, axis=0)) / len(inside))
    k, s, l = squares
    return k @ weights[1], weights[0].T @ s @ weights[1], l @ weights[0]


def stiefel_adam(beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Adam for every coordinate of U, S and V."""

    def step(factors, gradient, state, h, rank):
        U, S, V = factors
        _, G = _start(factors, gradient)
        t = state.get("t", 0) + 1
        M = beta_1 * project(state.get("M", 0 * G), factors) + (1 - beta_1) * G

        def coordinates(A):
            return A @ V - U @ (U.T @ A @ V), U.T @ A @ V, A.T @ U - V @ (V.T @ A.T @ U)

        squares = _squares_in(state["v"], state["at"], factors) if state else (0, 0, 0)
        news = [part**2 for part in coordinates(G)]
        squares = [beta_2 * v + (1 - beta_2) * new for v, new in zip(squares, news)]
        most = (1 - beta_1) / np.sqrt((1 - beta_2) * (1 - beta_1**2 / beta_2))
        dU, dS, dV = (
            np.clip(m, -most * np.sqrt(v), most * np.sqrt(v)) / (np.sqrt(v) + epsilon)
            for m, v in zip(coordinates(M), squares)
        )
        D = (dU - U @ U.T @ dU) @ S @ V.T + U @ dS @ V.T + U @ S.T @ (dV - V @ V.T @ dV).T
        h = h * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        return _move(factors, D, h, rank), {"M": M, "v": squares, "at": factors, "t": t}

    return step


def rmsprop(rho=0.9, mu=0.0, epsilon=1e-7):
    def step(factors, gradient, state, h, rank):
        _, G = _start(factors, gradient)
        p, q = _mean_squares(G, factors)
        p = rho * state.get("p", 0 * p) + (1 - rho) * p
        q = rho * state.get("q", 0 * q) + (1 - rho) * q
        D = h * _divided(G, p, q, np.sqrt(epsilon), factors, 1 / (1 - rho))
        M = mu * project(state.get("M", 0 * D), factors) + D
        return _move(factors, M, 1.0, rank), {"M": M, "p": p, "q": q}

    return step


def adagrad(start=0.1, epsilon=1e-7):
    def step(factors, gradient, state, h, rank):
        _, G = _start(factors, gradient)
        p, q = _mean_squares(G, factors)
        p, q = state.get("p", start) + p, state.get("q", start) + q
        D = _divided(G, p, q, np.sqrt(epsilon), factors, 1.0)
        return _move(factors, D, h, rank), {"p": p, "q": q}

    return step


def muon(mu=0.95, steps=5, rms_rate=0.2, abc=(3.4445, -4.7750, 2.0315)):
    def step(factors, gradient, state, h, rank):
        _, G = _start(factors, gradient)
        M = mu * project(state.get("M", 0 * G), factors) + G
        D = G + mu * M
        D = D / (np.linalg.norm(D) + 1e-7)
        for _ in range(steps):
            gram = D @ D.T
            D = abc[0] * D + (abc[1] * gram + abc[2] * gram @ gram) @ D
        D = rms_rate * max(D.shape) ** 0.5 * project(D, factors)
        return _move(factors, D, h, rank), {"M": M}

    return step
