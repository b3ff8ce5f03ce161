"""Runs of the package's integrators, on one matrix with a known gradient and with `fit`."""

import functools

import hypothesis
import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import KeepRank, LowRankDense, LowRankModel, Tolerance
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy
from reference.closed_form import matrix
from reference.truncation import RelativeTolerance


class MatrixProblem:
    """The `Problem` of one matrix, with the gradient from a callable `gradient(W)` on tensors."""

    def __init__(self, factorization, gradient, step_size, policy):
        self.factors, self.policies = [factorization], [policy]
        self.step_size = tf.convert_to_tensor(step_size, factorization.S.dtype)
        self.replicated = False
        self._gradient = gradient

    def direction(self):
        u, s, v = self.factors[0]
        self._full = self._gradient(u @ s @ tf.transpose(v))
        k = self._full @ v
        return [TangentVector(k, tf.transpose(u) @ k, tf.transpose(self._full) @ u)]

    def normal_blocks(self, augmented):
        ((point, left, right),) = augmented
        q, z = left.formed(point.U), right.formed(point.V)
        return [tf.transpose(q) @ self._full @ z]

    def core_direction(self, factors):
        u, s, v = factors[0]
        return [tf.transpose(u) @ self._gradient(u @ s @ tf.transpose(v)) @ v]


def to_tensors(factors, dtype):
    return Point(*(tf.constant(factor, dtype) for factor in factors))


def tangent_of(A, factors):
    """The `TangentVector` in float64 of a full matrix A at NumPy factors."""
    u, _, v = factors
    parts = (A @ v, u.T @ A @ v, A.T @ u)
    return TangentVector(*(tf.constant(part, tf.float64) for part in parts))


def one_step(integrator, factors, gradient, h, policy=None, dtype="float64"):
    """Takes one step of the package in `dtype`, from NumPy factors with a NumPy gradient."""
    policy = policy or Policy(KeepRank())
    bounds = (policy.min_rank, policy.max_rank or 2**30)
    step = _traced_step(type(integrator), _Rule(policy.truncation), dtype)
    _GRADIENTS.append(gradient)
    try:
        new = step(*to_tensors(factors, dtype), tf.constant(h, dtype), *map(tf.constant, bounds))
    finally:
        _GRADIENTS.pop()
    return tuple(factor.numpy() for factor in new)


# A step is traced once for each truncation and dtype, and looks up the gradient here when it runs.
_GRADIENTS = []


class _Rule:
    """Makes truncations with equal type and config equal."""

    def __init__(self, truncation):
        self.truncation = truncation
        self.key = (type(truncation), *truncation.get_config().items())

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


@functools.cache
def _traced_step(integrator, rule, dtype):
    any_matrix = tf.TensorSpec([None, None], dtype)
    scalars = [tf.TensorSpec([], dtype), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)]

    def full_gradient(W):
        def evaluate(W):
            return _GRADIENTS[-1](W.astype("float64")).astype(dtype)

        return tf.ensure_shape(tf.numpy_function(evaluate, [W], dtype), [None, None])

    @tf.function(input_signature=[any_matrix] * 3 + scalars)
    def step(u, s, v, h, low, high):
        policy = Policy(rule.truncation, low, high)
        problem = MatrixProblem(Point(u, s, v), full_gradient, h, policy)
        (moved,) = integrator(adapt_every=1).step(problem)
        return moved

    return step


def compare_trajectories(
    integrator, reference, problem, factors, tau, dtype, max_rank=None, steps=50, scale=0.5
):
    """Runs an integrator and its reference, and compares W and the rank after every step.

    Args:
        integrator: `Integrator`.
        reference: module with the same integrator in NumPy.
        problem: a problem of `closed_form`.
        factors: `(U, S, V)` to start from.
        tau: float, the relative tolerance.
        dtype: str, the dtype of the package's run.
        max_rank: int or None.
        steps: int.
        scale: float; the step size is `scale / problem.lipschitz`.

    Returns:
        List of int, the rank after every step.
    """
    h = scale / problem.lipschitz
    rule = RelativeTolerance(tau, max_rank=max_rank)
    expected = [factors]
    for _ in range(steps):
        expected.append(reference.step(expected[-1], problem.gradient, h, rule))
    # If rounding decides, either rank is correct.
    hypothesis.assume(rule.margin > {"float32": 1e-4, "float64": 1e-6}[dtype])
    policy = Policy(Tolerance(tau), max_rank=max_rank)
    for right in expected[1:]:
        factors = one_step(integrator, factors, problem.gradient, h, policy, dtype)
        assert factors[1].shape == right[1].shape
        W = matrix(right)
        np.testing.assert_allclose(matrix(factors), W, atol=1e-5 * max(1, np.linalg.norm(W)))
        assert max(defect(factors[0]), defect(factors[2])) < 1e-5
    return [len(right[1]) for right in expected[1:]]


