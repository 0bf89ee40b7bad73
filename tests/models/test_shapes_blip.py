"""The built-in model's making: vocabulary, configuration, lessons, and a pre-training that resumes exactly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from padapter.models import builtin_path
from padapter.models.pretrain import (
    CAPTION_PROMPT,
    ENTAILMENT_PROMPT,
    LABEL_WORDS,
    Collator,
    Lessons,
    Student,
    lesson,
    lesson_tokens,
    level_untaught,
    pretrain,
)
from padapter.models.shapes_blip import build_config, build_model, build_processor
from padapter.models.vocabulary import SPECIAL, vocabulary
from padapter.worlds import DOMAINS, load_world


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_vocabulary_has_no_duplicates_and_special_tokens_first():
    tokens = vocabulary()
    assert len(tokens) == len(set(tokens))
    assert tuple(tokens[: len(SPECIAL)]) == SPECIAL


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_world_words_are_whole_tokens(domain, processor):
    tokenizer = processor.tokenizer
    for task, column in (("vqa", "question"), ("entailment", "hypothesis"), ("caption", "captions")):
        for row in load_world(domain, task, "train", 60):
            text = " ".join(row[column]) if task == "caption" else row[column]
            tokens = tokenizer.tokenize(text)
            assert "[UNK]" not in tokens
            assert not [t for t in tokens if t.startswith("##")], text


def test_any_ascii_text_is_readable(processor):
    tokens = processor.tokenizer.tokenize("Zqxj-93's (pneumothorax)? #7 & $5")
    assert "[UNK]" not in tokens


def test_special_token_ids_agree_between_tokenizer_and_config(processor):
    tokenizer, config = processor.tokenizer, build_config().text_config
    assert tokenizer.bos_token_id == config.bos_token_id == tokenizer.convert_tokens_to_ids("[DEC]")
    assert tokenizer.sep_token_id == config.sep_token_id == config.eos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id == 0
    assert len(tokenizer) == config.vocab_size


def test_no_tower_starts_at_zero():
    for name, parameter in build_model().named_parameters():
        if parameter.ndim > 1:
            assert parameter.std() > 1e-3, name


def test_lessons_are_reproducible_and_masked_to_their_targets(processor):
    first, again = lesson(7), lesson(7)
    assert (first.pixels == again.pixels).all()
    assert (first.long, first.short) == (again.long, again.short)
    batch = Collator(processor)([first, lesson(8)])
    tokenizer = processor.tokenizer
    for group, pairs in (("long", (*first.long, *lesson(8).long)), ("short", (*first.short, *lesson(8).short))):
        ids, labels = batch[f"{group}_ids"], batch[f"{group}_labels"]
        for row, (prompt, target) in enumerate(pairs):
            assert tokenizer.decode(ids[row], skip_special_tokens=True).startswith(prompt.split()[0])
            kept = labels[row][labels[row] != -100]
            assert tokenizer.decode(kept, skip_special_tokens=True) == target
            assert kept[-1] == tokenizer.sep_token_id


def test_pretraining_speaks_as_the_tasks_do(processor):
    """The prompts a user's run will give the model are, token for token, those it was pre-trained with."""
    from padapter.tasks import get_task

    tokenize = processor.tokenizer.tokenize
    vqa, entailment, caption = (get_task(name) for name in ("vqa", "entailment", "caption"))
    for index in range(40):
        row = load_world("source", "vqa", "train", 40)[index]
        assert tokenize(vqa.prompt(row)) == tokenize(row["question"])
    for row in load_world("source", "entailment", "train", 40):
        assert tokenize(entailment.prompt(row)) == tokenize(ENTAILMENT_PROMPT.format(hypothesis=row["hypothesis"]))
        assert entailment.targets(row)[0][0] == LABEL_WORDS[row["label"]]
    assert tokenize(caption.prompt({})) == tokenize(CAPTION_PROMPT)


def test_the_last_third_asks_more_and_describes_less():
    lessons = Lessons(steps=6, batch_size=2)
    assert len(lessons) == 12
    assert [(len(x.long), len(x.short)) for x in lessons] == [(2, 6)] * 8 + [(1, 8)] * 4


def test_loss_is_the_mean_over_target_tokens(processor):
    model = build_model().eval()
    batch = Collator(processor)([lesson(i) for i in range(3)])
    every = torch.ones(len(processor.tokenizer), dtype=torch.bool)
    loss = Student(model, every)(**batch)["caption_loss"]
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state.repeat_interleave(2, 0)
    expected = model.text_decoder(batch["long_ids"], encoder_hidden_states=states, labels=batch["long_labels"]).loss
    torch.testing.assert_close(loss, expected)


def test_words_never_said_get_no_gradient_at_the_output(processor):
    _, said = lesson_tokens(processor)
    model = build_model()
    Student(model, said)(**Collator(processor)([lesson(0), lesson(1)]))["loss"].backward()
    bias = model.text_decoder.cls.predictions.bias.grad
    assert not bias[~said].any()
    assert bias[said].all()


def test_words_of_no_lesson_become_as_long_as_the_others_and_keep_their_direction(processor):
    seen, said = lesson_tokens(processor)
    assert (seen | ~said).all()
    model = build_model()
    table = model.text_decoder.get_input_embeddings().weight
    before = table.detach().clone()
    level_untaught(model, seen, said)
    assert torch.equal(table[seen], before[seen])
    lengths = table[~seen].norm(dim=-1)
    torch.testing.assert_close(lengths, before[said].norm(dim=-1).mean().expand_as(lengths))
    torch.testing.assert_close(torch.cosine_similarity(table[~seen], before[~seen]), torch.ones_like(lengths))


def test_every_token_of_a_lesson_is_known_beforehand(processor):
    seen, said = lesson_tokens(processor)
    for index in range(5000, 5400):
        batch = Collator(processor)([lesson(index, late=index % 3 == 0)])
        for group in ("long", "short"):
            labels = batch[f"{group}_labels"]
            assert said[labels[labels >= 0]].all()
            assert seen[batch[f"{group}_ids"]].all()
    assert 40 < said.sum() < seen.sum() < 100


def test_a_stopped_pretraining_continues_to_the_same_weights(tmp_path, monkeypatch):
    arguments = {"batch_size": 2, "learning_rate": 1e-3, "save_steps": 2}
    whole = pretrain(tmp_path / "whole", steps=4, **arguments)

    from padapter.models import pretrain as module

    def crash(index, late=False):
        if index == 4:  # the first lesson of step 3
            raise KeyboardInterrupt
        return lesson(index, late)

    monkeypatch.setattr(module, "lesson", crash)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "parts", steps=4, **arguments)
    monkeypatch.undo()
    parts = pretrain(tmp_path / "parts", steps=4, **arguments)
    expected, found = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_unknown_names_are_not_built_in():
    assert builtin_path("Salesforce/blip-image-captioning-base") is None
