import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.closed_form import matrix, orthonormal, with_spectrum
from reference.trajectories import defect

from keras_lowrank.kernels.products import matmul_last, rows
from keras_lowrank.manifold.complement import Complement, complement, rotate
from keras_lowrank.manifold.decompositions import signed_qr, signed_svd
from keras_lowrank.manifold.orthonormalize import orthonormalized

DTYPES = ["float32", "float64"]
# Directions below this size, relative to the block, may be left out: 256 units of rounding, or of
# what a float64 Gram matrix resolves.
NOISE = {"float32": 256 * 2.0**-23, "float64": 256 * 2.0**-30}
ROUNDING = {"float32": 1e-6, "float64": 1e-14}

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


@st.composite
def blocks(draw):
    """`(rng, n, b, r)`: a basis with b columns and a block with r columns, in n dimensions."""
    n = draw(st.integers(1, 30))
    b = draw(st.integers(1, n))
    r = draw(st.integers(1, n))
    return np.random.default_rng(draw(seeds)), n, b, r


def check_complement(block, basis, dtype):
    """Checks every promise of a complement; returns how many columns it added."""
    block, basis = np.asarray(block, dtype), np.asarray(basis, dtype)
    added = complement(tf.constant(block), tf.constant(basis))
    x, r, t, c, y = (part.numpy().astype("float64") for part in added)
    A, B = block.astype("float64"), basis.astype("float64")
    assert all(np.all(np.isfinite(part)) for part in (x, r, t, c, y))
    count = t.shape[1]
    assert count <= min(A.shape[1], A.shape[0] - B.shape[1])
    size, noise = np.linalg.norm(A), NOISE[dtype]
    rounding = ROUNDING[dtype] * np.sqrt(B.shape[1] + A.shape[1])
    # The parts are what they are called.
    np.testing.assert_allclose(x, B.T @ A, atol=rounding * size)
    assert np.max(np.abs(r - (A - B @ x))) <= rounding * size
    Q = r @ t - B @ c
    # The block lies in [B, Q], up to one neglected direction a column.
    neglected = np.linalg.norm(A - B @ x - Q @ y)
    assert neglected <= (noise * np.sqrt(A.shape[1]) + rounding) * size
    if count:
        # Orthonormal up to (rounding of the block) / (size of the faintest direction), and to what
        # the float64 Gram matrix resolves: that ratio squared; or to two digits.
        ratio = size / np.linalg.norm(y, axis=1).min()
        assert ratio <= 1.01 / noise
        bound = 3 * rounding * (1 + ratio) + 2.0**-50 * ratio**2
        assert defect(Q) <= bound
        assert np.linalg.norm(B.T @ Q, 2) <= bound
    return count


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(blocks())
def test_complement_spans_what_a_random_block_adds(dtype, case):
    rng, n, b, r = case
    count = check_complement(rng.standard_normal((n, r)), orthonormal(rng, n, b), dtype)
    assert count == min(r, n - b)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(blocks(), st.floats(0, 10))
