r"""How a layer applies its low-rank matrix, and the one custom gradient of the package.

Every low-rank layer applies its matrix through `low_rank_apply`. What that multiplies with is

- the layer's variables, differentiated as TensorFlow differentiates everything: the honest
  gradients of U, S and V;
- inside `substitute`, whatever the caller put in their place: a `TangentProbe`, whose gradients
  are the pair `(G V, G^T U)`, or a `Product` of given matrices.
"""

import contextlib
import threading

import tensorflow as tf

from keras_lowrank.linalg import matmul_last, rows
from keras_lowrank.tangent_vector import TangentVector, paired


class Product:
    """A matrix given as a product `A B ... C^T`; `project` carries A, plain products the rest.

    Args:
        matrices: tensors or variables, shapes `(n, a), (a, b), ..., (m, z)`: the last of two or
            more is held transposed, as V is.
        core: tensor, the S of the product where it has one, for regularizers.
    """

    def __init__(self, *matrices, core=None):
        self.matrices = matrices
        self.core = core

    @classmethod
    def of(cls, factorization):
        """`U S V^T`, multiplied from the left: the cheapest order for a tall U and a small S."""
        return cls(*factorization, core=factorization.S)

    def apply(self, project, inputs, dtype):
        first, *rest = (tf.cast(matrix, dtype) for matrix in self.matrices)
        outputs = project(inputs, first)
        for matrix in rest:
            outputs = matmul_last(outputs, matrix, transpose=matrix is rest[-1])
        return outputs


class TangentProbe:
    r"""`U S V^T` with the tangent gradient in place of the gradients of the factors.

    With `z = project(x, U)`, `y = z S V^T` and `d = dLoss/dy`, one backward pass gives

    - `G V = project^*(x, d V)`, as the gradient of `K`,
    - `U^T G V = z^T d V`, as the gradient of `S`,
    - `G^T U = d^T z`, as the gradient of `L`,
    - `dx = project^*(d V S^T)`,

    where `project^*` is the adjoint that TensorFlow knows of the layer's own `project`. The full
    gradient G is never formed. `K`, `S` and `L` are copies of U, S and V that nothing else reads,
    so a loss term that touches the variables themselves does not mix with the parts; `core` is S
    for the regularizers, which the product does not differentiate.

    Args:
        factorization: `Factorization`, the point W.
        keep_calls: bool. Keep what `coupling` needs (x and d of every call) until it is asked for.
    """

    def __init__(self, factorization, keep_calls=False):
        self.K = tf.identity(factorization.U)
        self.S = tf.identity(factorization.S)
        self.L = tf.identity(factorization.V)
        self.core = tf.identity(factorization.S)
        self._calls = [] if keep_calls else None
        self._core_by_pass, self._half = True, False

    @property
    def sources(self):
        """What to differentiate the loss by; `tangent` takes the gradients in this order."""
        return [self.K, self.S, self.L, self.core]

    def apply(self, project, inputs, dtype):
        # A batch of vectors is shorter than a basis as a rule, and z^T dV the cheaper way to the
        # S-part; a batch of images or of sequences is not.
        self._core_by_pass &= inputs.shape.rank == 2
        self._half |= dtype != self.K.dtype

        @tf.custom_gradient
        def apply(inputs, u, core, v):
            # One tape each: the two adjoints are asked for with different arguments, and a tape of
            # both would run both every time.
            with tf.GradientTape() as tape, tf.GradientTape() as u_tape:
                tape.watch(inputs)
                u_tape.watch(u)
                z = project(inputs, u)
            outputs = matmul_last(matmul_last(z, core), v, transpose=True)

            def gradient(d):
                dv = matmul_last(d, v)
                dz = matmul_last(dv, core, transpose=True)
                if self._calls is not None:
                    self._calls.append((project, inputs, z, d, dv))
                return (
                    tape.gradient(z, inputs, dz),
                    u_tape.gradient(z, u, dv),
                    tf.matmul(rows(z), rows(dv), transpose_a=True),
                    tf.matmul(rows(d), rows(z), transpose_a=True),
                )

            return outputs, gradient

        return apply(inputs, *(tf.cast(part, dtype) for part in (self.K, self.S, self.L)))

    def tangent(self, gradients):
        """The tangent gradient, from the gradients of `sources` (None where there is none)."""
        k, s, l, penalty = gradients
        if k is None:  # the loss does not depend on the layer
            k, s, l = (tf.zeros_like(part) for part in (self.K, self.S, self.L))
        elif self._half:  # its products leave the parts with roundings of their own
            k, s, l = paired(k, l, self.K, self.L)
        elif not self._core_by_pass:
            s = tf.matmul(self.K, k, transpose_a=True)
        if penalty is not None:
            k += tf.matmul(self.K, penalty)
            s += penalty
            l += tf.matmul(self.L, penalty, transpose_b=True)
        return TangentVector(k, s, l)

    def coupling(self, left, right, row_scale=None, column_scale=None):
        r"""Returns `Q^T diag(p) G diag(q) Z` for bases that the backward pass did not know.

        From its x and d, `sum over calls of project(x, diag(p) Q)^T (d diag(q) Z)`: two small
        products, no second pass.

        Args:
            left: `Complement` with the basis Q, shape `(n, a)`.
            right: `Complement` with the basis Z, shape `(m, b)`.
            row_scale: tensor p, shape `(n,)`, or None for ones.
            column_scale: tensor q, shape `(m,)`, or None for ones.

        Returns:
            Tensor of shape `(a, b)`, in the type of the bases.

        Raises:
            ValueError: when the layer was called inside a loop or a branch of its own, whose x
                and d cannot be read from outside.
        """
        total = tf.zeros([tf.shape(left.root)[1], tf.shape(right.root)[1]], left.root.dtype)
        for project, inputs, z, d, dv in self._calls:
            if not tf.executing_eagerly() and d.graph is not self.K.graph:
                raise ValueError(
                    "`integrator='rank_adaptive'` needs the inputs and the output gradients of "
                    "every low-rank layer, and cannot read them where a layer is called inside a "
                    "`tf.while_loop`, a `tf.cond` or another traced function. Call the layer "
                    "outside of it, or use `integrator='parallel'`, which needs neither."
                )
            if d.dtype == left.root.dtype and row_scale is None:
                x_q = _in_basis(project(inputs, left.residual), z, left)
                d_z = _in_basis(matmul_last(d, right.residual), dv, right)
            else:  # half precision has no digits to spare for directions that T has to enlarge
                q, z_basis = left.formed(self.K), right.formed(self.L)
                if row_scale is not None:
                    q, z_basis = row_scale[:, None] * q, column_scale[:, None] * z_basis
                x_q = project(inputs, tf.cast(q, d.dtype))
                d_z = matmul_last(d, tf.cast(z_basis, d.dtype))
            x_q, d_z = (tf.cast(rows(y), left.root.dtype) for y in (x_q, d_z))
            total += tf.matmul(x_q, d_z, transpose_a=True)
        return total


