"""Adapters in mPLUG, and in BLIP's question answering: every place, padding, the equations, the tasks."""

from __future__ import annotations

import copy
import io

import mplug_reference as reference
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tiny_mplug import model_of, pictures, talkative, texts, tiny
from transformers import BlipConfig, BlipForQuestionAnswering, Trainer, TrainingArguments

from padapter.architectures import AttentionSite, find_sites
from padapter.architectures.sites import resolve
from padapter.errors import UserError
from padapter.functional.reference import adjacency, attention_probabilities, iterate
from padapter.methods.prefix_model import PrefixModel
from padapter.training.gradients import GradientCheck, untrained
from padapter.tuners import TUNERS, BottleneckConfig, PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
LAYERS = {
    "pgnn": {"p": 1.5, "mu": 0.3},
    "pgnn, two steps": {"p": 1.5, "mu": 0.3, "steps": 2},
    "gcn": {"message_passing": "gcn"},
    "appnp": {"message_passing": "appnp", "steps": 2},
    "gcnii": {"message_passing": "gcnii", "steps": 2},
}


def adapted(base, config, *, trained: bool = True):
    """An adapter everywhere, in float64, its weights random."""
    torch.manual_seed(0)
    config.init_weights = not trained
    model = get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    if trained:
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                # Numbers that float32 holds too: in it PEFT makes adapters that are loaded.
                parameter.copy_((parameter + 0.3 * torch.rand(parameter.shape)).float())
    return model


@pytest.fixture(scope="module")
def vqa():
    """(model, sizes): one layer of each kind but the fusion network's four, of which the third is connected."""
    model, _, sizes = tiny(text_layers=1, vision_layers=1, decoder_layers=1, fusion_layers=4)
    return model, sizes


@pytest.mark.parametrize(
    ("layer", "form", "attention"),
    [
        *((layer, "projected", "sdpa") for layer in LAYERS),
        ("pgnn", "projected", "eager"),
        ("appnp", "bottleneck", "sdpa"),
        ("gcnii", "bottleneck", "eager"),
    ],
)
def test_how_far_a_question_is_padded_changes_nothing(vqa, layer, form, attention):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    base.set_attn_implementation(attention)
    model = adapted(base, PAdapterConfig(where="all", form=form, **LAYERS[layer]))
    lengths = [5, 2, 3]
    pixels, (ids, mask), (answers, _) = pictures(sizes, 3), texts(sizes, lengths), texts(sizes, [4] * 3, seed=5)
    wide = torch.nn.functional.pad(ids, (0, 3), value=7)
    with torch.no_grad():
        batch = model(pixels, wide, torch.nn.functional.pad(mask, (0, 3)), decoder_input_ids=answers)
        for row, length in enumerate(lengths):
            here = slice(row, row + 1)
            alone = model(pixels[here], ids[here, :length], decoder_input_ids=answers[here])
            torch.testing.assert_close(batch.logits[here], alone.logits, **CLOSE)
            torch.testing.assert_close(batch.image_states[here], alone.image_states, **CLOSE)
            torch.testing.assert_close(batch.text_states[here, :length], alone.text_states, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_how_far_a_question_is_padded_changes_nothing_in_the_text_encoder_of_blip(layer):
    """Its decoder does attend to padding: transformers hands it no mask of the question."""
    width = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **width,
        "vocab_size": 30,
        "encoder_hidden_size": 8,
        "initializer_range": 0.5,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(0)
    vision = {**width, "image_size": 8, "patch_size": 4, "initializer_range": 0.5}
    base = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision, projection_dim=4))
    model = adapted(base, PAdapterConfig(where="language", **LAYERS[layer])).base_model.model
    ids = torch.tensor([[1, 5, 9, 4, 0, 0], [1, 7, 0, 0, 0, 0]])
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        batch = model.text_encoder(ids, (ids > 0).long(), encoder_hidden_states=states)[0]
        for row, length in enumerate((4, 2)):
            alone = model.text_encoder(ids[row : row + 1, :length], encoder_hidden_states=states[row : row + 1])[0]
            torch.testing.assert_close(batch[row : row + 1, :length], alone, **CLOSE)


def padded_inputs(sizes) -> dict[str, torch.Tensor]:
    (ids, mask), (answers, _) = texts(sizes, [5, 2, 3]), texts(sizes, [4] * 3, seed=5)
    return {"pixel_values": pictures(sizes, 3), "input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers}


def test_padding_in_a_batch_with_several_adapters(vqa):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    model = adapted(base, PAdapterConfig(where="all"))
    model.add_adapter("other", PAdapterConfig(where="all", p=1.1, init_weights=False), autocast_adapter_dtype=False)
    names, inputs = ["default", "__base__", "other"], padded_inputs(sizes)
    model.double()
    with torch.no_grad():
        mixed = model(**inputs, adapter_names=names).logits
        for row, name in enumerate(names):
            here = {key: value[row : row + 1] for key, value in inputs.items()}
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(**here).logits
            else:
                model.set_adapter(name)
                alone = model(**here).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, **CLOSE)


