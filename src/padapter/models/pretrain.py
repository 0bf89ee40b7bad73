"""Pre-training of ``shapes-blip`` on the source domain: ``make pretrain`` or ``python -m padapter.models``.

Every picture comes with several texts: the caption that names each thing and its place, another caption, four questions
and two hypotheses. (Answers alone teach binding several times more slowly than mixed with full captions.) In the last
third, when captions are nearly perfect, two more questions take the place of the other caption. Lesson number i is
drawn from ``(seed, i)`` alone, so a resumed run sees exactly what the uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import BlipForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from padapter.models.shapes_blip import build_model, build_processor
from padapter.worlds.shapes import DOMAINS, render
from padapter.worlds.shapes.rows import draw_fact
from padapter.worlds.shapes.statements import LABELS, captions, hypothesis

#: Far from every seed a user would give to ``load_world``: no pre-training scene is ever a test scene.
PRETRAINING_SEED = 20_000_000

CAPTION_PROMPT = "what does the image describe? "
ENTAILMENT_PROMPT = "is it correct that {hypothesis} ? "
LABEL_WORDS = {"entailment": "correct", "contradiction": "incorrect", "neutral": "ambiguous"}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Lesson:
    """A picture with (prompt, target) pairs; long and short texts apart, because they are padded apart."""

    pixels: np.ndarray
    long: tuple[Pair, ...]
    short: tuple[Pair, ...]


def lesson(index: int, late: bool = False) -> Lesson:
    """Lesson number ``index`` of the source domain; a late one has two questions for one caption."""
    domain = DOMAINS["source"]
    rng = np.random.default_rng([PRETRAINING_SEED, index])
    scene = domain.look.sample(rng)
    said = captions(scene, domain.dialect, rng)
    long = [(CAPTION_PROMPT, said[0])]
    if not late:
        long.append((CAPTION_PROMPT, said[int(rng.integers(1, len(said)))]))
    short: list[Pair] = []
    for _ in range(6 if late else 4):
        fact = draw_fact(domain, scene, rng)
        short.append((domain.dialect.ask(fact.kind, fact.slots, rng), domain.dialect.say(fact.answer)))
    for _ in range(2):
        label = LABELS[int(rng.integers(len(LABELS)))]
        text = hypothesis(scene, domain.look, domain.dialect, label, rng)
        short.append((ENTAILMENT_PROMPT.format(hypothesis=text), LABEL_WORDS[label]))
    return Lesson(np.asarray(render(scene)), tuple(long), tuple(short))


class Lessons(Dataset[Lesson]):
    """The lessons of ``steps`` batches; those of the last third of the batches are late ones."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self.steps = steps
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __getitem__(self, index: int) -> Lesson:
        if not 0 <= index < len(self):  # what ends a plain `for` over a sequence
            raise IndexError(f"lesson {index} of {len(self)}")
        step = index // self.batch_size
        return lesson(index, late=3 * step >= 2 * self.steps)


