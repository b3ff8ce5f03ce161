"""Replicas of a training step on several devices and hosts: what they exchange.

Every replica (`tf.distribute`) runs the step on its part of the batch, with the same factors.
Replicas exchange

- the sizes of their batches: one number;
- for each pass, the sums of the loss, of the gradients of U, S and V (`r (n + m + r)` numbers a
  matrix), and of the gradients of all other variables;
- whether the results are finite: two numbers;
- `RankAdaptive` and `FixedRank` with `adapt_every=1`: the bases of the second pass;
- between hosts, the new factors and their optimizer state.

The n x m gradient of full-rank training is never sent.

The first replica decides. Rounding differs between devices and memory layouts: a singular value at
the tolerance would give factors of different shapes, and equal singular values unrelated bases. So
the bases, new factors and ranks of the first replica count: `first` and, between hosts, `to_assign`
send them, and within a process assignment uses them (`only_first_replica`). TensorFlow prunes most
of the others' work.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals

_SUPPORTED = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)


class Replicas:
    """All replicas of the present step, seen from one of them; without a strategy there is one.

    Methods take and return structures of tensors and None, with the same shapes in all replicas.
    They must not be called inside a `tf.cond` or a loop.

    Attributes:
        count: int, the number of replicas.
    """

    def __init__(self) -> None:
        strategy = tf.distribute.get_strategy()
        self.count = strategy.num_replicas_in_sync
        self._context = tf.distribute.get_replica_context()
        self._span_hosts = keras_internals.spans_hosts(strategy)
        if self._context is None:
            raise ValueError(
                "A training step must run in every replica: "
                "`strategy.run(model.train_step, args=(batch,))`. Received: a call of `train_step` "
                "in cross-replica context"
            )

    def sum(self, structure: Any) -> Any:
        """The sums over all replicas."""
        if self.count == 1:
            return structure
        flat = tf.nest.flatten(structure)
        sums = iter(self._all_reduce([tensor for tensor in flat if tensor is not None]))
        return tf.nest.pack_sequence_as(structure, [t if t is None else next(sums) for t in flat])

    def share(self, inputs: Any) -> tf.Tensor | None:
        """The factor for the loss of this replica, so that the sum is the loss of the whole batch.

        Keras divides a mean loss by the number of replicas, as if their batches were equal. The
        last batch of an epoch may not divide evenly.

        Args:
            inputs: structure of tensors, batches of this replica.

        Returns:
            Scalar float64 tensor, 1 if all batches are equal; None for one replica.
        """
        if self.count == 1:
            return None
        batch = next(tensor for tensor in tf.nest.flatten(inputs) if tensor is not None)
        size = tf.cast(tf.shape(batch)[0], tf.float64)
        return tf.math.divide_no_nan(self.count * size, self.sum(size))

    def decided(self, flag: tf.Tensor) -> tf.Tensor:
        """A scalar bool tensor of the first replica."""
        return flag if self.count == 1 else self.first(tf.cast(flag, tf.float32)) > 0.0

    def first(self, structure: Any) -> Any:
        """The values of the first replica, exactly: it sums them with zeros."""
        if self.count == 1:
            return structure
        flat = tf.nest.flatten(structure)
        own = flat if self._is_first() else [tf.zeros_like(tensor) for tensor in flat]
        return tf.nest.pack_sequence_as(structure, self._all_reduce(own))

    def to_assign(self, structure: Any) -> Any:
        """The values of the first replica, whose ranks the others may not know.

        Within one process it does nothing: assignment does the same there.
        """
        if not self._span_hosts:
            return structure
        flat = tf.nest.flatten(structure)
        ranks = [tf.shape(t)[i] for t in flat for i, n in enumerate(t.shape) if n is None]
        ranks = self.first([tf.cast(rank, tf.float32) for rank in ranks])
        known = iter([tf.cast(rank, tf.int32) for rank in ranks])
        shapes = [[next(known) if n is None else n for n in t.shape] for t in flat]
        if not self._is_first():
            flat = [tf.zeros(shape, tensor.dtype) for tensor, shape in zip(flat, shapes)]
        return tf.nest.pack_sequence_as(structure, self._all_reduce(flat))

    def _is_first(self):
        return tf.get_static_value(self._context.replica_id_in_sync_group) == 0

    def _all_reduce(self, tensors):
        return self._context.all_reduce(tf.distribute.ReduceOp.SUM, tensors) if tensors else []


def check_strategy(optimizer: keras.optimizers.Optimizer | None) -> None:
    """Raises ValueError if the present strategy cannot train a low-rank model.

    Args:
        optimizer: the Keras optimizer, not a loss-scaling one; None for a model without training.
    """
    strategy = tf.distribute.get_strategy()
    steps = None if optimizer is None else optimizer.gradient_accumulation_steps
    if steps and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`gradient_accumulation_steps` must be None under a strategy of several replicas: "
            "Keras updates variables inside a branch there, which `tf.distribute` does not "
            "allow. Use a smaller batch for each replica and a smaller learning rate. Received: "
            f"gradient_accumulation_steps={steps}"
        )
    if not tf.distribute.has_strategy() or isinstance(strategy, _SUPPORTED):
        return
    raise ValueError(
        "A `LowRankModel` trains under OneDeviceStrategy, MirroredStrategy and "
        "MultiWorkerMirroredStrategy of `tf.distribute`: every replica must take every step, and "
        "the shapes of factors change with their ranks. Workers of a ParameterServerStrategy step "
        "one by one, and TPUs need shapes that are known when a step is compiled. "
        f"Received: {type(strategy).__name__}"
    )


def check_steps_per_execution(steps: int, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError if several replicas would take several steps in one call."""
    if steps > 1 and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`steps_per_execution` must be 1 under a strategy of several replicas: TensorFlow "
            "fails in the loop around the steps. "
            f"Received: steps_per_execution={steps}"
        )