def test_padding_in_copies_and_after_unloading(vqa):
    plain, sizes = vqa
    inputs, model = padded_inputs(sizes), adapted(copy.deepcopy(plain), PAdapterConfig(where="fusion"))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        found = model(**inputs).logits
        for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(again(**inputs).logits, found)
        assert torch.equal(model.unload()(**inputs).logits, plain.requires_grad_(False)(**inputs).logits)
    for module in model.base_model.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_pre_hooks_with_kwargs
        assert not any(name.startswith("_padapter") for name in module.__dict__)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_padding_with_gradient_checkpointing(vqa, reentrant):
    model, inputs = adapted(copy.deepcopy(vqa[0]), PAdapterConfig(where="all")), padded_inputs(vqa[1])
    inputs["labels"] = inputs["decoder_input_ids"]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(**inputs).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name, **CLOSE)


def test_a_mask_about_other_tokens_is_refused(vqa):
    """A row whose `padding` names the wrong module."""
    model = adapted(copy.deepcopy(vqa[0]), PAdapterConfig(where="fusion"))
    tap = model.base_model.model.fusion_encoder.encoder.layer[0].crossattention.self.__dict__["_padapter_padding"]
    tap._kept = torch.ones(3, 9, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"mask about \(3, 9\) tokens; mend `padding` in the row"):
        tap.take(torch.zeros(3, 2, 5, 4))


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


def with_prefix(arrangement: str, virtual: int = 3):
    """(model, official state, sizes, prefix (n, layers, 2, d))."""
    base, state, sizes = tiny(arrangement, words=16, vision_layers=1, text_layers=1, fusion_layers=3)
    torch.manual_seed(2)
    layers = sizes.decoder_layers
    config = PrefixTuningConfig(
        num_virtual_tokens=virtual, num_layers=layers, token_dim=sizes.width, num_attention_heads=sizes.heads,
        encoder_hidden_size=sizes.width, num_transformer_submodules=1,
    )  # fmt: skip
    model = PrefixModel(base, config).double().eval()
    prefix = model.prompt_encoder["default"].embedding.weight.detach().view(virtual, layers, 2, sizes.width)
    return model, state, sizes, prefix


def decoder_by_hand(state, ids, states, states_mask, prefix, heads: int) -> torch.Tensor:
    """The decoder of the description with further keys and values in front of its self-attention."""
    x = reference.embed(state, "text_decoder.bert.embeddings", ids)
    (batch, length), virtual = ids.shape, prefix.shape[0]
    causal = torch.full((length, length), -1e30, dtype=x.dtype).triu(1)
    mask = torch.cat([x.new_zeros(length, virtual), causal], dim=1)
    read = None if states_mask is None else reference.additive(states_mask)
    for index, layer in enumerate(reference.layers_of(state, "text_decoder.bert.encoder.layer")):
        q, k, v = (reference.linear(state, f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        k, v = (torch.cat([prefix[:, index, i].expand(batch, -1, -1), own], dim=1) for i, own in enumerate((k, v)))
        out = reference.linear(state, f"{layer}.attention.output.dense", reference.attention(q, k, v, heads, mask))
        x = reference.norm(state, f"{layer}.attention.output.LayerNorm", out + x, 1e-12)
        x = reference.cross_attend(state, f"{layer}.crossattention", x, states, read, heads)
        x = reference.feed_forward(state, layer, x)
    head = "text_decoder.cls.predictions"
    x = reference.gelu(reference.linear(state, f"{head}.transform.dense", x))
    x = reference.norm(state, f"{head}.transform.LayerNorm", x, 1e-12)
    return x @ state["text_decoder.bert.embeddings.word_embeddings.weight"].T + state[f"{head}.bias"]


def test_a_prefix_is_keys_and_values_in_front_of_the_decoder():
    model, state, sizes, prefix = with_prefix("vqa")
    inner = model.base_model
    (ids, mask), (answers, _) = texts(sizes, [4, 2]), texts(sizes, [5, 5], seed=5)
    pixels = pictures(sizes, 2)
    with torch.no_grad():
        image, text = inner.fuse(inner.encode_images(pixels), ids, mask)
        both = torch.cat([torch.ones(image.shape[:2]).long(), mask], dim=1)
        wanted = decoder_by_hand(state, answers, torch.cat([image, text], dim=1), both, prefix, sizes.heads)
        found = inner(pixels, ids, mask, decoder_input_ids=answers, labels=answers).logits
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        "prompt_encoder.default.embedding.weight"
    }


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"search": "official", "num_beams": 3, "min_new_tokens": 1}])
def test_generation_with_a_prefix_and_prompts_padded_on_the_left(search):
    """With the cache as without, and as if each prompt stood alone: positions are those of the unadapted model."""
    model, _, sizes, _ = with_prefix("caption")
    inner, pixels, options = model.base_model, pictures(sizes, 2), {**search, "max_new_tokens": 4}
    prompts = torch.tensor([[2, 5, 6, 7], [0, 0, 2, 9]])
    written = [inner.generate(pixels, prompts, (prompts > 0).long(), **options, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)
    alone = inner.generate(pixels[1:], prompts[1:, 2:], **options)[0].tolist()
    row = written[0][1].tolist()  # the official search leaves the padding out
    assert row[0 if "search" in search else 2 :][: len(alone)] == alone
    with torch.no_grad():
        padded = inner(pixels, prompts, (prompts > 0).long()).logits[1:, 2:]
        torch.testing.assert_close(padded, inner(pixels[1:], prompts[1:, 2:]).logits, **CLOSE)


def test_lora_is_merged_as_in_any_model(vqa):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    model = get_peft_model(base, LoraConfig(target_modules=["query", "v_proj"], init_lora_weights=False)).double()
    (ids, mask), (answers, _) = texts(sizes, [5, 2]), texts(sizes, [4, 4], seed=5)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers, "labels": answers}
    found = model.train()(pictures(sizes, 2), **inputs)
    found.loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with torch.no_grad():
        merged = model.merge_and_unload()(pictures(sizes, 2), **inputs)
    torch.testing.assert_close(merged.logits, found.logits, **CLOSE)