def test_complement_bears_any_spectrum(dtype, case, decades):
    """Singular values of the block spread down to 1e-10 of the largest, most of it inside B."""
    rng, n, b, r = case
    A = with_spectrum(rng, n, r, np.logspace(0, -decades, r))
    check_complement(A, orthonormal(rng, n, b), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, r", [(300, 20), (1000, 64)])
def test_complement_of_a_block_of_condition_1e8(dtype, n, r):
    rng = np.random.default_rng(0)
    A = with_spectrum(rng, n, r, np.logspace(0, -8, r))
    count = check_complement(A, orthonormal(rng, n, r), dtype)
    # Columns above the noise are not thrown away with those below it.
    assert count >= np.sum(np.logspace(0, -8, r) > 10 * NOISE[dtype] * np.linalg.norm(A)) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_complement_adds_a_repeated_column_once(dtype):
    rng = np.random.default_rng(1)
    column = rng.standard_normal((40, 1))
    other = rng.standard_normal((40, 1))
    A = np.hstack([column, column, other, column, 3 * other])
    assert check_complement(A, orthonormal(rng, 40, 5), dtype) == 2


def test_complement_of_columns_that_differ_by_1e_7():
    """In float32 the difference is noise; in float64 it is about the least that a Gram resolves."""
    rng = np.random.default_rng(2)
    column = rng.standard_normal((40, 1))
    near = column + 1e-7 * rng.standard_normal((40, 1))
    B = orthonormal(rng, 40, 2)
    assert check_complement(np.hstack([column, near]), B, "float32") == 1
    assert check_complement(np.hstack([column, near]), B, "float64") in (1, 2)
    apart = column + 1e-3 * rng.standard_normal((40, 1))
    assert check_complement(np.hstack([column, apart]), B, "float32") == 2


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(blocks())
def test_complement_of_a_block_inside_the_span_is_empty(dtype, case):
    rng, n, b, r = case
    B = orthonormal(rng, n, b)
    assert check_complement(B @ rng.standard_normal((b, r)), B, dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, b, r", [(1, 1, 1), (6, 6, 3), (6, 6, 6), (9, 2, 4)])
def test_complement_is_empty_where_nothing_can_be_added(dtype, n, b, r):
    rng = np.random.default_rng(3)
    B = orthonormal(rng, n, b)
    assert check_complement(np.zeros((n, r)), B, dtype) == 0
    if n == b:
        assert check_complement(rng.standard_normal((n, r)), B, dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12])
def test_complement_does_not_depend_on_the_scale(dtype, scale):
    """A gradient late in training is small as a whole, and no part of it is noise for that."""
    rng = np.random.default_rng(4)
    A = scale * with_spectrum(rng, 50, 6, [1, 1, 1e-1, 1e-2, 0, 0])
    assert check_complement(A, orthonormal(rng, 50, 6), dtype) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_complement_of_a_block_that_is_not_finite_is_empty(bad):
    A = np.ones((5, 2), "float32")
    A[1, 1] = bad
    B = np.eye(5, 2, dtype="float32")
    assert complement(tf.constant(A), tf.constant(B)).whitening.shape == (2, 0)


@few
@given(blocks())
def test_rotate_multiplies_the_two_bases_with_the_coordinates(case):
    rng, n, b, r = case
    B = orthonormal(rng, n, b)
    added = complement(tf.constant(rng.standard_normal((n, r))), tf.constant(B))
    both = np.hstack([B, added.formed(tf.constant(B)).numpy()])
    C = orthonormal(rng, both.shape[1], min(r, both.shape[1]))
    new = rotate(tf.constant(B), added, tf.constant(C)).numpy()
    np.testing.assert_allclose(new, both @ C, atol=1e-7)


def test_the_reorthogonalization_is_done_wherever_the_basis_is_multiplied():
    """Of random parts: one of rounding size, as a step has it, would show in no product."""
    rng = np.random.default_rng(9)
    B, R, T, reorthogonalization = (
        rng.standard_normal(shape) for shape in ((9, 3), (9, 4), (4, 2), (3, 2))
    )
    added = Complement(None, tf.constant(R), tf.constant(T), tf.constant(reorthogonalization), None)
    Q = R @ T - B @ reorthogonalization
    np.testing.assert_allclose(added.formed(tf.constant(B)), Q, atol=1e-12)
    C = orthonormal(rng, 5, 4)
    new = rotate(tf.constant(B), added, tf.constant(C))
    np.testing.assert_allclose(new, np.hstack([B, Q]) @ C, atol=1e-12)


def test_rotate_takes_the_error_out_of_the_coordinates():
    """Coordinates off by 1e-3 give a basis off by its square."""
    rng = np.random.default_rng(5)
    B = orthonormal(rng, 12, 4)
    added = complement(tf.constant(rng.standard_normal((12, 4))), tf.constant(B))
    C = orthonormal(rng, 8, 3)
    rough = C @ (np.eye(3) + 1e-3 * np.ones((3, 3)))
    assert defect(rough) > 1e-3
    assert defect(rotate(tf.constant(B), added, tf.constant(rough))) < 5e-5


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(blocks(), st.sampled_from([1e-7, 1e-5, 1e-3, 1e-2]), st.integers(1, 30))
def test_orthonormalized_keeps_the_matrix_and_mends_the_bases(dtype, case, error, m):
    rng, n, r, _ = case
    r = min(r, m)
    # An error of spectral norm at most about `error`, whatever the sizes.
    left, right = (
        orthonormal(rng, k, r) + error * rng.standard_normal((k, r)) / (np.sqrt(k) + np.sqrt(r))
        for k in (n, m)
    )
    core = np.diag(np.sort(rng.random(r))[::-1])
    old = [np.asarray(part, dtype) for part in (left, core, right)]
    new = orthonormalized(*(tf.constant(part) for part in old))
    np.testing.assert_allclose(matrix(new), matrix(old), atol=10 * ROUNDING[dtype])
    limit = {"float32": 1e-5, "float64": 1e-13}[dtype]
    assert max(defect(new[0]), defect(new[2])) < limit
    S = new[1].numpy()
    np.testing.assert_array_equal(S, np.diag(np.diag(S)))
    assert np.all(np.diff(np.diag(S)) <= 0)


def test_orthonormalized_mends_when_only_one_basis_is_off():
    rng = np.random.default_rng(6)
    good, bad = orthonormal(rng, 20, 5), orthonormal(rng, 15, 5) + 1e-3
    core = np.diag([5.0, 4.0, 3.0, 2.0, 1.0])
    for left, right in ((good, bad), (bad, good)):
        new = orthonormalized(tf.constant(left), tf.constant(core), tf.constant(right))
        assert max(defect(new[0]), defect(new[2])) < 1e-13
        np.testing.assert_allclose(matrix(new), matrix((left, core, right)), atol=1e-13)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_orthonormalized_mends_a_basis_of_many_rows(error):
    """Of which a Householder QR in float32 makes none that is good enough, and takes a second."""
    rng = np.random.default_rng(8)
    left = tf.linalg.qr(tf.constant(rng.standard_normal((100_000, 8)), tf.float32))[0].numpy()
    assert defect(left) > 1e-5
    left[:, 0] += error * left[:, 1]
    old = [tf.constant(t, tf.float32) for t in (left, np.diag([3.0] + 7 * [2.0]), np.eye(8))]
    new = orthonormalized(*old)
    assert defect(new[0]) < 2e-6
    # The QR is off by its roundings, too.
    np.testing.assert_allclose(matrix(new), matrix(old), atol=1e-4 if error else 2e-6)


def test_orthonormalized_leaves_good_bases_alone():
    rng = np.random.default_rng(7)
    parts = [orthonormal(rng, 9, 3), rng.standard_normal((3, 3)), orthonormal(rng, 7, 3)]
    new = orthonormalized(*(tf.constant(part) for part in parts))
    for before, after in zip(parts, new):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(st.integers(1, 20), st.integers(1, 20), seeds)
def test_signed_svd_is_the_decomposition_with_its_signs_fixed(dtype, a, b, seed):
    M = np.random.default_rng(seed).standard_normal((a, b)).astype(dtype)
    p, values, q = (part.numpy() for part in signed_svd(tf.constant(M)))
    k = min(a, b)
    assert p.shape == (a, k) and values.shape == (k,) and q.shape == (b, k)
    tolerance = 20 * ROUNDING[dtype]
    np.testing.assert_allclose((p * values) @ q.T, M, atol=tolerance)
    exact = np.linalg.svd(M.astype("float64"), compute_uv=False)
    np.testing.assert_allclose(values, exact, atol=tolerance)
    assert max(defect(p), defect(q)) < tolerance
    assert np.all(np.diff(values) <= 0)
    assert np.all(p[np.argmax(np.abs(p), axis=0), np.arange(k)] > 0)


@few
@given(st.integers(1, 20), st.integers(1, 20), seeds)
def test_signed_svd_puts_every_sign_into_the_right_factor(a, b, seed):
    M = tf.constant(np.random.default_rng(seed).standard_normal((a, b)))
    p, values, q = signed_svd(M)
    for sign, other in ((1, signed_svd(M)), (-1, signed_svd(-M))):
        np.testing.assert_allclose(other[0], p, atol=1e-9)
        np.testing.assert_allclose(other[1], values, atol=1e-12)
        np.testing.assert_allclose(other[2], sign * q, atol=1e-9)


def test_signed_svd_of_zero_and_of_nan():
    for value in (0.0, np.nan, np.inf):
        p, values, q = signed_svd(tf.fill([4, 3], tf.constant(value, tf.float32)))
        np.testing.assert_array_equal(values, np.full(3, 0.0 if value == 0.0 else np.nan))
        assert max(defect(p), defect(q)) < 1e-6


@few
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20), seeds)
def test_signed_qr_has_all_columns_at_every_rank(a, b, rank, seed):
    a, b = max(a, b), min(a, b)
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((a, min(rank, b))) @ rng.standard_normal((min(rank, b), b))
    Q = signed_qr(tf.constant(M)).numpy()
    assert Q.shape == (a, b)
    assert defect(Q) < 1e-13
    np.testing.assert_allclose(Q @ (Q.T @ M), M, atol=1e-12)
    assert np.all(np.diag(Q.T @ M) > -1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("transpose", [False, True])
def test_matmul_last_is_a_product_over_the_last_axis(shape, transpose):
    rng = np.random.default_rng(8)
    x, M = rng.standard_normal(shape), rng.standard_normal((4, 3))
    outputs = matmul_last(tf.constant(x), tf.constant(M.T if transpose else M), transpose)
    np.testing.assert_allclose(outputs, x @ M, atol=1e-14)
    np.testing.assert_array_equal(rows(tf.constant(x)), x.reshape(-1, 4))


@pytest.mark.parametrize("extents", [(None, 5, 4), (2, None, 4), (None, None, 4), (None, 3, None)])
@pytest.mark.parametrize("transpose", [False, True])
def test_matmul_last_with_extents_that_are_known_only_when_run(extents, transpose):
    M = np.arange(12.0).reshape(4, 3)
    x = np.arange(24.0).reshape(2, 3, 4) if extents[1] == 3 else np.arange(40.0).reshape(2, 5, 4)
    operand = M.T if transpose else M
    # The rank of a layer is such an extent, of the matrix.
    open_shape = [None if extent == 3 else extent for extent in operand.shape]
    seen = []

    @tf.function(
        input_signature=[tf.TensorSpec(extents, tf.float64), tf.TensorSpec(open_shape, tf.float64)]
    )
    def run(inputs, matrix):
        outputs = matmul_last(inputs, matrix, transpose)
        seen.append(outputs.shape.as_list())
        return outputs

    np.testing.assert_allclose(run(tf.constant(x), tf.constant(operand)), x @ M)
    assert seen[0][:2] == list(extents[:2])
