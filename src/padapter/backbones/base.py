"""What every model family must be able to do, whatever method adapts it."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import nn

from padapter.architectures import UNIONS
from padapter.backbones.features import FeatureCache
from padapter.data import ImageSource, Picture, open_image
from padapter.errors import UserError

LossReduction = Literal["sequence", "token"]
Part = Literal["text", "image"]
#: How plain attention is computed: in one fused call wherever the model's family can, or step by step.
ATTENTIONS = ("sdpa", "eager")


class TargetError(UserError):
    """A target of which the model's tokenizer leaves nothing.

    Attributes:
        text: The target.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"target {text!r} has no token; drop it or give the answer a text.")
        self.text = text


@dataclass
class TrainingExample:
    """One image, one prompt, and the texts that may follow it.

    Attributes:
        image: what :meth:`Backbone.picture` made of it; an RGB image will do.
        prompt: Text that is given; it carries no loss.
        targets: (text, weight) pairs; each becomes one training sequence. Weights are positive.
    """

    image: Image.Image | Picture
    prompt: str
    targets: tuple[tuple[str, float], ...]


class Backbone(ABC):
    """A vision-language model together with the way it reads and writes.

    Attributes:
        model: The model; a PEFT wrapper around it once a method has been applied.
        processor: The image processor and tokenizer of the model.
        name: The model id or folder the user gave; adapters record it as their base model.
        max_length: Longest text sequence in tokens: start token, prompt, target, end token.
        cut_prompts: How many prompts lost their left end so far because they exceeded ``max_length``.
        features: What keeps the image encoder's output, see :meth:`cache_features`.
        cut_targets: How many targets lost their right end so far; such a sequence carries no end token.
    """

    #: Sub-module that holds each part of the model, as a dotted path.
    parts: Mapping[Part, str]
    #: Names of the attention projections of each part that LoRA adapts by default.
    projections: Mapping[Part, tuple[str, ...]]
    #: Whether the model has another arrangement, with fewer parameters, for tasks that ask nothing (captions).
    captions_apart: ClassVar[bool] = False
    #: What these models' captions follow where nobody says otherwise; None: the task's own words.
    lead_in: str | None = None

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.max_length = max_length
        self.features: FeatureCache | None = None
        self.cut_prompts = 0
        self.cut_targets = 0

    def picture(self, source: ImageSource) -> Image.Image | Picture:
        """A row's picture in the form in which this backbone takes pictures with the least work.

        Args:
            source: as for :func:`padapter.data.open_image`.

        Raises:
            ImageError: for a picture that cannot be used.
        """
        return open_image(source)

    def fit(self, image: Image.Image) -> Image.Image:
        """A picture in the size that the model sees, as it is made when answers are asked for.

        Args:
            image: RGB.

        Returns:
            RGB; the picture itself where the model's processor decides on a size by itself.
        """
        return image

    def preprocess(self, *, image_size: int | None = None, resize: str | None = None) -> None:
        """Look at pictures in another way from now on; call it before the model is adapted.

        Args:
            image_size: width and height in pixels that the model is to see.
            resize: how pictures of another shape are made to fit, a key of :data:`padapter.data.fit.RESIZES`.

        Raises:
            UserError: if models of this family cannot.
        """
        for flag, value in (("--image-size", image_size), ("--resize", resize)):
            if value is not None:
                raise UserError(f"{flag}: not for models like {self.name!r} yet; its own processor resizes pictures")

    def preprocessing(self) -> dict[str, Any]:
        """Everything that decides what becomes of a picture's pixels, as plain values of JSON."""
        own = self.processor.image_processor
        return {"processor": json.loads(json.dumps(own.to_dict(), sort_keys=True, default=str))}

    def preprocess_as(self, record: Mapping[str, Any]) -> None:
        """Look at pictures as :meth:`preprocessing` has written down; call it before the model is adapted.

        Args:
            record: of this or of an earlier process.

        Raises:
            UserError: if the model cannot be made to.
        """
        own = self.processor.image_processor
        if record != self.preprocessing():
            self.processor.image_processor = type(own).from_dict(dict(record["processor"]))
        now = self.preprocessing()
        pairs = {key: (value, now.get(key)) for key, value in record.items() if key != "processor"}
        # What another version of transformers adds was not there to be chosen, and its classes go by other names.
        names = [name for name in record["processor"] if not name.endswith(("_type", "_class"))]
        pairs |= {name: (record["processor"][name], now["processor"].get(name)) for name in names}
        changed = [f"{name} was {old!r} and would be {new!r}" for name, (old, new) in pairs.items() if old != new]
        if changed:
            raise UserError(
                f"model {self.name!r} cannot prepare pictures as they were in training: {'; '.join(sorted(changed))}. "
                "Use the versions of transformers and of the model that the run was made with."
            )

    def cache_features(self, folder: Path, *, precision: str, training: bool) -> None:
        """Keep the image encoder's output on disk from now on, and read it from there.

        Call it when the model is adapted and on its device; what follows must not change the encoder.

        Args:
            folder: of the cache.
            precision: that the encoder runs in.
            training: whether parameters that ask for gradients will be trained.

        Raises:
            UserError: if models of this family cannot, or the encoder is trained or has adapters.
        """
        raise UserError(f"--cache-features: not for models like {self.name!r} yet; leave the option out")

    @classmethod
    @abstractmethod
    def build(cls, config: Any, *, asks: bool = True) -> nn.Module:
        """A model of this family with random weights, on torch's current device.

        Args:
            config: of transformers; the model keeps it.
            asks: see :func:`padapter.backbones.load_backbone`.
        """

    @classmethod
    def anatomy(cls, model: nn.Module) -> tuple[Mapping[Part, str], Mapping[Part, tuple[str, ...]]]:
        """``parts`` and ``projections`` of a model of this family, which has no PEFT wrapper."""
        return cls.parts, cls.projections

    @property
    def auto_class(self) -> str:
        """Name of the Auto class of transformers that loads this model."""
        return "AutoModelForImageTextToText"

    @classmethod
    @abstractmethod
    def load(
        cls, path: str | Path, *, name: str, dtype: torch.dtype, attention: str = "sdpa", asks: bool | None = None
    ) -> Backbone:
        """Load model and processor from a folder or hub id.

        Args:
            path: Folder or hub id to read.
            name: What the user called the model.
            dtype: Type of the weights in memory.
            attention: "sdpa" or "eager", see :func:`padapter.backbones.load_backbone`.
            asks: see there.

        Returns:
            The backbone.

        Raises:
            UserError: If the files do not hold a model of this family.
        """

    @abstractmethod
    def collate(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """Turn examples into one batch: I images and S sequences, one per (example, target).

        Args:
            examples: The examples; at least one.

        Returns:
            What stands for the I images, pixel_values (I, 3, h, w) unless features are cached; image_index (S,), the
            image each sequence belongs to; input_ids (S, L), right padded; attention_mask (S, L); labels (S, L), -100
            on prompt and padding; weights (S,).

        Raises:
            ValueError: If an example has no target or a weight that is not positive.
            TargetError: If a target is empty for the tokenizer, as texts of invisible or unknown signs are.
        """

    def prompt_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """What became of the prompt of the first sequence of a batch of :meth:`collate`, wherever it is read."""
        given = batch["attention_mask"][0].bool() & (batch["labels"][0] < 0)
        return list(batch["input_ids"][0][given].tolist())

    def question_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """What an encoder of its own reads of the first question of a batch of :meth:`collate`; mostly nothing."""
        return []

    def token_masks(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Which tokens of a batch of :meth:`collate` are no padding.

        Args:
            batch: on any device.

        Returns:
            By part of the model, those of ``UNIONS["language"]`` (`padapter.architectures`): (S, L), 1 for each token
            that the part reads and 0 for padding; tokens of the picture count where they stand in the text.
        """
        return dict.fromkeys(UNIONS["language"], batch["attention_mask"])

    @abstractmethod
    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """Return a module that maps a batch of ``collate`` to ``{"loss": (), "logits": (K, V)}``.

        Logits are those that predict the K tokens with a label, sequence by sequence.

        Args:
            loss_reduction: ``sequence``: weighted sum of sequence losses divided by the number of images;
                ``token``: weighted mean over the tokens that carry a label.

        Returns:
            A module that shares ``self.model``.
        """

    @abstractmethod
    def generate(
        self,
        images: Sequence[Image.Image | Picture],
        prompts: Sequence[str],
        *,
        num_beams: int = 1,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        length_penalty: float | None = None,
    ) -> list[str]:
        """Write a continuation for each (image, prompt); the result does not depend on how rows are batched.

        Args:
            images: One image per prompt; the same object may appear more than once and is encoded once.
            prompts: One prompt per image.
            num_beams: Width of the beam search; 1 is greedy.
            max_new_tokens: Longest continuation.
            min_new_tokens: Shortest continuation before the end token is allowed.
            length_penalty: Exponent of the length by which beam scores are divided; how they depend on it, and what
                None stands for, is the family's: transformers' with 1, or that of mPLUG's published code with 0.6.

        Returns:
            The new text only, without special tokens.

        Raises:
            UserError: If the continuation leaves no room for a prompt.
        """

    @abstractmethod
    def rank(
        self,
        images: Sequence[Image.Image | Picture],
        prompts: Sequence[str],
        candidates: Sequence[str],
        *,
        k: int | None = None,
        length_normalized: bool = False,
    ) -> list[list[float]]:
        """Score every candidate as the continuation of each (image, prompt).

        The score is the summed log-probability of the candidate's tokens and the end token, given image and
        prompt; larger is better.

        Args:
            images: One image per prompt.
            prompts: One prompt per image.
            candidates: Texts to score; the same for all rows.
            k: Score only the k candidates whose first token is likeliest (ties: earlier in the list first); the
                others get ``-inf``. ``None`` scores all.
            length_normalized: Divide by the number of tokens, end token included.

        Returns:
            One list per row with one score per candidate.

        Raises:
            UserError: If there is no candidate, one is empty, or they leave no room for a prompt.
        """

    @property
    def base_model(self) -> Any:
        """The model without a PEFT wrapper; adapters injected into it stay."""
        return unwrapped(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device


def unwrapped(model: Any) -> Any:
    """A model without its PEFT wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode and without gradients; every sub-module gets its own previous mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
