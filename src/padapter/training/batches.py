"""Rows become batches: pictures are opened in the collator, so that workers share the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from padapter.errors import UserError
from padapter.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone

# Stands in a batch instead of the tensors when a data worker met a person's mistake.
FAILURE = "failure"


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """A ``datasets.Dataset`` as plain rows; the trainer must not drop columns that the model does not name."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[int(index)]


class Collator:
    """Opens the pictures of a list of rows and lets the backbone make tensors of them.

    Args:
        backbone: knows how the model reads text and pixels.
        task: gives prompt and weighted targets of a row.
    """

    def __init__(self, backbone: Backbone, task: Task) -> None:
        self.backbone = backbone
        self.task = task

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Returns:
            ``pixel_values`` (I, 3, h, w), ``image_index`` (S,), ``input_ids``, ``attention_mask`` and ``labels``
            (S, L), ``weights`` (S,): I pictures, S sequences (one per distinct target), L tokens. In a data worker,
            a mistake in the data is returned as a batch that :func:`raise_failures` raises in the parent process: an
            exception would arrive there with the worker's traceback as its message.

        Raises:
            UserError: for a picture that cannot be used; in the parent process only.
        """
        if torch.utils.data.get_worker_info() is None:
            return self._collate(rows)
        try:
            return self._collate(rows)
        except UserError as problem:
            return {FAILURE: str(problem)}

    def _collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        from padapter.backbones import TrainingExample

        examples = [
            TrainingExample(
                image=self.backbone.picture(row["image"]),
                prompt=self.task.prompt(row),
                targets=tuple(self.task.targets(row)),
            )
            for row in rows
        ]
        return self.backbone.collate(examples)


def raise_failures(batches: Iterable[dict[str, Any]]) -> None:
    """Raise what a data worker could only return.

    Raises:
        UserError: with the worker's own message.
    """
    for batch in batches:
        if FAILURE in batch:
            raise UserError(batch[FAILURE])


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation that depends on nothing but (seed, epoch), so that a resumed run sees the same order.

    Samplers that draw from the global generator give another order after a restart; here the trainer says which
    epoch begins (:meth:`start_epoch`).
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Use the permutation of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        yield from torch.randperm(self.length, generator=generator).tolist()
