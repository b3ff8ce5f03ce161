"""Faults to plant in the package, and which quick tests are to catch each of them.

Each is one line that an inattentive change might leave behind: a sign, a side, a factor, a moment
that is not carried, a mask that is dropped. What `test_planted_faults` does with them is slow.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of the source, and who has to notice.

    Attributes:
        file: str, in `keras_lowrank/`.
        right: str, what stands there, once.
        wrong: str, what stands there instead.
        tests: str, a file in `tests/`.
        chosen: str, an expression that chooses tests of that file, as `pytest -k` reads it.
    """

    file: str
    right: str
    wrong: str
    tests: str
    chosen: str = ""


NUMERICS = {
    "a projection that is added": Fault(
        "linalg.py",
        "residual = block - tf.matmul(basis, inside)",
        "residual = block + tf.matmul(basis, inside)",
        "test_linalg.py",
        "complement",
    ),
    "a leak that stays": Fault(
        "linalg.py",
        "inside -= tf.matmul(added.leak, outside)",
        "inside -= 0.0 * tf.matmul(added.leak, outside)",
        "test_linalg.py",
        "leak",
    ),
    "signs of one side alone": Fault(
        "linalg.py",
        "return left * signs, right * signs",
        "return left * signs, right",
        "test_linalg.py",
        "signed_svd",
    ),
    "a core that loses what the bases leave": Fault(
        "linalg.py",
        "signed_svd(tf.matmul(tf.matmul(left_root, middle), right_root))",
        "signed_svd(tf.matmul(tf.matmul(left_inverse, middle), right_root))",
        "test_linalg.py",
        "orthonormalized",
    ),
    "a second basis that is not looked at": Fault(
        "linalg.py",
        "defect = tf.maximum(*(spectral_norm",
        "defect = tf.minimum(*(spectral_norm",
        "test_linalg.py",
        "orthonormalized",
    ),
    "coordinates that are not mended": Fault(
        "linalg.py",
        "1.5 * coordinates - 0.5 * tf.matmul(coordinates, gram)",
        "1.0 * coordinates - 0.0 * tf.matmul(coordinates, gram)",
        "test_linalg.py",
        "rotate",
    ),
    "a tangent vector that is subtracted too little": Fault(
        "tangent_vector.py",
        "l_v = factor * inner(l, v1) - tf.matmul(s, v_v)",
        "l_v = factor * inner(l, v1) - 0.5 * tf.matmul(s, v_v)",
        "test_tangent_vector.py",
    ),
    "a transport that forgets its factor": Fault(
        "tangent_vector.py",
        "u_u = factor * u_u",
        "u_u = 1.0 * u_u",
        "test_tangent_vector.py",
    ),
    "a norm that counts the core twice": Fault(
        "tangent_vector.py",
        "return tf.maximum(k + l - s, 0.0)",
        "return tf.maximum(k + l, 0.0)",
        "test_tangent_vector.py",
    ),
    "a retraction of first order": Fault(
        "integrators/chart.py",
        "s += gain + tf.matmul(gain, move)",
        "s += gain + 0.0 * tf.matmul(gain, move)",
        "test_chart.py",
        "second_order",
    ),
    "the other core": Fault(
        "integrators/chart.py",
        "tf.transpose(s) * self._inverse + frozen",
        "s * self._inverse + frozen",
        "test_chart.py",
        "anywhere_in_the_chart",
    ),
    "a frozen column that turns": Fault(
        "integrators/chart.py",
        "core *= both - neither",
        "core *= both",
        "test_chart.py",
        "frozen_columns",
    ),
    "a mean that is a sum": Fault(
        "integrators/chart.py",
        "0.5 * (from_k + from_l) * both",
        "1.0 * (from_k + from_l) * both",
        "test_optimizers.py",
        "adam",
    ),
    "bases that are not refreshed": Fault(
        "integrators/chart.py",
        "turn = tf.matmul(turn, inverse, transpose_b=True)",
        "turn = tf.matmul(turn, inverse)",
        "test_chart.py",
        "refreshed",
    ),
    "a block of the core with another sign": Fault(
        "integrators/augmentation.py",
        "-h * tf.transpose(right.outside)]",
        "h * tf.transpose(right.outside)]",
        "test_integrators.py",
        "zero_core",
    ),
    "a second pass for nothing": Fault(
        "integrators/augmentation.py",
        "bottom = [-h * left.outside, -h * normal_block]",
        "bottom = [-h * left.outside, 0.0 * normal_block]",
        "test_integrators.py",
        "fifty_epochs and rank_adaptive",
    ),
    "vectors of another column": Fault(
        "integrators/augmentation.py",
        "rotate(v, right, q[:, :rank]),",
        "rotate(v, right, q[:, ::-1][:, :rank]),",
        "test_truncation.py",
        "tail_it_cuts",
    ),
    "the gradient of the first pass in the second": Fault(
        "training_step.py",
        "core -= _scaled(core_in(self._clipped[index], point, new), direction.share)",
        "core -= _scaled(core_in(self._clipped[index], point, new), 0.5 * direction.share)",
        "test_integrators.py",
        "fifty_epochs and fixed_rank",
    ),
    "rows that are added once": Fault(
        "row_slices.py",
        "rows = tf.math.unsorted_segment_sum(slices.values, position, number)",
        "rows = tf.math.unsorted_segment_max(slices.values, position, number)",
        "test_row_slices.py",
    ),
    "a start without its energy": Fault(
        "layers/initial_factors.py",
        "scale = math.sqrt(n * m * variance / rank)",
        "scale = math.sqrt(n * m * variance / max(n, m))",
        "test_dense.py",
        "energy",
    ),
    "a penalty of one factor": Fault(
        "substitution.py",
        "left = tf.matmul(tf.matmul(u, u, transpose_a=True), s)",
        "left = s",
        "test_substitution.py",
    ),
}

