"""What is measured on one graph agrees with its definition, written as loops or taken from SciPy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, cosine
from scipy.special import softmax
from scipy.stats import entropy, kstest

from padapter.diagnose.graphs import (
    OFFSET_LABELS,
    OFFSETS,
    TENTHS,
    NodeGraph,
    divergence,
    heterophily,
    profile,
    random_heterophily,
    shares,
)
from padapter.diagnose.graphs import entropy as entropy_of
from padapter.diagnose.streams import Running, Sample, random_keys

H, N1, N2, W = 3, 5, 7, 4


def graph_of(seed=0, *, queries=N1, keys=N2, causal=False, **more) -> NodeGraph:
    generator = np.random.default_rng(seed)
    allowed = np.tri(queries, keys, dtype=bool)[None] if causal else np.ones((1, queries, keys), bool)
    plain = softmax(np.where(allowed, 2 * generator.normal(size=(H, queries, keys)), -np.inf), axis=-1)
    calibrated = np.where(allowed, 0.6 * plain**0.7, 0.0)
    nodes = generator.normal(size=(H, queries, W)), generator.normal(size=(H, keys, W))
    return NodeGraph(*nodes, allowed=allowed, plain=plain, calibrated=calibrated, **more)


def test_heterophily_is_the_weighted_mean_of_one_minus_cosine():
    graph = graph_of()
    found = heterophily(graph.calibrated, graph.similarity)
    for h in range(H):
        for i in range(N1):
            weights = graph.calibrated[h, i]
            apart = [cosine(graph.query[h, i], graph.value[h, j]) for j in range(N2)]
            assert found[h, i] == pytest.approx(np.average(apart, weights=weights), abs=1e-13)


def test_random_heterophily_is_the_mean_over_all_permutations_of_the_weights():
    graph = graph_of(queries=6, keys=6, causal=True)
    found = random_heterophily(graph.allowed, graph.similarity)
    for i in range(6):
        dealt = []
        for order in permutations(range(i + 1)):
            weights = graph.plain.copy()
            weights[:, i, : i + 1] = weights[:, i, list(order)]
            dealt.append(heterophily(weights, graph.similarity)[:, i])
        np.testing.assert_allclose(found[:, i], np.mean(dealt, axis=0), atol=1e-13)


def test_a_node_without_features_is_neither_alike_nor_unlike():
    graph = graph_of()
    graph.value[:, 2] = 0
    assert np.all(graph.similarity[:, :, 2] == 0)
    assert np.isfinite(graph.similarity).all()


@pytest.mark.parametrize("causal", [False, True])
def test_entropy_and_divergence_are_those_of_scipy(causal):
    graph = graph_of(queries=7, causal=causal)
    np.testing.assert_allclose(entropy_of(graph.calibrated), entropy(graph.calibrated, axis=-1), atol=1e-13)
    expected = entropy(graph.calibrated, graph.plain + ~graph.allowed, axis=-1)  # SciPy would divide 0 by 0
    # SciPy takes shares of what it is given, so the pretended weight must not count.
    expected += np.log(graph.plain.sum(-1)) - np.log((graph.plain + ~graph.allowed).sum(-1))
    np.testing.assert_allclose(divergence(graph.calibrated, graph.plain), expected, atol=1e-13)
    np.testing.assert_allclose(divergence(graph.plain, graph.plain), 0, atol=1e-15)


def test_a_plain_weight_that_was_rounded_to_zero_leaves_the_divergence_finite():
    plain, calibrated = np.array([[[1.0, 0.0]]]), np.array([[[0.75, 0.25]]])
    found = divergence(calibrated, plain)
    assert found == pytest.approx(0.75 * np.log(0.75) + 0.25 * np.log(0.25 / 2.0**-126))


def test_a_query_that_keeps_all_its_weight_to_itself_has_no_shares():
    calibrated = np.zeros((1, 1, 3))
    assert np.isnan(shares(calibrated)).all()
    assert np.isnan(entropy_of(calibrated)).all()
    assert np.isnan(divergence(calibrated, np.full((1, 1, 3), 1 / 3))).all()


def test_distances_are_euclidean():
    graph = graph_of()
    expected = [cdist(graph.query[h], graph.value[h]) for h in range(H)]
    np.testing.assert_allclose(graph.distance, expected, atol=1e-12)


@pytest.mark.parametrize(("keys", "causal"), [(20, False), (7, False), (13, True)])
def test_tenths_hold_the_nearest_nodes_first(keys, causal):
    graph = graph_of(queries=13, keys=keys, causal=causal)
    for h in range(H):
        for i in range(13):
            nodes = [j for j in range(keys) if graph.allowed[0, i, j]]
            ranked = sorted(nodes, key=lambda j: graph.distance[h, i, j])
            for rank, j in enumerate(ranked):
                assert graph.tenth[h, i, j] == int(TENTHS * (rank + 0.5) / len(ranked))
            assert all(graph.tenth[h, i, j] == -1 for j in range(keys) if j not in nodes)


def test_profiles_sum_weights_by_group():
    graph = graph_of(queries=40, keys=40, causal=True, places=np.arange(40))
    near = profile(graph.calibrated, graph.tenth, TENTHS)
    far = profile(graph.calibrated, graph.offset, len(OFFSET_LABELS))
    np.testing.assert_allclose(near.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(far.sum(-1), 1, atol=1e-12)
    weights = graph.calibrated / graph.calibrated.sum(-1, keepdims=True)
    expected = np.zeros_like(far)
    for i in range(40):
        for j in range(i + 1):
            group = next((g for g, end in enumerate(OFFSETS) if i - j <= end), len(OFFSETS))
            expected[:, i, group] += weights[:, i, j]
    np.testing.assert_allclose(far, expected, atol=1e-12)
    assert near[0, 39, 3] == pytest.approx(weights[0, 39][graph.tenth[0, 39] == 3].sum())


def test_offsets_count_from_the_querys_own_place():
    graph = graph_of(queries=2, keys=12, places=np.array([1, 11]))
    assert [OFFSET_LABELS[group] for group in graph.offset[0, 1, [11, 10, 8, 3, 0]]] == ["0", "1", "3-4", "5-8", "9-16"]
    assert [OFFSET_LABELS[group] for group in graph.offset[0, 0, [0, 1, 3]]] == ["1", "0", "2"]
    assert graph_of().offset is None


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (10, 50), (64, 65)])
def test_running_numbers_are_those_of_all_values_at_once(cuts):
    values = 1e4 + np.random.default_rng(0).normal(size=(H, 100, 6))  # a naive sum of squares would lose the spread
    values[1, 7] = np.nan
    values[2, :, 3] = np.nan
    running = Running((H, 6))
    for part in np.split(values, cuts, axis=1):
        running.add(part)
    found = running.result()
    there = ~np.isnan(values)
    np.testing.assert_array_equal(found.count, there.sum(axis=1))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            np.delete(found.mean, 3, axis=1), np.nanmean(np.delete(values, 3, 2), axis=1), rtol=1e-12
        )
        np.testing.assert_allclose(
            np.delete(found.std, 3, axis=1), np.nanstd(np.delete(values, 3, 2), axis=1), rtol=1e-9
        )
    assert np.isnan(found.mean[2, 3])
    np.testing.assert_allclose(found.overall, np.nanmean(values, axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize("cuts", [(), (1,), (13, 14, 400)])
def test_a_sample_depends_on_keys_and_not_on_batches(cuts):
    keys = random_keys(3, 0, count=500)
    items = np.arange(1000, dtype=np.float32).reshape(500, 2)
    sample = Sample(20)
    for some, them in zip(np.split(keys, cuts), np.split(items, cuts), strict=True):
        sample.add(some, them)
        assert len(sample.keys) == len(sample.items) <= 20
    np.testing.assert_array_equal(sample.items, items[keys.argsort()[:20]])


def test_a_sample_is_uniform():
    chosen = []
    for seed in range(200):
        sample = Sample(5)
        for item in range(10):
            sample.add(random_keys(seed, item, count=10), np.arange(10 * item, 10 * item + 10, dtype=np.float32))
        chosen += sample.items.tolist()
    assert kstest(np.array(chosen) / 100, "uniform").pvalue > 0.01


def test_no_points_means_none():
    sample = Sample(0)
    sample.add(np.array([0.5]), np.ones((1, 2), np.float32))
    assert not len(sample.keys)
