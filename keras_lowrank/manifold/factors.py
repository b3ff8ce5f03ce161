"""The variables that hold one matrix, W = U S V^T, at a rank that may change."""

import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.plain_training import notice
from keras_lowrank.manifold.point import Point, diagonalized


class RankVariable(keras.Variable):
    """A Keras variable some of whose extents are the rank and may change.

    The `tf.Variable` underneath has the static shape `(n, None)` (or `(None, None)`), so that one
    traced `tf.function` serves every rank and memory follows the rank. It takes no part in
    autocasting: factors keep their own precision under every mixed-precision policy.

    Args:
        initializer: callable `(shape, dtype) -> tensor`.
        shape: tuple of int, the shape to start with.
        open_axes: tuple of int, the axes whose extent is the rank.
        dtype: str, the float type that the values are held in.
        name: str.
    """

    def __init__(self, initializer, shape, open_axes, dtype, name):
        self.assigned_outside = False
        self.trained_plainly = False
        self._open_axes = tuple(open_axes)
        self._open_shape = tuple(
            None if axis in self._open_axes else extent for axis, extent in enumerate(shape)
        )
        super().__init__(
            initializer=initializer,
            shape=shape,
            dtype=dtype,
            autocast=False,
            # Replicas compute equal factors; with "none" a difference would go unnoticed.
            aggregation="only_first_replica",
            name=name,
        )

    def _initialize(self, value):
        self._value = keras_internals.open_variable(self, value, self._open_shape)

    @property
    def shape(self):
        """The present shape. In traced code take it from a tensor: this one is today's."""
        if self._value is None:
            return tf.TensorShape(self._shape)
        # Outside of the function being traced, if any: an optimizer that makes its slots there
        # needs extents that are known. Only a model that never changes a rank lets it.
        if self.is_made_in_trace:
            return tf.TensorShape(self._shape)
        with tf.init_scope():
            return self._value.read_value().shape

    @property
    def is_made_in_trace(self):
        """bool, whether the function that is being traced makes it: it has no value yet."""
        with tf.init_scope():
            return not self._value.is_initialized()

    @property
    def constraint(self):
        """None, as a rule. A Keras optimizer reads it after each update of the variable."""
        if not self.trained_plainly:
            notice(self, RankVariable)
        return super().constraint

    @constraint.setter
    def constraint(self, value):
        keras.Variable.constraint.fset(self, value)

    def fits(self, shape):
        """Whether a value of this shape can be assigned: only the rank may differ."""
        return tf.TensorShape(self._open_shape).is_compatible_with(shape)

    def assign(self, value):
        """Sets the value; the rank may differ from the present one, `n` and `m` may not."""
        value = self._convert_to_tensor(value, dtype=self._dtype)
        if not self.fits(value.shape):
            raise ValueError(
                f"A value assigned to {self.path!r} must have the shape {self._open_shape}, where "
                f"None is the rank. Received: shape={tuple(value.shape)}"
            )
        if keras_internals.in_stateless_scope():
            return super().assign(value)
        self.assigned_outside |= tf.executing_eagerly()
        self._direct_assign(value)
        return value

    def _restore_from_tensors(self, restored_tensors):
        # `tf.train.Checkpoint` assigns to the `tf.Variable` underneath.
        self.assigned_outside = True
        return super()._restore_from_tensors(restored_tensors)

    def __deepcopy__(self, memo):
        # The copy that tf.Variable makes of itself has the present shape, not the open one.
        shape = tuple(self.shape)
        copy = type(self)(
            lambda *_, **__: self._value.read_value(),
            shape,
            self._open_axes,
            self._dtype,
            self._name,
        )
        copy._path = self._path
        copy.trainable = self.trainable
        copy.regularizer = self.regularizer
        copy.assigned_outside = self.assigned_outside
        copy.trained_plainly = self.trained_plainly
        memo[id(self)] = copy
        return copy