class Collator:
    """Lessons to tensors: ``pixel_values`` (I, 3, h, w) and, for long and short texts, ids and labels (S, L)."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        """Stack a batch; the texts of image i are rows i * S / I up to (i + 1) * S / I."""
        images = [Image.fromarray(x.pixels) for x in lessons]
        batch = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        for name, pairs in (
            ("long", [p for x in lessons for p in x.long]),
            ("short", [p for x in lessons for p in x.short]),
        ):
            batch[f"{name}_ids"], batch[f"{name}_labels"] = self._texts(pairs)
        return batch

    def _texts(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        tokenizer = self.processor.tokenizer
        prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False).input_ids
        targets = tokenizer([t for _, t in pairs], add_special_tokens=False).input_ids
        rows = [
            ([tokenizer.bos_token_id, *p, *t, tokenizer.sep_token_id], 1 + len(p))
            for p, t in zip(prompts, targets, strict=True)
        ]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for i, (row, prompt) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, prompt : len(row)] = torch.tensor(row[prompt:])
        return ids, labels


def lesson_tokens(processor: Any, lessons: int = 1000) -> tuple[Tensor, Tensor]:
    """Which tokens the lessons contain at all, and which of them they ask the model to say: boolean masks (V,).

    Found by reading the first ``lessons`` of them: the rarest such word occurs in more than one lesson of a hundred.
    """
    tokenizer = processor.tokenizer
    pairs: set[Pair] = set()
    for index in range(lessons):
        known = lesson(index, late=index % 2 == 0)
        pairs.update((*known.long, *known.short))

    def mask(texts: set[str], *special: int) -> Tensor:
        found = torch.zeros(len(tokenizer), dtype=torch.bool)
        found[[*special, *tokenizer(" ".join(sorted(texts)), add_special_tokens=False).input_ids]] = True
        return found

    said = mask({target for _, target in pairs}, tokenizer.sep_token_id)
    return said | mask({prompt for prompt, _ in pairs}, *tokenizer.all_special_ids), said


def level_untaught(model: BlipForConditionalGeneration, seen: Tensor, said: Tensor) -> None:
    """Give the embeddings of words that no lesson contains the mean length of those the model has learnt to say.

    They are random directions, and output rows too: left at their small initial length they would be harder to say
    than any other word, however well an adaptation has learnt when to say them.
    """
    table = model.text_decoder.get_input_embeddings().weight
    with torch.no_grad():
        table[~seen] *= table[said].norm(dim=-1).mean() / table[~seen].norm(dim=-1, keepdim=True)


class Student(nn.Module):
    """The model with the pre-training loss: mean over caption tokens plus mean over answer tokens.

    The softmax runs over the tokens that are ever ``said`` (V,) alone. Over the whole vocabulary it would push the
    output rows of all words that never occur in one and the same direction, where a later adaptation cannot tell them
    apart (they are the input embeddings too).
    """

    def __init__(self, model: BlipForConditionalGeneration, said: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("unsaid", ~said, persistent=False)

    def forward(
        self,
        pixel_values: Tensor,
        long_ids: Tensor,
        long_labels: Tensor,
        short_ids: Tensor,
        short_labels: Tensor,
    ) -> dict[str, Tensor]:
        """Encode each image once, then score both groups of texts."""
        states = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        caption = self._text_loss(states, long_ids, long_labels)
        answer = self._text_loss(states, short_ids, short_labels)
        return {"loss": caption + answer, "caption_loss": caption.detach(), "answer_loss": answer.detach()}

    def _text_loss(self, states: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        states = states.repeat_interleave(ids.shape[0] // states.shape[0], dim=0)
        # Right padding under a causal mask reaches no real token, so no attention mask is needed.
        hidden = self.model.text_decoder.bert(
            ids, encoder_hidden_states=states, is_decoder=True, use_cache=False
        ).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        kept = targets != -100  # project only what is scored to the vocabulary
        scores = self.model.text_decoder.cls(hidden[kept]).masked_fill(self.unsaid, -torch.inf)
        return cross_entropy(scores, targets[kept])


class PretrainingTrainer(Trainer):
    """In order, each lesson once; a checkpoint is the transformers model itself."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.model.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = BlipForConditionalGeneration.from_pretrained(resume_from_checkpoint)
        self.model.model.load_state_dict(saved.state_dict())


def pretrain(output: Path, steps: int, batch_size: int, learning_rate: float, save_steps: int = 500) -> Path:
    """Pre-train, continuing from the last checkpoint in ``output`` if there is one.

    Args:
        output: checkpoints and ``trainer_state.json`` (the log) go here; the result to ``output / "shapes-blip"``.
        steps: optimizer steps.
        batch_size: pictures per step.
        save_steps: steps between checkpoints; the last two are kept.
        learning_rate: the peak, reached after 4 % of the steps and followed by a cosine to zero.

    Returns:
        the directory of the finished model, in transformers format, half precision.
    """
    model, processor = build_model(), build_processor()
    seen, said = lesson_tokens(processor)
    trainer = PretrainingTrainer(
        model=Student(model, said),
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(0.04 * steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            logging_steps=50,
            save_steps=save_steps,
            save_total_limit=2,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
            seed=0,
            disable_tqdm=True,
        ),
        train_dataset=Lessons(steps, batch_size),
        data_collator=Collator(processor),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    trainer.save_state()
    level_untaught(model, seen, said)
    final = output / "shapes-blip"
    model.half().save_pretrained(final)
    model.config.dtype = torch.float32  # half precision is for the file: transformers loads it as float32
    model.config.save_pretrained(final)
    processor.save_pretrained(final)
    return final


def main() -> None:
    """Parse the command line and pre-train."""
    parser = argparse.ArgumentParser(description="Pre-train shapes-blip on the source domain.")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    print(pretrain(args.output, args.steps, args.batch_size, args.learning_rate))
