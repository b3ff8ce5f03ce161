"""The one custom gradient of the package: the tangent gradient of a low-rank matrix."""

import functools
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank import keras_internals, row_slices
from keras_lowrank.form import PLAIN, Form
from keras_lowrank.linalg import extent, matmul_last, rows
from keras_lowrank.tangent_vector import TangentVector, paired


class TangentProbe:
    r"""`U S V^T` with the tangent gradient in place of the gradients of the factors.

    With `z = project(x, U)`, `y = z S V^T` and `d = dLoss/dy`, one backward pass gives

    - `G V = project^*(x, d V)`, as the gradient of `K`,
    - `U^T G V = z^T d V`, as the gradient of `S`,
    - `G^T U = d^T z`, as the gradient of `L`,
    - `dx = project^*(d V S^T)`,

    where `project^*` is the adjoint that TensorFlow knows of the layer's own `project`; with an
    `expand` of its own, `y = expand(z S, V)`, its adjoints take the places of `d V` and `d^T z`
    (see `Form`). The full gradient G is never formed. `K`, `S` and `L` are copies of U, S and V
    that nothing else reads, so a loss term that touches the variables themselves does not mix with
    the parts; `core` is S for the regularizers, which the product does not differentiate.

    The transposed application, `y = x W^T = (x V) S^T U^T`, is the same of `V S^T U^T`: K and L
    change places, and all of the layer's calls, of either kind, add up.

    Args:
        factorization: `Factorization`, the point W.
        keep_calls: bool. Keep what `coupling` needs (x and d of every call) until it is asked for.
        by_rows: bool. Give the K-part of a layer that does nothing but look up rows as
            `tf.IndexedSlices`, see `row_slices`.
        factors: `Factors` that hold W, or None. A call that is recomputed in the backward pass
            (`tf.recompute_grad`, `keras.remat`, `keras.RematScope`) is differentiated by its
            arguments and by variables alone. So it, and each call after it, which may be its
            repetition, reads the variables, gives them no gradient, and keeps what it finds.

    Attributes:
        found: list of `(K, S, L)`, the parts that such calls have found.
    """

    def __init__(self, factorization, keep_calls=False, by_rows=False, factors=None):
        self.K = tf.identity(factorization.U)
        # What U is read from as the first factor: a tape would make slices of n rows where it adds
        # a gradient by rows to that of a transposed application.
        self._first = tf.identity(factorization.U) if by_rows else self.K
        self.S = tf.identity(factorization.S)
        self.L = tf.identity(factorization.V)
        self.core = tf.identity(factorization.S)
        self._calls = [] if keep_calls else None
        self._core_by_pass, self._half = True, False
        self._factors, self._by_variables, self.found = factors, False, []
        self._differentiated = False

    @property
    def sources(self):
        """What to differentiate the loss by; `tangent` takes the gradients in this order."""
        sources = [self.K, self.S, self.L, self.core]
        return sources if self._first is self.K else [*sources, self._first]

    def apply(self, form, inputs, dtype, transposed=False):
        # Indices have no gradient, nor have sparse inputs, which are data.
        is_float = inputs.dtype.is_floating
        smooth = is_float and not isinstance(inputs, tf.SparseTensor)
        # A batch of vectors is shorter than a basis as a rule, and z^T dV the cheaper way to the
        # S-part; images, vectors in sequence and indices have more places.
        self._core_by_pass &= is_float and inputs.shape.rank == 2

        @tf.custom_gradient
        def apply(x, first, core, last):
            x = x if smooth else inputs
            # One tape each: the two adjoints are asked for with different arguments, and a tape of
            # both would run both every time. Persistent, for a loss that takes gradients itself.
            tape, basis_tape = (tf.GradientTape(persistent=True) for _ in range(2))
            with tape, basis_tape:
                if smooth:
                    tape.watch(x)
                basis_tape.watch(first)
                z = form.project(x, first)
            if is_float:
                outputs = form.expanded(matmul_last(z, core), last)
            else:  # V has fewer rows than a batch has indices. In other layers this gains nothing.
                outputs = form.expanded(z, tf.matmul(last, core, transpose_b=True))

            def gradient(d):
                dv = form.pulled_back(d, last, z)
                if self._calls is not None:
                    self._calls.append(_Call(form, transposed, x, z, d, dv))
                dx = None
                if smooth:
                    dx = tape.gradient(z, x, matmul_last(dv, core, transpose=True))
                parts = (
                    self._of_first(basis_tape.gradient(z, first, dv)),
                    tf.matmul(rows(z), rows(dv), transpose_a=True),
                    form.of_basis(d, z, last),
                )
                if not transposed:
                    return first_order_only(dx), *self._handed_over(*parts)
                l, s, k = parts
                k, s, l = self._handed_over(k, tf.transpose(s), l)
                return first_order_only(dx), l, None if s is None else tf.transpose(s), k

            return outputs, gradient

        k, core, last = self.in_type(dtype)
        x = inputs if smooth else tf.zeros([])
        if transposed:
            return apply(x, last, tf.transpose(core), k)
        return apply(x, k if self._by_variables else tf.cast(self._first, dtype), core, last)

    def forget_calls(self):
        """Drops what was kept of gradients that are not those of the step."""
        self.found.clear()
        if self._calls is not None:
            self._calls.clear()

    def in_type(self, dtype):
        """What a call multiplies with, in the type that it computes in: `K`, `S` and `L`.

        Or the variables that hold the same, see `factors`.
        """
        self._half |= dtype != self.K.dtype
        self._by_variables |= self._factors is not None and not keras_internals.is_recorded()
        parts = self._factors.read() if self._by_variables else (self.K, self.S, self.L)
        return [tf.cast(part, dtype) for part in parts]

    def _handed_over(self, *parts):
        """The gradients of `K`, `S` and `L` for the tape; None where they are kept here."""
        self._differentiated = True
        if not self._by_variables:
            return parts
        if not tf.executing_eagerly() and parts[0].graph is not self.K.graph:
            raise ValueError(
                "A low-rank layer whose outputs are recomputed in the backward pass "
                "(`tf.recompute_grad`, `keras.remat`, `keras.RematScope`) must not be inside a "
                "`tf.while_loop`, a `tf.cond` or another traced function."
            )
        self.found.append([tf.cast(part, self.K.dtype) for part in parts])
        return None, None, None

    def _of_first(self, gradient):
        """The gradient of a basis; that of a gather comes row by row."""
        if self._first is not self.K and not self._by_variables:
            return gradient
        return row_slices.dense(gradient, self.K.shape[0])

    def gradients_at(self, inputs, d, u, v):
        """The gradients of `K`, `S` and `L` by one plain product, from its inputs and its d."""
        self._core_by_pass = False  # of a sequence
        z, dv = matmul_last(inputs, u), matmul_last(d, v)
        if self._calls is not None:
            self._calls.append(_Call(PLAIN, False, inputs, z, d, dv))
        x, z, d, dv = map(rows, (inputs, z, d, dv))
        pairs = (x, dv), (z, dv), (d, z)
        return self._handed_over(*(tf.matmul(a, b, transpose_a=True) for a, b in pairs))

    def with_found(self, gradients):
        """The gradients of `sources`, and what recomputed calls have found.

        Raises:
            ValueError: when the tape has gradients of another kind, of the copies as such.
        """
        if self.reached(gradients) and not self._differentiated:
            raise ValueError(
                "A low-rank layer must not be called inside `tf.vectorized_map` or "
                "`keras.ops.vectorized_map`, which lose its gradient on the manifold. Call it on "
                "all vectors at once, or in `tf.map_fn` or a `tf.while_loop`."
            )
        *parts, penalty = gradients[:4]
        for index, part in enumerate(parts):
            terms = [part, *(found[index] for found in self.found)]
            terms = [term for term in terms if term is not None]
            parts[index] = functools.reduce(row_slices.plus, terms) if terms else None
        return [*parts, penalty, *gradients[4:]]

    def reached(self, gradients):
        """Whether the loss depends on what the layer puts out; `gradients` as in `tangent`."""
        k, _, _, _, *first = gradients
        return any(part is not None for part in (k, *first))

    def is_moved(self, gradients):
        """Whether a step has anything to do with the layer; `gradients` as in `tangent`."""
        return self.reached(gradients) or gradients[3] is not None  # its regularizer's

    def tangent(self, gradients):
        """The tangent gradient, from the gradients of `sources` (None where there is none)."""
        k, s, l, penalty, *first = gradients
        parts = [
            row_slices.collected(part, self.K.shape[0]) for part in (k, *first) if part is not None
        ]
        if not self.reached(gradients):
            parts, s, l = [tf.zeros_like(self.K)], tf.zeros_like(self.S), tf.zeros_like(self.L)
        k = functools.reduce(row_slices.plus, parts)
        if self._half:  # its products leave the parts with roundings of their own
            k, s, l = paired(k, l, self.K, self.L)
        elif not self._core_by_pass:
            s = self._core(k, l)
        if penalty is not None:
            k = row_slices.plus(tf.matmul(self.K, penalty), k)
            s += penalty
            l += tf.matmul(self.L, penalty, transpose_b=True)
        return TangentVector(k, s, l)

    def _core(self, k, l):
        """The S-part of two others, by the shorter of the bases."""
        if self.K.shape[0] <= self.L.shape[0]:
            return row_slices.inner(self.K, k)
        return tf.matmul(l, self.L, transpose_a=True)

    def coupling(self, left, right, row_scale=None, column_scale=None):
        r"""Returns `Q^T diag(p) G diag(q) Z` for bases that the backward pass did not know.

        From its x and d, `sum over calls of project(x, diag(p) Q)^T (d diag(q) Z)`, for `d Z` the
        adjoint of `expand`: two small products, no second pass.

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
        sides = (left, self.K, row_scale), (right, self.L, column_scale)
        for call in self._calls:
            if not tf.executing_eagerly() and call.d.graph is not self.K.graph:
                raise ValueError(
                    "`integrator='rank_adaptive'` needs the inputs and the output gradients of "
                    "every low-rank layer, and cannot read them where a layer is called inside a "
                    "`tf.while_loop`, a `tf.cond` or another traced function. Call the layer "
                    "outside of it, or use `integrator='parallel'`, which needs neither."
                )
            if call.transposed:
                total += tf.transpose(call.coupling(*reversed(sides)))
            else:
                total += call.coupling(*sides)
        return total


class _Call(NamedTuple):
    """One application of `A S B^T` to x, with `z = project(x, A)`, `d = dLoss/dy`, `dv = d B`."""

    form: Form
    transposed: bool
    inputs: tf.Tensor
    z: tf.Tensor
    d: tf.Tensor
    dv: tf.Tensor

    def coupling(self, left, right):
        """`project(x, diag(p) Q)^T (d diag(q) Z)`; each side a complement, its basis, a scale."""
        form, _, inputs, z, d, dv = self
        (left, basis, row_scale), (right, other_basis, column_scale) = left, right
        if d.dtype == left.root.dtype and row_scale is None:
            x_q = _in_basis(form.project(inputs, left.residual), z, left)
            d_z = _in_basis(self._pulled_back(right.residual), dv, right)
        else:  # half precision has no digits to spare for directions that T has to enlarge
            q, z_basis = left.formed(basis), right.formed(other_basis)
            if row_scale is not None:
                q, z_basis = row_scale[:, None] * q, column_scale[:, None] * z_basis
            x_q = form.project(inputs, tf.cast(q, d.dtype))
            d_z = self._pulled_back(tf.cast(z_basis, d.dtype))
        x_q, d_z = (tf.cast(rows(y), left.root.dtype) for y in (x_q, d_z))
        return tf.matmul(x_q, d_z, transpose_a=True)

    def _pulled_back(self, basis):
        """The adjoint of `expand` in coordinates by another basis than that of z."""
        shape = tf.concat([tf.shape(self.z)[:-1], [extent(basis, 1)]], axis=0)
        coordinates = tf.ensure_shape(
            tf.zeros(shape, basis.dtype), [*self.z.shape[:-1], basis.shape[1]]
        )
        return self.form.pulled_back(self.d, basis, coordinates)


def _in_basis(by_residual, by_basis, added):
    """`y Q = (y R) T - (y B) C` for the basis Q of a `Complement`, given `y R` and `y B`.

    T comes before two of these meet: its columns are as long as directions are faint, and applied
    from both sides afterwards they would raise rounding to the square of that.
    """
    return tf.matmul(rows(by_residual), added.root) - tf.matmul(rows(by_basis), added.leak)


def first_order_only(gradient):
    """A gradient by inputs, that no gradient may be taken of; None for None."""
    if gradient is None:
        return None

    @tf.custom_gradient
    def first_order(gradient):
        def refuse(_):
            raise ValueError(
                "The loss must not depend on a gradient through a low-rank layer: its own gradient "
                "would be one of U, S and V, and not one on the manifold. Put "
                "`tf.stop_gradient` around the gradient that the loss is computed from, take "
                "differences of outputs in its place, or train such a network as a `keras.Model`."
            )

        return tf.identity(gradient), refuse

    return first_order(gradient)