OPTIMIZERS = {
    "a correction without its root": Fault(
        "optimizers/adaptive.py",
        "* unit * tf.sqrt(rest_2) / rest_1",
        "* unit * rest_2 / rest_1",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "a stale second moment": Fault(
        "optimizers/adaptive.py",
        'new = {"momentum": momentum, "rows": rows, "columns": columns}',
        'new = {"momentum": momentum, "rows": state["rows"], "columns": columns}',
        "test_optimizers.py",
        "moments_are_those",
    ),
    "means that forget the wrong part": Fault(
        "optimizers/adaptive.py",
        "rate * a + (1.0 - rate) * b",
        "(1.0 - rate) * a + rate * b",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "columns that are scaled as rows are": Fault(
        "optimizers/adaptive.py",
        "l = (b / tf.reduce_mean(x))[:, None] * momentum.L",
        "l = (b / tf.reduce_mean(y))[:, None] * momentum.L",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "steps that get shorter with the rank": Fault(
        "optimizers/adaptive.py",
        "x, y = (part * share_of_all**0.25 for part in (x, y))",
        "x, y = (part * share_of_all**0.5 for part in (x, y))",
        "test_optimizers.py",
        "about_as_long",
    ),
    "sums that do not start where Keras has them": Fault(
        "optimizers/adaptive.py",
        "start = self.optimizer.initial_accumulator_value",
        "start = 0.0",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "a momentum without the learning rate": Fault(
        "optimizers/adaptive.py",
        'state["momentum"].plus(scaled.tangent.scaled(learning_rate))',
        'state["momentum"].plus(scaled.tangent)',
        "test_optimizers.py",
        "moments_are_those",
    ),
    "an epsilon of another rule": Fault(
        "optimizers/adaptive.py",
        "self.floor = optimizer.epsilon**0.5  # Keras adds",
        "self.floor = optimizer.epsilon  # Keras adds",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "a look ahead that looks back": Fault(
        "optimizers/momentum.py",
        "ahead = moved.scaled(self.momentum).plus(pull)",
        'ahead = state["momentum"].scaled(self.momentum).plus(pull)',
        "test_optimizers.py",
        "it_is_the_step_of_keras",
    ),
    "a polynomial of another core": Fault(
        "optimizers/muon.py",
        "combine(point.V, right, tf.transpose(core[:rank])),",
        "combine(point.V, right, core[:, :rank]),",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "a rate of the shorter side": Fault(
        "optimizers/muon.py",
        "longest = tf.maximum(tf.shape(point.U)[0], tf.shape(point.V)[0])",
        "longest = tf.minimum(tf.shape(point.U)[0], tf.shape(point.V)[0])",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "clipping without the other variables": Fault(
        "optimizers/options.py",
        "tf.reduce_sum(tf.square(row_slices.values(g)))",
        "0.0 * tf.reduce_sum(tf.square(row_slices.values(g)))",
        "test_optimizers.py",
        "it_is_the_step_of_keras",
    ),
    "decay without the learning rate": Fault(
        "training_step.py",
        "1.0 - decay * self._numbers.learning_rate",
        "1.0 - decay",
        "test_optimizers.py",
        "weight_decay or float64",
    ),
    "accumulated gradients that are not averaged": Fault(
        "training_step.py",
        "total.scaled(1.0 / steps)",
        "total.scaled(1.0)",
        "test_optimizers.py",
        "accumulated_gradients",
    ),
    "accumulated gradients that stay": Fault(
        "training_step.py",
        "one.with_slot(ACCUMULATED, zero)",
        "one.with_slot(ACCUMULATED, one.slots[ACCUMULATED])",
        "test_optimizers.py",
        "accumulated_gradients",
    ),
    "a momentum that is not carried": Fault(
        "matrix_step.py",
        "name: transport(slot, old, new, rule.decay) if _is_carried(name, slot) else slot",
        "name: transport(slot, old, new, 1.0) if _is_carried(name, slot) else slot",
        "test_optimizers.py",
        "moments_are_those",
    ),
    "a momentum that does not fade between full steps": Fault(
        "matrix_step.py",
        "name: slot.scaled(rule.decay) if _is_carried(name, slot) else slot",
        "name: slot",
        "test_fit.py",
    ),
    "a loss scale that is not taken off": Fault(
        "training_step.py",
        "self._unscaling = 1.0 / self._scale if scales else None",
        "self._unscaling = None",
        "test_optimizers.py",
        "it_is_the_step_of_keras",
    ),
    "a fault of which something is kept": Fault(
        "training_step.py",
        "for snapshot in (self._statistics, matrices):",
        "for snapshot in (self._statistics,):",
        "test_faults.py",
    ),
}

RANKS = {
    "a tail that may be as large as the tolerance": Fault(
        "truncation.py",
        "return tf.math.count_nonzero(tails > theta, dtype=tf.int32)",
        "return tf.math.count_nonzero(tails >= theta, dtype=tf.int32)",
        "test_truncation.py",
        "tolerance",
    ),
    "a tail that begins a value too late": Fault(
        "truncation.py",
        "tails = tf.sqrt(tf.cumsum(tf.square(singular_values), reverse=True))",
        "tails = tf.sqrt(tf.cumsum(tf.square(singular_values), reverse=True, exclusive=True))",
        "test_truncation.py",
        "tolerance",
    ),
    "a schedule that is a step ahead": Fault(
        "truncation.py",
        "self.tau(step - 1.0)",
        "self.tau(step)",
        "test_schedules_and_budgets.py",
        "schedule",
    ),
    "a least rank that is not kept": Fault(
        "truncation.py",
        "return tf.minimum(tf.maximum(rank, self.min_rank), most)",
        "return tf.minimum(tf.maximum(rank, 1), most)",
        "test_truncation.py",
        "policy",
    ),
    "a budget that falls by a square": Fault(
        "budget.py",
        "tf.maximum(start - goal, 0.0) * to_go**3",
        "tf.maximum(start - goal, 0.0) * to_go**2",
        "test_schedules_and_budgets.py",
        "cubic",
    ),
    "least ranks that nobody pays for": Fault(
        "budget.py",
        "left = allowed - sum(size * least for size, least in zip(sizes, min_ranks))",
        "left = allowed",
        "test_schedules_and_budgets.py",
        "budget",
    ),
    "weights that are counted with the core": Fault(
        "compression.py",
        "factored += rank * (n + m)",
        "factored += rank * (n + m + rank)",
        "test_compression.py",
    ),
}

LAYERS = {
    "a dropped mask": Fault(
        "layers/recurrent.py",
        "h = [h * mask for mask in self.get_recurrent_dropout_mask(h)]",
        "h = [h for mask in self.get_recurrent_dropout_mask(h)]",
        "test_recurrent.py",
        "forward",
    ),
    "padding that is not masked": Fault(
        "layers/embedding.py",
        "keras_internals.set_keras_mask(outputs, keras.ops.not_equal(inputs, 0))",
        "keras_internals.set_keras_mask(outputs, keras.ops.equal(inputs, 0))",
        "test_embedding.py",
    ),
    "a gate in the place of another": Fault(
        "layers/gru.py",
        "candidate + r * sums[..., 2 * self.units :]",
        "candidate + z * sums[..., 2 * self.units :]",
        "test_recurrent.py",
        "forward",
    ),
    "padding on the other side": Fault(
        "layers/conv.py",
        "((r // 2, r - r // 2) for r in reach)",
        "((r - r // 2, r // 2) for r in reach)",
        "test_conv_nd.py",
        "forward",
    ),
    "a product that is not transposed": Fault(
        "substitution.py",
        "kernel = Product(u, tf.matmul(v, s, transpose_b=True))",
        "kernel = Product(u, tf.matmul(v, s))",
        "test_embedding.py",
    ),
    "a product of a few": Fault(
        "substitution.py",
        "for matrix in rest[:-1]:",
        "for matrix in rest[:-2]:",
        "test_substitution.py",
    ),
}

REPLICAS = {
    "a last batch that counts too much": Fault(
        "distribution.py",
        "tf.math.divide_no_nan(self.count * size, self.sum(size))",
        "tf.math.divide_no_nan(self.sum(size), self.sum(size))",
        "test_distribution.py",
        "agree",
    ),
    "bases that all replicas add up": Fault(
        "distribution.py",
        "own = flat if self._is_first() else [tf.zeros_like(tensor) for tensor in flat]",
        "own = flat",
        "test_distribution.py",
        "agree",
    ),
    "gradients that stay where they are": Fault(
        "distribution.py",
        "sums = iter(self._all_reduce([tensor for tensor in flat if tensor is not None]))",
        "sums = iter([tensor for tensor in flat if tensor is not None])",
        "test_distribution.py",
        "agree",
    ),
    "statistics that count twice": Fault(
        "training_step.py",
        "        self._statistics.restore()\n",
        "",
        "test_fit.py",
        "statistics",
    ),
}

FILES = {
    "factors without their core": Fault(
        "export/kernels.py",
        "pair = (tf.matmul(u, s), v)",
        "pair = (u, v)",
        "test_export.py",
        "saved_model",
    ),
    "a pair where a kernel is smaller": Fault(
        "export/kernels.py",
        "return _kernels(model, lambda n, m, rank: rank * (n + m) < n * m)",
        "return _kernels(model, lambda n, m, rank: rank * (n + m) <= 2 * n * m)",
        "test_export.py",
        "no_larger",
    ),
    "a comparison that lets everything pass": Fault(
        "export/parity.py",
        "if not difference <= allowed:",
        "if difference < -allowed:",
        "test_export_errors.py",
        "differ",
    ),
    "an accuracy that may fall": Fault(
        "export/parity.py",
        "if not accuracy >= expected - accuracy_drop:",
        "if not accuracy >= -expected - accuracy_drop:",
        "test_export_quantized.py",
        "accuracy",
    ),
    "a zero point with another sign": Fault(
        "export/litert.py",
        "np.round(values / scale) + zero",
        "np.round(values / scale) - zero",
        "test_export_quantized.py",
        "full_int8",
    ),
    "one sample for all": Fault(
        "export/samples.py",
        "yield {name: array[row : row + 1] for name, array in zip(names, batch)}",
        "yield {name: array[:1] for name, array in zip(names, batch)}",
        "test_export_quantized.py",
    ),
    "the label of the lowest score": Fault(
        "export/served.py",
        "best = tf.argmax(outputs, axis=-1)",
        "best = tf.argmin(outputs, axis=-1)",
        "test_export_serving.py",
    ),
    "dropout in a file": Fault(
        "export/served.py",
        "outputs = self.model(*arguments, training=False)",
        "outputs = self.model(*arguments, training=True)",
        "test_export_serving.py",
    ),
    "a seed that is not saved": Fault(
        "callbacks/training_state.py",
        "keras_internals.make_global_seed().assign(seed)",
        "keras_internals.make_global_seed().assign(0 * seed)",
        "test_backup_and_restore.py",
        "come_back",
    ),
    "data that begin anew in the midst of an epoch": Fault(
        "callbacks/backup_and_restore.py",
        "random_state = self._random_state if batch else host_random_state()",
        "random_state = host_random_state()",
        "test_backup_and_restore.py",
        "bit_for_bit",
    ),
}

CONVERSION = {
    "sides that change places": Fault(
        "convert/decomposition.py",
        "left, right = (basis, product) if self._wide else (product, basis)",
        "left, right = (product, basis)",
        "test_decomposition.py",
        "plain or faint",
    ),
    "signs of one side": Fault(
        "convert/decomposition.py",
        "return left * signs, np.diag(values), right * signs",
        "return left * signs, np.diag(values), right",
        "test_decomposition.py",
        "plain or faint",
    ),
    "a moment that is not looked at": Fault(
        "convert/decomposition.py",
        'return np.asarray(moment, "float64") + share * gram',
        'return 0.0 * np.asarray(moment, "float64") + share * gram',
        "test_decomposition.py",
        "minimiser",
    ),
    "an iteration too few": Fault(
        "convert/decomposition.py",
        "_POWERS = 4",
        "_POWERS = 1",
        "test_decomposition.py",
        "percent",
    ),
    "a share of the norm for one of the energy": Fault(
        "convert/ranks.py",
        "Tolerance(math.sqrt(1.0 - energy))",
        "Tolerance(1.0 - energy)",
        "test_convert_ranks.py",
        "energy",
    ),
    "a root in one of two factors": Fault(
        "convert/plain.py",
        "return u @ inner * root, root[:, None] * (outer @ v.T)",
        "return u @ inner * values, outer @ v.T",
        "test_to_keras.py",
        "evenly",
    ),
    "a rotation that is left out": Fault(
        "convert/plain.py",
        "return u @ inner * root, root[:, None] * (outer @ v.T)",
        "return u * root, root[:, None] * v.T",
        "test_to_keras.py",
        "evenly",
    ),
    "a layer that is no smaller": Fault(
        "convert/plain.py",
        'form == "smaller" and rank * (n + m) >= n * m',
        'form == "smaller" and rank * (n + m) > 2 * n * m',
        "test_to_keras.py",
        "smaller",
    ),
}