def losses(integrator, factors, problem, h, steps, policy=None, dtype="float32"):
    """The losses at the start and after every step."""
    found = [problem.loss(matrix(factors))]
    for _ in range(steps):
        factors = one_step(integrator, factors, problem.gradient, h, policy, dtype)
        found.append(problem.loss(matrix(factors)))
    return np.array(found)


def two_factor_losses(factors, problem, h, steps):
    """As `losses`, for gradient descent on the two factors of `W = A B`.

    They start balanced, `A = U sqrt(S)` and `B = sqrt(S) V^T`. S must be diagonal.
    """
    U, S, V = factors
    A, B = U @ np.sqrt(S), np.sqrt(S) @ V.T
    found = [problem.loss(A @ B)]
    for _ in range(steps):
        G = problem.gradient(A @ B)
        A, B = A - h * G @ B.T, B - h * A.T @ G
        found.append(problem.loss(A @ B))
    return np.array(found)


def defect(basis):
    """`||B^T B - I||_2`, in float64."""
    basis = np.asarray(basis, "float64")
    return np.linalg.norm(basis.T @ basis - np.eye(basis.shape[1]), 2)


def worst_defects(integrator, factors, target, noise, steps, policy=None):
    """Measures how far U and V are from orthonormal over many float32 steps.

    The gradient is `G(W) = W - C - noise * N_t` with a new normal N_t in every step, and h = 0.1.

    Returns:
        `(defects, low, high)`: the largest `||U^T U - I||` and `||V^T V - I||`, and the smallest
        and largest rank.
    """
    target = tf.constant(target, tf.float32)
    policy = policy or Policy(KeepRank())

    def defect_of(basis):
        gram = tf.matmul(basis, basis, transpose_a=True)
        gap = tf.cast(gram - tf.eye(tf.shape(basis)[1]), tf.float64)
        return tf.reduce_max(tf.abs(tf.linalg.eigvalsh(gap)))

    def body(i, u, s, v, defects, low, high):
        seed = tf.stack([i, 7])
        shift = target + noise * tf.random.stateless_normal(target.shape, seed)
        point = Point(u, s, v)
        problem = MatrixProblem(point, lambda W: W - shift, 0.1, policy)
        (new,) = integrator.step(problem)
        defects = tf.maximum(defects, tf.stack([defect_of(new.U), defect_of(new.V)]))
        rank = tf.shape(new.S)[0]
        return i + 1, *new, defects, tf.minimum(low, rank), tf.maximum(high, rank)

    @tf.function
    def loop(u, s, v):
        rank = tf.shape(s)[0]
        state = (tf.constant(0), u, s, v, tf.zeros([2], tf.float64), rank, rank)
        shapes = ((), (None, None), (None, None), (None, None), (2,), (), ())
        shapes = tuple(tf.TensorShape(shape) for shape in shapes)
        return tf.while_loop(lambda i, *_: i < steps, body, state, shapes)[-3:]

    defects, low, high = loop(*to_tensors(factors, tf.float32))
    return defects.numpy(), int(low), int(high)


def fit_one_layer(integrator, factors, x, y, h, epochs, truncation=0.1, l2=0.0):
    """Kernels and ranks after each epoch of `fit` with one LowRankDense, the whole data a batch.

    `h` is the learning rate of SGD, or an optimizer.
    """
    dtype = keras.config.floatx()
    n, m, rank = x.shape[1], y.shape[1], factors[1].shape[0]
    regularizer = keras.regularizers.L2(l2) if l2 else None
    layer = LowRankDense(m, rank=rank, use_bias=False, kernel_regularizer=regularizer, dtype=dtype)
    inputs = keras.Input((n,), dtype=dtype)
    model = LowRankModel(inputs, layer(inputs))
    optimizer = keras.optimizers.SGD(h) if isinstance(h, float) else h
    model.compile(optimizer, "mse", integrator=integrator, truncation=truncation)
    layer.factors.assign(to_tensors(factors, dtype))
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append((layer.kernel.numpy(), layer.factors.rank))
    )
    fit = {"batch_size": len(x), "shuffle": False, "verbose": 0, "callbacks": [record]}
    model.fit(x.astype(dtype), y.astype(dtype), epochs=epochs, **fit)
    return seen


def mean_squared_error_gradient(x, y, l2=0.0):
    """The gradient by W of Keras's `"mse"` of `x W` and y, plus that of `l2 ||W||_F^2`."""
    return lambda W: 2.0 / y.size * x.T @ (x @ W - y) + 2.0 * l2 * W
