"""The variables of one matrix W = U S V^T, whose rank may change."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.plain_training import notice
from keras_lowrank.manifold.point import Point, diagonalized
from keras_lowrank.manifold.tangent_vector import TangentVector


class RankVariable(keras.Variable):
    """A Keras variable with axes whose size is the rank, which may change.

    The `tf.Variable` underneath has the static shape `(n, None)` (or `(None, None)`). One traced
    `tf.function` serves every rank, and memory follows the rank. Autocasting leaves it alone:
    factors keep their precision under every mixed-precision policy.

    Args:
        initializer: callable `(shape, dtype) -> tensor`.
        shape: tuple of int, the initial shape.
        open_axes: tuple of int, the axes whose size is the rank.
        dtype: str, the float type of the values.
        name: str.

    Attributes:
        assigned_outside: bool, whether someone other than the owner has assigned a value.
        trained_plainly: bool, whether a Keras optimizer updates it as an ordinary weight.
    """

    def __init__(
        self,
        initializer: Callable[..., tf.Tensor],
        shape: Sequence[int],
        open_axes: Sequence[int],
        dtype: str,
        name: str,
    ) -> None:
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
    def shape(self) -> tf.TensorShape:
        """The present shape. In traced code read it from a tensor: the rank may change later."""
        if self._value is None:
            return tf.TensorShape(self._shape)
        # Read outside of the function being traced: an optimizer that makes its slots there needs
        # a known shape. Only models whose ranks never change let it do so.
        if self.is_made_in_trace:
            return tf.TensorShape(self._shape)
        with tf.init_scope():
            return self._value.read_value().shape

    @property
    def is_made_in_trace(self) -> bool:
        """Whether the function being traced creates it, so that it has no value yet."""
        with tf.init_scope():
            return not self._value.is_initialized()

    @property
    def constraint(self) -> Callable | None:
        """As in Keras; reading it tells that a Keras optimizer updates the variable."""
        if not self.trained_plainly:
            notice(self, RankVariable)
        return super().constraint

    @constraint.setter
    def constraint(self, value: Callable | None) -> None:
        keras.Variable.constraint.fset(self, value)

    @property
    def open_axes(self) -> tuple[int, ...]:
        """The axes whose size is the rank."""
        return self._open_axes

    def fits(self, shape: Sequence[int | None]) -> bool:
        """Whether a value of this shape can be assigned: only the rank may differ."""
        return tf.TensorShape(self._open_shape).is_compatible_with(shape)

    def assign(self, value: Any) -> tf.Tensor:
        """Sets the value; its rank may differ from the present one, `n` and `m` may not."""
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
        # A copied tf.Variable has the present shape, not the open one.
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
    """The three variables of one matrix `W = U S V^T` of shape `(n, m)`, at any rank.

    Args:
        initializers: three callables `(shape, dtype) -> tensor`, for U, S and V.
        n: int, rows of the matrix (the input side).
        m: int, columns of the matrix (the output side).
        rank: int, the initial rank.
        dtype: str, the float type of the factors.

    Attributes:
        point_type: class of the values.
        vector_type: class of the tangent vectors there.
    """

    point_type: type[Point] = Point
    vector_type: type[TangentVector] = TangentVector

    def __init__(
        self,
        initializers: Sequence[Callable[..., tf.Tensor]],
        n: int,
        m: int,
        rank: int,
        dtype: str,
    ) -> None:
        make_u, make_s, make_v = initializers
        self.n, self.m = n, m
        self.U = RankVariable(make_u, (n, rank), (1,), dtype, name="U")
        self.S = RankVariable(make_s, (rank, rank), (0, 1), dtype, name="S")
        self.V = RankVariable(make_v, (m, rank), (1,), dtype, name="V")
        self._owner: weakref.ref | None = None

    @property
    def variables(self) -> list[RankVariable]:
        return [self.U, self.S, self.V]

    @property
    def rank(self) -> Any:
        """The present rank. Outside of traced functions only."""
        return int(self.S.shape[0])

    @property
    def shape(self) -> str:
        """The shape of the matrix in words."""
        return f"{self.n} x {self.m}"

    @property
    def full(self) -> int:
        """`n m`, the number of weights at full rank."""
        return self.n * self.m

    @property
    def factored(self) -> int:
        """`r (n + m)`, the number of weights as two factors, `U S` and V."""
        return self.rank * (self.n + self.m)

    @property
    def held(self) -> int:
        """The number of weights in all three variables."""
        return sum(math.prod(variable.shape) for variable in self.variables)

    @property
    def columns(self) -> int:
        """How many columns can be active or frozen: the length of a chart's scale."""
        return self.rank

    def deployed(self) -> list[tf.Tensor]:
        """The factors of an export, `U S` and V."""
        u, s, v = self.read()
        return [tf.matmul(u, s), v]

    def singular_values(self) -> np.ndarray:
        """The singular values of the matrix, descending, shape `(r,)`.

        The bases need not be orthonormal: those of a plain `keras.Model` are not.
        """
        u, s, v = (tensor.numpy() for tensor in self.read())
        left, right = (np.asarray(np.linalg.qr(basis, mode="r")) for basis in (u, v))
        return np.linalg.svd(left @ s @ right.T, compute_uv=False)

    def read(self) -> Point:
        """The present values."""
        return self.point_type(*(tf.convert_to_tensor(v.value) for v in self.variables))

    def assign(self, point: Sequence[Any]) -> None:
        """Sets all three factors, or none of them, also when Ctrl-C comes in between."""
        self.check_shapes(*(value.shape for value in point))
        before: Any = self.read() if tf.executing_eagerly() else ()
        try:
            for variable, value in zip(self.variables, point, strict=True):
                variable.assign(value)
        except BaseException:
            for variable, value in zip(self.variables, before):
                variable.assign(value)
            raise

    def is_owned_by(self, training: object) -> bool:
        """Whether `training` was the last to assign the factors.

        Otherwise its moments belong to another matrix. Models that share a layer, or a second
        optimizer, may assign factors too.
        """
        return self._present_owner() is training

    def is_owned_by_another(self, training: object) -> bool:
        """Whether another owner than `training` was the last to assign the factors."""
        return self._present_owner() not in (None, training)

    def _present_owner(self):
        """The owner of the present values; None if it is not known."""
        outside = any(v.assigned_outside for v in self.variables)
        return None if outside or self._owner is None else self._owner()

    def orthonormalize(self) -> None:
        """Makes the bases orthonormal and S diagonal, and keeps W. On the host only.

        Raises:
            ValueError: the shapes are not those of one matrix of this size.
        """
        present = self.read()
        self.check_shapes(*(tensor.shape for tensor in present))
        self.assign(diagonalized(Point(*orthonormalized(*present))))

    def set_owner(self, training: object) -> None:
        """Records that `training` continues from the present values."""
        self._owner = weakref.ref(training)
        for variable in self.variables:
            variable.assigned_outside = False

    def check_trainable(self, path: str) -> None:
        """Raises ValueError if only some of the factors of the layer at `path` are trainable."""
        frozen = [variable.name for variable in self.variables if not variable.trainable]
        if frozen:
            raise ValueError(
                "U, S and V of a low-rank layer are trained together. Freeze the whole layer with "
                f"`layer.trainable = False`. Received: frozen factors {frozen} in layer {path!r}"
            )

    def check_shapes(self, u: Sequence, s: Sequence, v: Sequence) -> None:
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
