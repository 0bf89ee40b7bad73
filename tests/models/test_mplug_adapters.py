"""Adapters in mPLUG: the equations in every place, every variant of every tuner, answers with and without the cache."""

from __future__ import annotations

import copy

import pytest
import torch
from mplug_adapted import CLOSE, LAYERS, adapted
from peft import PeftModel
from tiny_mplug import model_of, pictures, talkative, texts, tiny

from padapter.architectures import AttentionSite, find_sites
from padapter.architectures.sites import resolve
from padapter.errors import UserError
from padapter.functional.reference import adjacency, attention_probabilities, iterate
from padapter.tuners import TUNERS, PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer


def tokens_of(name: str, lengths: list[int], images: int, row: int) -> tuple[list[int], list[int], bool]:
    """Places of a module's queries and keys that are no padding, and whether it is causal; answers have no padding."""
    image = list(range(images))
    question = list(range(lengths[row]))
    both = [*image, *(images + i for i in question)]
    answer = list(range(4))
    if name.startswith("vision_model"):
        return image, image, False
    if name.startswith("text_decoder"):
        return answer, both if "crossattention" in name else answer, "crossattention" not in name
    if name.startswith("fusion_encoder") and "crossattention" in name:
        return question, image, False
    connected = name.startswith("fusion_encoder.encoder.layer.2.")
    return (both, both, False) if connected else (question, question, False)


def context_of_one_head(layer: str, M, nodes, number_of_queries, *, decoder, project, exponents, mapping):
    """docs/mathematics.md, "Graph layers", dense, in the words of the table there; (N1, dh)."""
    options = LAYERS[layer]
    A = adjacency(M)
    steps = options.get("steps", 1)
    fixed = torch.arange(len(nodes)) >= (number_of_queries if decoder else len(nodes))
    if "p" in options:
        degree = "row" if decoder else "symmetric"
        return iterate(A, nodes, project, *exponents, degree, steps, fixed)[:number_of_queries]
    D = torch.ones(len(A), dtype=A.dtype) if decoder else A.sum(1)
    normalised = D[:, None] ** -0.5 * A * D[None] ** -0.5
    if options["message_passing"] == "gcn":
        return (normalised @ nodes)[:number_of_queries]
    t, F = 0.1, nodes
    for step in range(1, steps + 1):
        F = (1 - t) * normalised @ torch.where(fixed[:, None], nodes, F) + t * nodes
        if options["message_passing"] == "gcnii":
            b = torch.log(torch.tensor(0.5 / step + 1, dtype=torch.float64))
            F = (1 - b) * F + b * F @ mapping
    return F[:number_of_queries]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_context_of_every_module_is_that_of_the_dense_graph_without_padding(vqa, layer):
    """Queries, keys and values are seen by hooks; padding is cut out of them, and no mask is left but causality."""
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    model = adapted(base, PAdapterConfig(where="all", **LAYERS[layer]))
    inner, lengths = model.base_model.model, [5, 2, 3]
    sites = {name: site for name, site in find_sites(inner).items() if isinstance(site, AttentionSite)}
    seen: dict[tuple[str, str], torch.Tensor] = {}
    for name, site in sites.items():
        value = inner.get_submodule(resolve(site.name, site.row.value))
        key = site.module.key if hasattr(site.module, "key") else site.module.k_proj
        for what, module in (("query", site.query), ("key", key), ("value", value)):
            module.register_forward_hook(lambda _m, _a, out, k=(name, what): seen.update({k: out}))
        layer_module = inner.get_submodule(name)
        layer_module.base_layer.register_forward_pre_hook(
            lambda _m, args, k=(name, "context"): seen.update({k: args[0]})
        )
    pixels, (ids, mask), (answers, _) = pictures(sizes, 3), texts(sizes, lengths), texts(sizes, [4] * 3, seed=5)
    with torch.no_grad():
        model(pixels, ids, mask, decoder_input_ids=answers)
    assert len(sites) == 1 + 1 + 2 * 3 + 1 + 2 * 1
    for name, site in sites.items():
        adapter = inner.get_submodule(name)
        assert isinstance(adapter, PAdapterLayer)
        p, mu = (float(value.detach()) if torch.is_tensor(value) else value for value in adapter.exponents("default"))
        exponents = (torch.tensor(p, dtype=torch.float64), torch.tensor(mu, dtype=torch.float64))
        weight = adapter.base_layer.weight.T.unflatten(0, (sizes.heads, -1))  # (H, dh, d)
        mapping = adapter.leaf("mapping")["default"] if "gcnii" in layer else None
        for row in range(3):
            queries, keys, causal = tokens_of(site.name, lengths, sizes.grid**2 + 1, row)
            places = {"query": queries, "key": keys, "value": keys, "context": queries}
            Q, K, V, found = (
                seen[name, what][row, places[what]].unflatten(-1, (sizes.heads, -1)).transpose(0, 1) for what in places
            )
            for h in range(sizes.heads):
                M = attention_probabilities(Q[h], K[h], None, causal, Q.shape[-1] ** -0.5)
                wanted = context_of_one_head(
                    layer, M, torch.cat([Q[h], V[h]]), len(queries), decoder=name.startswith("text_decoder"),
                    project=lambda F, W=weight[h]: F @ W, exponents=exponents,
                    mapping=None if mapping is None else mapping[h] + torch.eye(mapping.shape[-1]),
                )  # fmt: skip
                torch.testing.assert_close(found[h], wanted.detach(), msg=f"{name}, row {row}", **CLOSE)


