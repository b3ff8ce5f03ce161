"""Several devices and hosts: what the replicas of a training step share, and what they agree on.

A step runs in every replica (`tf.distribute`), on its own part of the batch and with the same
factors. Replicas exchange

- the sizes of their batches: one number;
- the sums of the gradients of U, S and V, `r (n + m + r)` numbers a matrix, of those of all other
  variables, and of the loss, once for each pass over the network;
- whether what came of them is finite: two numbers;
- `RankAdaptive` and `FixedRank` with `adapt_every=1`: the bases of a second pass, its gradients;
- between hosts, the new factors and what the optimizer keeps for them.

The n x m gradient of full-rank training is never there to be sent.

No replica decides anything for itself. The same operations on the same sums may be rounded in
another way on another device, or at another place in memory; then one singular value at the
tolerance would leave replicas with factors of different shapes, and two equal ones with bases that
have nothing in common. So it is the first replica whose bases and whose new factors count, ranks
included: `first` and, between hosts, `to_assign` send them, and inside of a process an assignment
takes them (`only_first_replica`). What the others work out is not looked at; most of it TensorFlow
prunes from their graphs.
"""

import tensorflow as tf

from keras_lowrank import keras_internals

_SUPPORTED = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)


class Replicas:
    """All replicas of the present step, seen from one of them; without a strategy there is one.

    Methods take and return structures of tensors, None among them, of the same shapes in all
    replicas. They must not be called inside of a `tf.cond` or a loop.

    Attributes:
        count: int, how many there are.
    """

    def __init__(self):
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

    def sum(self, structure):
        """The sums over all replicas."""
        if self.count == 1:
            return structure
        flat = tf.nest.flatten(structure)
        sums = iter(self._all_reduce([tensor for tensor in flat if tensor is not None]))
        return tf.nest.pack_sequence_as(structure, [t if t is None else next(sums) for t in flat])

    def share(self, inputs):
        """What the loss of this replica is multiplied with, so that the sum is that of one batch.

        Keras divides every loss that is a mean by the number of replicas, as if all had equally
        many examples. The last batch of an epoch may not divide evenly.

        Args:
            inputs: structure of tensors, batches of this replica.

        Returns:
            Scalar float64 tensor, 1 where all have equally many; None for one replica.
        """
        if self.count == 1:
            return None
        batch = next(tensor for tensor in tf.nest.flatten(inputs) if tensor is not None)
        size = tf.cast(tf.shape(batch)[0], tf.float64)
        return tf.math.divide_no_nan(self.count * size, self.sum(size))

    def decided(self, flag):
        """A scalar bool tensor, as the first replica has it."""
        return flag if self.count == 1 else self.first(tf.cast(flag, tf.float32)) > 0.0

    def first(self, structure):
        """What the first replica has, exactly: a sum with zeros is."""
        if self.count == 1:
            return structure
        flat = tf.nest.flatten(structure)
        own = flat if self._is_first() else [tf.zeros_like(tensor) for tensor in flat]
        return tf.nest.pack_sequence_as(structure, self._all_reduce(own))

    def to_assign(self, structure):
        """What the first replica has, where the others do not even know its ranks.

        Inside of one process it does nothing: there an assignment does the same.
        """
        if not self._span_hosts:
            return structure
        flat = tf.nest.flatten(structure)
        ranks = [tf.shape(t)[i] for t in flat for i, n in enumerate(t.shape) if n is None]
        ranks = self.first([tf.cast(rank, tf.float32) for rank in ranks])
        ranks = iter([tf.cast(rank, tf.int32) for rank in ranks])
        shapes = [[next(ranks) if n is None else n for n in t.shape] for t in flat]
        if not self._is_first():
            flat = [tf.zeros(shape, tensor.dtype) for tensor, shape in zip(flat, shapes)]
        return tf.nest.pack_sequence_as(structure, self._all_reduce(flat))

    def _is_first(self):
        return tf.get_static_value(self._context.replica_id_in_sync_group) == 0

    def _all_reduce(self, tensors):
        return self._context.all_reduce(tf.distribute.ReduceOp.SUM, tensors) if tensors else []


def check_strategy(optimizer):
    """Raises ValueError where the present strategy cannot train a low-rank model.

    Args:
        optimizer: the Keras optimizer, not a scaling one; None for a model that is not trained.
    """
    strategy = tf.distribute.get_strategy()
    several = optimizer is not None and strategy.num_replicas_in_sync > 1
    if several and optimizer.gradient_accumulation_steps:
        raise ValueError(
            "`gradient_accumulation_steps` must be None under a strategy of several replicas: "
            "Keras updates variables inside of a branch there, which `tf.distribute` does not "
            "allow. Use a smaller batch for each replica and a smaller learning rate. Received: "
            f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}"
        )
    if not tf.distribute.has_strategy() or isinstance(strategy, _SUPPORTED):
        return
    raise ValueError(
        "A `LowRankModel` trains under OneDeviceStrategy, MirroredStrategy and "
        "MultiWorkerMirroredStrategy of `tf.distribute`: every replica must take every step, and "
        "factors must change their shapes with their ranks. A ParameterServerStrategy has workers "
        "that step one by one, and TPUs need shapes that are known when a step is compiled. "
        f"Received: {type(strategy).__name__}"
    )


def check_steps_per_execution(steps, strategy):
    """Raises ValueError where several replicas would take several steps in one call."""
    if steps > 1 and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`steps_per_execution` must be 1 under a strategy of several replicas: TensorFlow "
            "fails in the loop that it puts around the steps. "
            f"Received: steps_per_execution={steps}"
        )
