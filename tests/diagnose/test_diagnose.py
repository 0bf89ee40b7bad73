"""Numbers of a model agree with a literal computation in float64; batches, padding and order leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnosed import CROSS, SELF, adapted, examples, values
from scipy.spatial.distance import cdist
from scipy.stats import entropy, sem
from tiny_blip import make_backbone

from padapter.diagnose import diagnose, embed
from padapter.diagnose.reading import allowed_pairs, present_queries
from padapter.errors import UserError
from padapter.functional.reference import adjacency, messages
from padapter.tuners import PAdapterConfig


@pytest.fixture(scope="module")
def backbone():
    return adapted(double=True)


@pytest.fixture(scope="module")
def found(backbone):
    return diagnose(backbone, examples(), points=40, batch_size=2, where="decoder")


def captured(backbone, name, example, before):
    """Query, key and value (H, N, dh) of a module for one example that is read alone, so without padding."""
    model = backbone.base_model
    module, kept, hooks = model.get_submodule(name), {}, []
    for part in ("query", "key", "value"):
        hooks.append(
            getattr(module, part).register_forward_hook(lambda m, a, out, part=part: kept.__setitem__(part, out))
        )
    batch = backbone.collate([example])
    batch = {key: it.double() if it.is_floating_point() else it for key, it in batch.items()}
    with torch.no_grad():
        run = backbone.training_module("sequence").eval()
        if before:
            with backbone.model.disable_adapter():
                run(**batch)
        else:
            run(**batch)
    for hook in hooks:
        hook.remove()
    return [kept[part][0].unflatten(-1, (4, -1)).transpose(0, 1) for part in ("query", "key", "value")]


def literal(backbone, name, before):
    """Every number of a layer, from equations (5)-(8) with one difference vector per edge; lists over query nodes."""
    model = backbone.base_model
    output = model.get_submodule(name.removesuffix(".self") + ".output.dense")
    weight = output.get_base_layer().weight.detach().double()  # (d, H * dh)
    numbers = {
        key: []
        for key in ("preference", "heterophily", "calibrated heterophily", "random", "kl", "own", "entropy", "near")
    }
    for example in examples():
        Q, K, V = captured(backbone, name, example, before)
        first = len(numbers["heterophily"])
        for h in range(4):
            dh = Q.shape[-1]
            Wo = weight[:, h * dh : (h + 1) * dh].T  # (dh, d)
            scores = Q[h] @ K[h].T * dh**-0.5
            causal = "crossattention" not in name
            if causal:
                scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
            M = scores.softmax(-1)
            F = torch.cat([Q[h], V[h]]) @ Wo
            p, mu = (torch.as_tensor(it).reshape(-1)[0].double() for it in output.exponents("default"))
            graph = messages(adjacency(M), F, p, mu, "row")
            n = len(M)
            calibrated = (graph.alpha[:n, None] * graph.Mbar[:n, n:]).detach().numpy()
            own, M, F = graph.beta[:n].detach().numpy(), M.numpy(), F.numpy()
            apart = cdist(F[:n], F[n:], "cosine")
            distance = cdist(F[:n], F[n:])
            for i in range(n):
                keys = np.arange(i + 1) if causal else np.arange(M.shape[1])
                new = calibrated[i, keys]
                numbers["heterophily"].append(np.average(apart[i, keys], weights=M[i, keys]))
                numbers["calibrated heterophily"].append(np.average(apart[i, keys], weights=new))
                numbers["random"].append(apart[i, keys].mean())
                numbers["kl"].append(entropy(new, M[i, keys]))
                numbers["own"].append(own[i])
                numbers["entropy"].append(entropy(new))
                order = distance[i, keys].argsort()
                profile = np.zeros(10)
                for rank, j in enumerate(keys[order]):
                    profile[int(10 * (rank + 0.5) / len(keys))] += calibrated[i, j] / new.sum()
                numbers["near"].append(profile)
        apart = np.subtract(numbers["heterophily"][first:], numbers["random"][first:])
        numbers["preference"].append(apart.mean())
    return {key: np.mean(values, axis=0) for key, values in numbers.items()} | {"error": sem(numbers["preference"])}


@pytest.mark.parametrize("name", [SELF.format(1), CROSS.format(0), CROSS.format(1)])
def test_numbers_after_adaptation_are_those_of_the_equations(backbone, found, name):
    expected = literal(backbone, name, before=False)
    state = found.layer(name).after
    assert state.plain.heterophily.overall == pytest.approx(expected["heterophily"], abs=1e-9)
    assert state.calibrated.heterophily.overall == pytest.approx(expected["calibrated heterophily"], abs=1e-9)
    assert state.random.overall == pytest.approx(expected["random"], abs=1e-9)
    assert state.plain.preference.mean[0] == pytest.approx(expected["preference"], abs=1e-9)
    assert state.plain.preference.standard_error[0] == pytest.approx(expected["error"], abs=1e-9)
    assert state.divergence.overall == pytest.approx(expected["kl"], abs=1e-9)
    assert state.divergence.overall > 1e-3
    assert state.own.overall == pytest.approx(expected["own"], abs=1e-9)
    assert state.calibrated.entropy.overall == pytest.approx(expected["entropy"], abs=1e-9)
    np.testing.assert_allclose(state.calibrated.by_distance.overall, expected["near"], atol=1e-9)


def test_before_adaptation_the_base_model_is_measured(backbone, found):
    name = SELF.format(1)
    expected, state = literal(backbone, name, before=True), found.layer(name).before
    assert state.plain.heterophily.overall == pytest.approx(expected["heterophily"], abs=1e-9)
    assert state.random.overall == pytest.approx(expected["random"], abs=1e-9)
    assert state.calibrated is None
    base = make_backbone()
    base.model.double()
    alone = diagnose(base, examples(), points=40, where="decoder")
    for layer, same in zip(found.layers, alone.layers, strict=True):
        assert same.after is None
        np.testing.assert_allclose(layer.before.plain.entropy.mean, same.before.plain.entropy.mean, atol=1e-12)
        np.testing.assert_allclose(layer.before.points.query, same.before.points.query, atol=1e-5)
    assert "not adapted" in alone.notes[0]


def test_gains_are_differences_of_shares(found):
    layer = found.layer("layer 1, self-attention")
    for by in ("distance", "offset"):
        calibration, adaptation = layer.gain(by)
        old, plain, new = (
            getattr(weights, f"by_{by}").overall
            for weights in (layer.before.plain, layer.after.plain, layer.after.calibrated)
        )
        np.testing.assert_allclose(calibration, new - plain)
        np.testing.assert_allclose(adaptation, new - old)
        assert calibration.sum() == pytest.approx(0, abs=1e-12)
        assert np.abs(calibration).max() > 1e-3
    assert found.layer("layer 0, cross-attention").gain("offset") == (None, None)


@pytest.mark.parametrize("size", [1, 5])
def test_batches_and_their_padding_leave_no_trace(backbone, found, size):
    other = diagnose(backbone, examples(), points=40, batch_size=size, where="decoder")
    np.testing.assert_allclose(values(other), values(found), atol=1e-10)
    for layer, same in zip(found.layers, other.layers, strict=True):
        for state in ("before", "after"):
            for kind in ("query", "value", "query_heads", "value_heads"):
                mine, its = (getattr(getattr(it, state).points, kind) for it in (layer, same))
                np.testing.assert_allclose(mine, its, atol=1e-5)


def test_every_token_of_a_text_counts_once_and_padding_never(backbone, found):
    lengths = [int(backbone.collate([example])["attention_mask"].sum()) for example in examples()]
    assert len(set(lengths)) > 1
    for layer in found.layers:
        assert layer.after.graphs == len(lengths)
        np.testing.assert_array_equal(layer.after.plain.entropy.count, sum(lengths))


def test_the_same_seed_gives_the_same_and_another_one_another_sample(backbone):
    first, again, other = (diagnose(backbone, examples(2), points=6, where="decoder", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(values(again), values(first))
    layer, same = first.layers[1], again.layers[1]
    np.testing.assert_array_equal(layer.after.points.query, same.after.points.query)
    assert not np.array_equal(layer.after.points.query, other.layers[1].after.points.query)
    one, two = embed(layer, seed=3), embed(same, seed=3)
    assert one.query["after"].shape == (6, 2)
    np.testing.assert_array_equal(one.query["after"], two.query["after"])
    np.testing.assert_array_equal(one.value["before"], two.value["before"])


def test_points_are_projected_features_of_the_same_tokens(backbone, found):
    layer = found.layer("layer 0, self-attention")  # its input is the embedding, which no adapter changes
    np.testing.assert_allclose(layer.before.points.query, layer.after.points.query, atol=1e-6)
    name, points = SELF.format(0), layer.after.points
    assert points.query.shape == (40, 32)
    output = backbone.base_model.get_submodule(name.removesuffix(".self") + ".output.dense")
    weight = output.get_base_layer().weight.detach().double()
    nodes = torch.cat([captured(backbone, name, it, True)[0].transpose(0, 1).flatten(1) for it in examples()])
    far = cdist((nodes @ weight.T).numpy(), (nodes @ weight.T).numpy())
    mine = cdist(points.query, points.query)
    assert all(np.abs(far - distance).min() < 1e-4 for distance in mine[0])
    nodes = torch.cat([captured(backbone, name, it, True)[2][2] @ weight[:, 16:24].T for it in examples()])
    sizes = nodes.norm(dim=-1).numpy()  # of the third head's value nodes
    assert all(np.abs(sizes - size).min() < 1e-5 for size in np.linalg.norm(points.value_heads[2], axis=-1))


def test_memory_does_not_grow_with_the_data(backbone):
    few, many = (diagnose(backbone, examples(count), points=8, where="decoder") for count in (2, 8))
    assert many.rows == 4 * few.rows

    def sizes(found):
        return [
            np.shape(it)
            for layer in found.layers
            for state in (layer.before, layer.after)
            for it in (*vars(state.points).values(), *vars(state.plain.by_distance).values())
        ]

    assert sizes(few) == sizes(many)


def test_examples_may_come_one_by_one(backbone):
    streamed = diagnose(backbone, (example for example in examples()), points=0, batch_size=2, where="decoder")
    assert streamed.rows == 5
    assert streamed.layers[0].after.points is None
    with pytest.raises(UserError, match="no rows"):
        diagnose(backbone, iter(()))


class Call:
    """A recorded call, as far as masks go."""

    def __init__(self, mask, causal=False, queries=4, keys=4):
        self.call = self
        self.query, self.key = torch.zeros(1, 1, queries, 2), torch.zeros(1, 1, keys, 2)
        self.attention_mask, self.is_causal = mask, causal


def test_masks():
    causal = np.tri(4, dtype=bool)
    assert (allowed_pairs(Call(None, causal=True))[0, 0] == causal).all()
    hidden = torch.tensor([True, True, True, False])
    boolean = allowed_pairs(Call(hidden[None, None, None]))
    additive = torch.zeros(1, 1, 1, 4).masked_fill(~hidden, torch.finfo(torch.float32).min)
    assert (allowed_pairs(Call(additive)) == boolean).all()
    assert (allowed_pairs(Call(additive - 3.0)) == boolean).all()  # a position bias hides nothing
    assert boolean[0, 0].tolist() == [hidden.tolist()] * 4
    # Right padding of a decoder: its own queries see all real tokens, but nobody sees it.
    padded = (torch.ones(4, 4).tril().bool() & hidden)[None, None]
    allowed = allowed_pairs(Call(padded))[0]
    assert present_queries(allowed, True, None).tolist() == hidden.tolist()
    assert present_queries(allowed, False, None).all()
    assert present_queries(allowed, False, hidden.long()).tolist() == hidden.tolist()
    assert present_queries(allowed, False, torch.zeros(9)).all()  # of another length: not about these queries
    nothing = allowed.copy()
    nothing[:, 1] = False
    assert present_queries(nothing, False, None).tolist() == [True, False, True, True]


def test_what_cannot_be_done_is_refused(backbone):
    with pytest.raises(UserError, match="--where: 'nowhere' is not made of decoder"):
        diagnose(backbone, examples(1), where="nowhere")
    with pytest.raises(UserError, match="no attention modules"):
        diagnose(backbone, examples(1), where="connector")
    with pytest.raises(UserError, match="name the task"):
        diagnose(backbone, "some/folder")
    several = adapted()
    several.model.add_adapter("second", PAdapterConfig())
    several.model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="several p-adapters"):
        diagnose(several, examples(1))


def test_maps_need_nodes(backbone):
    layer = diagnose(backbone, examples(1), points=0, where="decoder").layers[0]
    with pytest.raises(UserError, match="0 nodes were sampled"):
        embed(layer)
    with pytest.raises(UserError, match="heads 0 to 3, not 4"):
        embed(layer, head=4)
