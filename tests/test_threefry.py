"""The generator against Random123's answers and an independent implementation; normals and signs by real tests."""

import numpy as np
import pytest
from scipy import stats

from pdekit.paths.brownian import brownian_increments
from pdekit.paths.threefry import fill_words, seed_of

MASK = 2**64 - 1


def threefry_in_integers(key, counter):
    """Threefry-2x64-20 written from the paper's definition, in plain Python integers."""
    rotations = (16, 42, 12, 31, 16, 32, 24, 21)
    keys = (key[0], key[1], 0x1BD11BDAA9FC1A22 ^ key[0] ^ key[1])
    x0, x1 = (counter[0] + keys[0]) & MASK, (counter[1] + keys[1]) & MASK
    for round_ in range(20):
        r = rotations[round_ % 8]
        x0 = (x0 + x1) & MASK
        x1 = ((x1 << r | x1 >> (64 - r)) & MASK) ^ x0
        if round_ % 4 == 3:
            n = round_ // 4 + 1
            x0 = (x0 + keys[n % 3]) & MASK
            x1 = (x1 + keys[(n + 1) % 3] + n) & MASK
    return x0, x1


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # threefry2x64 20 in kat_vectors of Random123
        ((0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
        ((MASK, MASK), (MASK, MASK), (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
        (
            (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x243F6A8885A308D3, 0x13198A2E03707344),
            (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
        ),
    ],
)
def test_known_answers_of_random123(key, counter, answer):
    from pdekit.paths.threefry import threefry

    assert threefry(*(np.uint64(v) for v in (*key, *counter))) == answer
    assert threefry_in_integers(key, counter) == answer


def test_words_equal_an_independent_implementation():
    words = np.empty((2, 50), dtype=np.uint64)
    fill_words(np.uint64(123456789), np.uint64(7), np.uint64(1000), 41, words)
    expected = [threefry_in_integers((123456789, 7), (1000 + i, 41)) for i in range(50)]
    np.testing.assert_array_equal(words.T, np.array(expected, dtype=np.uint64))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_increments_are_independent_normals(dtype, dim):
    w = brownian_increments(11, 20_000, 6, dim, dt=0.25, dtype=dtype).reshape(20_000, -1).astype(float)
    pvalues = [stats.kstest(column, stats.norm(scale=0.5).cdf).pvalue for column in w.T]
    assert min(pvalues) > 1e-4 / len(pvalues)
    correlation = np.corrcoef(w.T) - np.eye(w.shape[1])
    assert np.abs(correlation).max() * np.sqrt(len(w)) < 5.0  # |z| over at most 435 pairs
    squares = np.corrcoef((w**2).T) - np.eye(w.shape[1])
    assert np.abs(squares).max() * np.sqrt(len(w)) < 5.0
    assert stats.kstest((w**2).sum(1) * 4.0, stats.chi2(w.shape[1]).cdf).pvalue > 1e-4


def test_normals_have_the_right_tails():
    z = brownian_increments(5, 2**20, 1, 2).ravel()
    for cut in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(cut) * len(z)
        for count in ((z > cut).sum(), (z < -cut).sum()):
            assert abs(count - expected / 2) < 4 * np.sqrt(expected / 2)


def test_two_point_increments_are_fair_signs():
    w = brownian_increments(3, 4096, 150, 1, dt=0.25, increments="two_point")[..., 0]
    assert set(np.unique(w)) == {-0.5, 0.5}
    z = w.sum() / (0.5 * np.sqrt(w.size))
    assert abs(z) < 4
    for lag in (1, 63, 64, 127):
        assert abs((w[:, lag:] * w[:, :-lag]).sum() * 4 / np.sqrt(w[:, lag:].size)) < 4


@pytest.mark.parametrize("increments", ["gaussian", "two_point"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_coarse_increments_are_sums_of_fine_ones(increments, dtype):
    options = {"increments": increments, "dtype": dtype}
    fine = brownian_increments(9, 300, 24, 3, dt=0.1, **options)
    coarse = brownian_increments(9, 300, 6, 3, dt=0.4, substeps=4, **options)
    np.testing.assert_allclose(coarse, fine.reshape(300, 6, 4, 3).sum(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [1, 3])
def test_increments_do_not_depend_on_where_a_run_starts(dtype, dim):
    whole = brownian_increments(2, 256, 12, dim, dtype=dtype)
    parts = [brownian_increments(2, 256, 5, dim, dtype=dtype)]
    parts += [brownian_increments(2, 256, 1, dim, first_step=n, dtype=dtype) for n in range(5, 12)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


def test_streams_and_seeds_differ():
    a, b = brownian_increments(0, 4096, 1, 2, stream=0), brownian_increments(0, 4096, 1, 2, stream=1)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size) < 4
    assert seed_of(0) == seed_of(0) != seed_of(1)
    rng = np.random.default_rng(0)
    assert seed_of(rng) != seed_of(rng)
    assert seed_of(np.random.SeedSequence(3)) == seed_of(np.random.SeedSequence(3))
