"""LowRankEmbedding against keras.layers.Embedding, and against a tied projection in plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.embedding import IDS, Tied, built, cross_entropy, language_model, same_table

from keras_lowrank import LowRankEmbedding, LowRankModel, Parallel, RankAdaptive, Tolerance
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.row_sparse import is_slices


def test_embedding_basics():
    layer = LowRankEmbedding(9, 6, rank=3)
    assert layer(IDS).shape == (3, 4, 6)
    assert [tuple(v.shape) for v in layer.weights] == [(9, 3), (3, 3), (6, 3)]
    assert [v.name for v in layer.weights] == ["U", "S", "V"]
    # RandomUniform(-0.05, 0.05), which the Keras layer draws from, has a variance of 0.05^2 / 3.
    np.testing.assert_allclose(np.sum(np.square(layer.embeddings)), 9 * 6 * 0.05**2 / 3, rtol=1e-5)
    assert layer.compute_output_shape((None, 4)) == (None, 4, 6)
    assert layer.compute_output_shape((None, 4, 6), reverse=True) == (None, 4, 9)
    model = language_model(layer)
    assert model.output_shape == (None, 4, 9)
    optimizer, integrator = keras.optimizers.SGD(0.5), Parallel(adapt_every=1)
    model.compile(optimizer, cross_entropy(), integrator=integrator, truncation=0.0)
    losses = model.fit(IDS, np.roll(IDS, 1, 1), epochs=4, verbose=0).history["loss"]
    assert losses[3] < losses[1] < losses[0]
    assert model.ranks == {"low_rank_embedding": 6}


def test_config_round_trip_keeps_every_argument():
    layer = LowRankEmbedding(
        9,
        6,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.2, seed=3),
        embeddings_regularizer=keras.regularizers.L2(0.25),
        mask_zero=True,
        reverse_dtype="float32",
        logit_soft_cap=5.0,
        rank=3,
        min_rank=2,
        max_rank=4,
        truncation=Tolerance(0.2, relative=False),
        activity_regularizer=keras.regularizers.L2(0.5),
        dtype="mixed_bfloat16",
        name="mine",
        trainable=False,
    )
    config = layer.get_config()
    again = LowRankEmbedding.from_config(config)
    assert again.get_config() == config
    assert (again.input_dim, again.output_dim, again.rank, again.max_rank) == (9, 6, 3, 4)
    assert (again.mask_zero, again.reverse_dtype, again.logit_soft_cap) == (True, "float32", 5.0)
    assert again.kernel_initializer.seed == 3 and again.kernel_regularizer.l2 == 0.25
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_lookup_equals_keras_with_the_same_table(dtype, policy):
    layer = built(dtype=policy)
    for ids in (IDS, IDS[0], IDS[:, :, None]):
        expected = same_table(layer, dtype=policy)(ids.astype(dtype))
        found = layer(ids.astype(dtype))
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-6 if policy == "float32" else 1e-3)
    # From the end, as in Keras on TensorFlow.
    np.testing.assert_allclose(layer(np.array([-1])), layer(np.array([8])))


def test_the_way_back_is_the_transposed_table():
    vectors = np.random.default_rng(2).standard_normal((3, 4, 6)).astype("float32")

    def logits(layer):
        return vectors @ np.transpose(layer.embeddings)

    layer = built()
    np.testing.assert_allclose(layer(vectors, reverse=True), logits(layer), atol=1e-6)
    capped = built(logit_soft_cap=0.5)
    expected = 0.5 * np.tanh(logits(capped) / 0.5)
    np.testing.assert_allclose(capped(vectors, reverse=True), expected, atol=1e-6)
    wide = built(reverse_dtype="float32", dtype="mixed_bfloat16")
    assert wide(vectors, reverse=True).dtype == "float32"
    np.testing.assert_allclose(wide(vectors, reverse=True), logits(wide), atol=1e-6)
    assert wide(keras.KerasTensor((None, 6)), reverse=True).dtype == "float32"


def test_zero_is_masked_on_the_way_in_and_not_on_the_way_back():
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    layer = built(mask_zero=True)
    np.testing.assert_array_equal(layer.compute_mask(ids), ids != 0)
    for dtype in ("int32", "float32"):
        embedded = layer(ids.astype(dtype))
        pooled = keras.layers.GlobalAveragePooling1D()(embedded)
        table = np.asarray(layer.embeddings)
        expected = [table[[1, 2]].mean(axis=0), table[3]]
        np.testing.assert_allclose(pooled, expected, atol=1e-6)
        assert getattr(layer(embedded, reverse=True), "_keras_mask", None) is None
    assert getattr(built()(ids), "_keras_mask", None) is None


def test_a_table_to_start_from_is_cut_to_its_best_approximation():
    table = np.random.default_rng(3).standard_normal((9, 6)).astype("float32")
    layer = LowRankEmbedding(9, 6, weights=[table], rank=3)
    tail = np.linalg.norm(np.linalg.svd(table, compute_uv=False)[3:])
    np.testing.assert_allclose(np.linalg.norm(table - layer.embeddings), tail, rtol=1e-5)
    np.testing.assert_allclose(LowRankEmbedding(9, 6, weights=table, rank=6).kernel, table, 1e-4)
    again = LowRankEmbedding.from_config(layer.get_config())  # of the initializer, as in Keras
    assert isinstance(again.kernel_initializer, keras.initializers.RandomUniform)


# Training.


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("ways", ["in", "back", "both"])
def test_the_gradients_are_those_of_the_table(ways, traced):
    """Of all uses together, against `G` in float64 by a table that is one variable."""
    layer = built(dtype="float64")
    layer.S.assign(np.diag([2.0, 1.0, 0.5]))
    rng = np.random.default_rng(4)
    vectors = tf.constant(rng.standard_normal((3, 6)))
    slopes = tf.constant(rng.standard_normal((3, 4, 6)))

    def loss_of(embed, vectors):
        loss = tf.zeros([], tf.float64)
        if ways != "back":
            loss += tf.reduce_sum(tf.sin(slopes * embed(IDS))) + tf.reduce_sum(embed(IDS[0]) ** 3)
        if ways != "in":
            loss += tf.reduce_sum(tf.sin(3.0 * embed(vectors, reverse=True)))
        return loss

    table = tf.Variable(np.asarray(layer.embeddings))

    def whole(inputs, reverse=False):
        return inputs @ tf.transpose(table) if reverse else tf.gather(table, inputs)

    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = loss_of(whole, vectors)
    G, d_vectors = tape.gradient(loss, [table, vectors], unconnected_gradients="zero")
    G = tf.convert_to_tensor(G).numpy()
    U, _, V = (factor.numpy() for factor in layer.factors.read())
    left, right = (
        np.linalg.qr(np.hstack([b, rng.standard_normal((len(b), 2))]))[0] for b in (U, V)
    )
    start = left.T @ table.numpy() @ right

    def run(vectors):
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            loss = loss_of(layer, vectors)
        *parts, dx = tape.gradient(loss, [*layer.factors.variables, vectors])
        dx = tf.zeros_like(vectors) if dx is None else dx
        assert is_slices(parts[0]) == (ways == "in")
        parts[0] = tf.convert_to_tensor(parts[0])
        # At augmented bases, which hold the same table.
        core = tf.constant(start)
        kernel = ProductKernel(tf.constant(left), core, tf.constant(right), core=core)
        with override_kernels({layer.factors: kernel}), tf.GradientTape() as tape:
            tape.watch(core)
            loss = loss_of(layer, vectors)
        scale = tf.linalg.diag_part(layer.S.value)
        tangent = Chart(layer.factors.read(), scale).tangent(parts)
        return [*tangent, dx, tape.gradient(loss, core)]

    K, S, L, dx, core = (t.numpy() for t in (tf.function(run) if traced else run)(vectors))
    np.testing.assert_allclose(K, G @ V, atol=1e-10)
    np.testing.assert_allclose(S, U.T @ G @ V, atol=1e-10)
    np.testing.assert_allclose(L, G.T @ U, atol=1e-10)
    np.testing.assert_allclose(dx, d_vectors, atol=1e-10)
    np.testing.assert_allclose(core, left.T @ G @ right, atol=1e-10)


@pytest.mark.parametrize(
    "integrator, tied",
    partly_slow(
        [(Parallel(1), True), (RankAdaptive(1), False)],
        [(Parallel(1), False), (RankAdaptive(1), True)],
    ),
)
def test_at_full_rank_it_trains_as_keras_step_by_step(integrator, tied):
    keras.utils.set_random_seed(1)
    layer = built(rank=6, embeddings_regularizer=keras.regularizers.L2(0.01))
    plain = same_table(layer, Tied, embeddings_regularizer=keras.regularizers.L2(0.01))
    low, full = language_model(layer, tied), language_model(plain, tied, keras.Model)
    full.set_weights(_others(low, full))
    low.compile(keras.optimizers.SGD(0.5), cross_entropy(), integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.SGD(0.5), cross_entropy())
    start = np.asarray(plain.embeddings)
    rng = np.random.default_rng(5)
    for _ in range(10):
        ids = rng.integers(0, 9, (8, 4))
        targets = np.roll(ids, 1, 1) if tied else ids[:, 0]
        np.testing.assert_allclose(
            low.train_on_batch(ids, targets), full.train_on_batch(ids, targets), rtol=1e-5
        )
        np.testing.assert_allclose(layer.embeddings, plain.embeddings, atol=1e-5)
    assert np.abs(start - plain.embeddings).max() > 1e-2


def _others(low, full):
    """The weights of the full-rank model: its own table, and all else from the low-rank one."""
    table, *_ = full.get_weights()
    return [table, *low.get_weights()[3:]]


def shapes_in(graph, seen=None):
    """The static shapes of everything that a graph computes, in the functions that it calls too."""
    seen = set() if seen is None else seen
    for op in graph.get_operations():
        yield from (tuple(t.shape) for t in op.outputs if t.shape.rank is not None)
    for name, function in graph._functions.items():
        if name not in seen:
            seen.add(name)
            yield from shapes_in(function.graph, seen)


@pytest.mark.parametrize(
    "integrator", partly_slow(["parallel"], ["rank_adaptive", RankAdaptive(1)])
)
def test_neither_the_table_nor_its_gradient_is_formed(integrator):
    layer = LowRankEmbedding(211, 31, rank=5)
    inputs = keras.Input((4,), dtype="int32")
    outputs = keras.layers.Dense(9)(keras.layers.GlobalAveragePooling1D()(layer(inputs)))
    model = LowRankModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), cross_entropy(), integrator=integrator)
    model._training.prepare((IDS, IDS[:, 0], None))
    spec = (tf.TensorSpec((3, 4), tf.int32), tf.TensorSpec((3,), tf.int32))
    step = tf.function(model.train_step, autograph=False)
    shapes = set(shapes_in(step.get_concrete_function(spec).graph))
    assert (211, None) in shapes or (211, 5) in shapes, "nothing was found"
    assert not {shape for shape in shapes if 211 in shape and 31 in shape}


def test_a_plain_model_trains_the_factors_by_their_own_gradients():
    layer = built()
    model = language_model(layer, kind=keras.Model)
    model.compile(keras.optimizers.SGD(0.1), cross_entropy())
    before = [w.copy() for w in layer.get_weights()]
    losses = model.fit(IDS, np.roll(IDS, 1, 1), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(before, layer.get_weights()))


def test_mixed_precision_trains_with_factors_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = LowRankEmbedding(300, 6, rank=3)
    inputs = keras.Input((4,))  # floats, that bfloat16 would round above 256
    x = layer(inputs)
    assert x.dtype == "bfloat16" and layer.U.dtype == "float32"
    model = LowRankModel(inputs, layer(x, reverse=True))
    model.compile("sgd", cross_entropy(), integrator="rank_adaptive")
    ids = np.array([[257, 258, 259, 299]])
    history = model.fit(ids, ids, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    expected = np.asarray(layer.embeddings, "float32")[ids]
    np.testing.assert_allclose(np.asarray(layer(ids), "float32"), expected, atol=1e-2)