def _in_basis(by_residual, by_basis, added):
    """`y Q = (y R) T - (y B) C` for the basis Q of a `Complement`, given `y R` and `y B`.

    T comes before two of these meet: its columns are as long as directions are faint, and applied
    from both sides afterwards they would raise rounding to the square of that.
    """
    return tf.matmul(rows(by_residual), added.root) - tf.matmul(rows(by_basis), added.leak)


def low_rank_apply(project, factors, inputs, dtype):
    """Applies a layer's matrix to its inputs: `project(inputs, U) S V^T`.

    Args:
        project: callable `(inputs, basis) -> outputs`, linear in both: the layer's type.
        factors: the layer's `Factors`.
        inputs: tensor, what the layer was called with.
        dtype: str, the type to compute in (the layer's `compute_dtype`).

    Returns:
        Tensor of shape `(..., m)`.
    """
    kernel = _substitutes().get(factors)
    if kernel is None:
        kernel = Product.of(factors.read())
    return kernel.apply(project, inputs, dtype)


def squared_norm(factors):
    r"""`||W||_F^2` without forming W, differentiable, whatever the state of the factors.

    With orthonormal bases, as every step of an integrator has them, it is `||S||_F^2`; outside of
    one, where U and V may be anything, `<U^T U S, S V^T V>`.
    """
    kernel = _substitutes().get(factors)
    if kernel is not None and kernel.core is not None:
        return tf.reduce_sum(tf.square(kernel.core))
    u, s, v = factors.read()
    left = tf.matmul(tf.matmul(u, u, transpose_a=True), s)
    right = tf.matmul(s, tf.matmul(v, v, transpose_a=True))
    return tf.reduce_sum(left * right)


@contextlib.contextmanager
def substitute(kernels):
    """While open, `low_rank_apply` uses `kernels[factors]` in place of the layer's variables.

    Args:
        kernels: dict from `Factors` to a `TangentProbe` or a `Product`.
    """
    outer = _substitutes()
    _LOCAL.kernels = {**outer, **kernels}
    try:
        yield
    finally:
        _LOCAL.kernels = outer


# One table per thread: each replica of a tf.distribute strategy traces in a thread of its own.
_LOCAL = threading.local()


def _substitutes():
    return getattr(_LOCAL, "kernels", {})