VARIANTS = [(tuner, variant) for tuner, config in TUNERS.items() for variant in config.variants()]


def config_of(case: tuple[str, str], **options):
    tuner, variant = case
    return TUNERS[tuner](**{**TUNERS[tuner].variants()[variant].options, "where": "all", **options})


@pytest.mark.parametrize("case", VARIANTS, ids=":".join)
def test_every_variant_of_every_tuner(vqa, case, tmp_path, monkeypatch):
    """Start, gradients, switching off, saving under another name, refusing to merge, taking off."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)  # takes longer than all the rest
    plain, sizes = vqa
    (ids, mask), (answers, _) = texts(sizes, [5, 2, 3]), texts(sizes, [4, 3, 4], seed=5)
    inputs = {
        "pixel_values": pictures(sizes, 3),
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": answers,
    }

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    before = logits(plain.requires_grad_(False))
    start = logits(adapted(copy.deepcopy(plain), config_of(case), trained=False))
    if TUNERS[case[0]].variants()[case[1]].identity_at_start:
        assert torch.equal(start, before)
    model = adapted(copy.deepcopy(plain), config_of(case, activation="gelu"))
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    with pytest.raises(UserError, match="cannot be merged"):
        model.merge_and_unload()
    model.train()(**inputs, labels=answers).loss.backward()
    for name, parameter in model.eval().named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.any(), name
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        copy.deepcopy(plain), tmp_path, adapter_name="other", autocast_adapter_dtype=False
    ).double()
    assert torch.equal(logits(again.eval()), after)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize(
    ("arrangement", "search", "form"),
    [
        ("vqa", {"search": "official", "num_beams": 3}, "projected"),
        ("vqa", {"num_beams": 3}, "bottleneck"),
        ("caption", {"search": "official", "num_beams": 3}, "bottleneck"),
        ("caption", {}, "projected"),
    ],
    ids=str,
)
def test_generation_with_the_cache_is_generation_without(arrangement, search, form):
    _, state, sizes = tiny(arrangement, words=16, vision_layers=1, text_layers=1, fusion_layers=3, decoder_layers=1)
    model = adapted(
        model_of(talkative(state, 3, ending=0.5), sizes, arrangement), PAdapterConfig(where="all", form=form)
    )
    inputs = {"pixel_values": pictures(sizes, 3)}
    if arrangement == "vqa":
        inputs["input_ids"], inputs["attention_mask"] = texts(sizes, [5, 2, 3])
    cached, plain = (
        model.generate(
            **inputs, **search, max_new_tokens=7, use_cache=use, return_dict_in_generate=True, **recorded(search)
        )
        for use in (True, False)
    )
    assert cached.sequences.tolist() == plain.sequences.tolist()
    assert len(set(plain.sequences[0].tolist())) > 1
    torch.testing.assert_close(cached.scores, plain.scores, **CLOSE)


def recorded(search: dict[str, object]) -> dict[str, bool]:
    return {} if search.get("search") == "official" else {"output_scores": True}