class Captions(torch.nn.Module):
    """The whole model, trained on captions: its decoder attends to the image, and nothing reads a question."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels):
        inner = self.model.base_model.model
        states = inner.encode_images(pixel_values)
        return inner.text_decoder(labels, encoder_hidden_states=states, labels=labels)


def train_captions(vqa, folder, where: str, config=PAdapterConfig):
    """(module, check, weights before) after two steps."""
    plain, sizes = vqa
    options = {"where": where, "activation": "gelu"}
    module = Captions(get_peft_model(copy.deepcopy(plain), config(**options), autocast_adapter_dtype=False).double())
    check, before = GradientCheck(module), {name: value.clone() for name, value in module.named_parameters()}
    pixels, (ids, _) = pictures(sizes, 2), texts(sizes, [4, 4])
    rows = [{"pixel_values": picture, "labels": row} for picture, row in zip(pixels, ids, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, learning_rate=0.1, weight_decay=0.1, use_cpu=True, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(model=module, args=arguments, train_dataset=rows, callbacks=[check]).train()
    return module, check, before


@pytest.mark.parametrize("config", [PAdapterConfig, BottleneckConfig])
def test_adapters_that_captions_do_not_train_are_said(vqa, tmp_path, config):
    message = (
        r"[\d,]+ of [\d,]+ trainable parameters got no gradient in the first step and stay as they are: "
        r"[\d,]+ in the text_encoder part \(model\.base_model\.model\.text_encoder\.encoder\.layer\.0\.[^;]*\); "
        r"[\d,]+ in the fusion part \(.*fusion_encoder\.encoder\.layer\.0\..* and \d+ more\).*trains is in: decoder\."
    )
    with pytest.warns(UserWarning, match=message) as caught:
        module, check, before = train_captions(vqa, tmp_path, "language", config)
    assert sum("got no gradient" in str(warning.message) for warning in caught) == 1
    trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
    idle = {name: value for name, value in trainable.items() if "text_decoder" not in name}
    assert {name for names in check.found.names.values() for name in names} == idle.keys()
    assert check.found.total == sum(value.numel() for value in idle.values())
    assert check.found.of == sum(value.numel() for value in trainable.values())
    assert all(torch.equal(value, before[name]) == (name in idle) for name, value in trainable.items())
    assert not module._forward_hooks  # nothing is looked at any more


def test_training_captions_with_nothing_but_the_fusion_network_is_refused(vqa, tmp_path):
    with pytest.raises(UserError, match=r"none of the [\d,]+ trainable parameters got a gradient.* in the fusion part"):
        train_captions(vqa, tmp_path, "fusion")
    captioner, _, _ = tiny("caption")  # which has none at all
    with pytest.raises(
        UserError, match=r"where='fusion'.*leaves nothing to adapt. MPlugForConditionalGeneration has 4 in"
    ):
        get_peft_model(captioner, PAdapterConfig(where="fusion"))


def test_what_lora_does_not_train_is_told_by_part(vqa):
    plain, sizes = vqa
    module = Captions(get_peft_model(copy.deepcopy(plain), LoraConfig(target_modules=["query", "q_proj"])).double())
    module(pictures(sizes, 2), texts(sizes, [4, 4])[0]).loss.backward()
    found = untrained(module)
    assert found.counts == {"text_encoder": 8 * 16, "fusion": 7 * 8 * 16}  # r = 8, 8 features in and out
    assert found.trained == ("vision", "decoder")