class Factors:
    """The three variables that hold one matrix `W = U S V^T` of shape `(n, m)` at any rank.

    Args:
        initializers: three callables `(shape, dtype) -> tensor`, for U, S and V.
        n: int, rows of the matrix (the input side).
        m: int, columns of the matrix (the output side).
        rank: int, the rank to start with.
        dtype: str, the float type of the factors.
    """

    def __init__(self, initializers, n, m, rank, dtype):
        make_u, make_s, make_v = initializers
        self.n, self.m = n, m
        self.U = RankVariable(make_u, (n, rank), (1,), dtype, name="U")
        self.S = RankVariable(make_s, (rank, rank), (0, 1), dtype, name="S")
        self.V = RankVariable(make_v, (m, rank), (1,), dtype, name="V")
        self._owner = None

    @property
    def variables(self):
        return [self.U, self.S, self.V]

    @property
    def rank(self):
        """The present rank, an int. Outside of traced functions only."""
        return int(self.S.shape[0])

    def singular_values(self):
        """The singular values of the matrix, descending, a NumPy array of shape `(r,)`.

        The bases need not be orthonormal: factors of a plain `keras.Model` are not.
        """
        u, s, v = (tensor.numpy() for tensor in self.read())
        core = np.linalg.qr(u, "r") @ s @ np.linalg.qr(v, "r").T
        return np.linalg.svd(core, compute_uv=False)

    def read(self):
        """The present values, as a `Point`."""
        return Point(*(tf.convert_to_tensor(v.value) for v in self.variables))

    def assign(self, factorization):
        """Sets all three factors, or none: Ctrl-C may come between two of them, of two ranks."""
        self.check_shapes(*(value.shape for value in factorization))
        before = self.read() if tf.executing_eagerly() else ()
        try:
            for variable, value in zip(self.variables, factorization, strict=True):
                variable.assign(value)
        except BaseException:
            for variable, value in zip(self.variables, before):
                variable.assign(value)
            raise

    def is_owned_by(self, training):
        """Whether nobody but `training`, an object, has assigned a factor since it took them.

        Another training may have, in another model that shares the layer or with another optimizer:
        what was kept for the matrix that was left is then of no use.
        """
        return self._present_owner() is training

    def is_owned_by_another(self, training):
        """Whether another training than `training` was the last to assign a factor."""
        return self._present_owner() not in (None, training)

    def _present_owner(self):
        """The training that has assigned the present values; None where that is not known."""
        outside = any(v.assigned_outside for v in self.variables)
        return None if outside or self._owner is None else self._owner()

    def orthonormalize(self):
        """Makes the bases orthonormal and S diagonal; W stays what it is. On the host only.

        Raises:
            ValueError: the shapes are not those of one matrix of this size.
        """
        present = self.read()
        self.check_shapes(*(tensor.shape for tensor in present))
        self.assign(diagonalized(Point(*orthonormalized(*present))))

    def set_owner(self, training):
        """Notes that `training` goes on from the present values, and that they need no look."""
        self._owner = weakref.ref(training)
        for variable in self.variables:
            variable.assigned_outside = False

    def check_trainable(self, path):
        """Raises ValueError where only some of the factors of the layer at `path` are trainable."""
        frozen = [variable.name for variable in self.variables if not variable.trainable]
        if frozen:
            raise ValueError(
                "U, S and V of a low-rank layer are trained together. Freeze the layer, by "
                f"`layer.trainable = False`. Received: frozen factors {frozen} in layer {path!r}"
            )

    def check_shapes(self, u, s, v):
        """Raises ValueError unless the shapes are those of one matrix of this size."""
        n, m = self.n, self.m
        fit = (
            tf.TensorShape(u).is_compatible_with([n, None])
            and tf.TensorShape(v).is_compatible_with([m, None])
            and tf.TensorShape(s).is_compatible_with([u[1], u[1]])
            and tf.TensorShape([u[1]]).is_compatible_with([v[1]])
            and (u[1] is None or 1 <= u[1] <= min(n, m))
        )
        if not fit:
            raise ValueError(
                f"The factors of a {n} x {m} matrix must have the shapes U ({n}, r), S (r, r) and "
                f"V ({m}, r) with one rank r, 1 <= r <= {min(n, m)}. "
                f"Received: U {tuple(u)}, S {tuple(s)}, V {tuple(v)}"
            )
