"""Rows become batches: pictures are opened in the collator, so that workers share the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from padapter.data import open_image
from padapter.data.augment import Augmentation, Chance
from padapter.errors import UserError
from padapter.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone

# Which visit to a row this is: (epoch, place of the row in the data).
VISIT = "visit"
# Stands in a batch instead of the tensors when a data worker met a person's mistake.
FAILURE = "failure"
# Marks the batch of a process that has no row of its own: computed, so that all processes do the same, and not counted.
IDLE = "idle"


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """A ``datasets.Dataset`` as plain rows, each with the visit that it is fetched for.

    What is drawn at random for a row depends on the visit, which therefore travels with the row: a data worker knows
    no epoch, and what is passed to it otherwise depends on when it was started.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, visit: tuple[Any, ...]) -> dict[str, Any]:
        return {**self.dataset[visit[1]], VISIT: visit}


class Collator:
    """Opens the pictures of a list of rows and lets the backbone make tensors of them.

    Args:
        backbone: knows how the model reads text and pixels.
        task: gives prompt and weighted targets of a row.
        augmentation: changes pictures at random, if any.
        seed: of what is drawn at random.
        origin: what messages call the place that the rows are from, such as a file.
        returns_failures: return mistakes in the data (see below) also outside of data workers: several processes
            tell each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        *,
        origin: str | None = None,
        returns_failures: bool = False,
    ) -> None:
        self.backbone = backbone
        self.task = task
        self.augmentation = augmentation
        self.seed = seed
        self.origin = origin
        self.returns_failures = returns_failures

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Returns:
            ``pixel_values`` (I, 3, h, w), ``image_index`` (S,), ``input_ids``, ``attention_mask`` and ``labels``
            (S, L), ``weights`` (S,): I pictures, S sequences (one per distinct target), L tokens. In a data worker,
            a mistake in the data is returned as a batch that :func:`raise_failures` raises in the parent process: an
            exception would arrive there with the worker's traceback as its message.

        Raises:
            UserError: for a picture that cannot be used, or a target without a token, with its row; in the parent
                process only.
        """
        if torch.utils.data.get_worker_info() is None and not self.returns_failures:
            return self._collate(rows)
        try:
            return self._collate(rows)
        except UserError as problem:
            return {FAILURE: str(problem)}

    def _collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from padapter.backbones import TargetError, TrainingExample

        examples = [
            TrainingExample(
                image=self._picture(row),
                prompt=self.task.prompt(row),
                targets=tuple(self.task.targets(row)),
            )
            for row in rows
        ]
        try:
            batch: dict[str, Any] = self.backbone.collate(examples)
        except TargetError as problem:
            culprit = next(row for row in rows if problem.text in dict(self.task.targets(row)))
            place = [*([] if self.origin is None else [self.origin]), f"row {culprit['id']!r}"]
            raise UserError(f"{', '.join(place)}: {problem}") from problem
        if IDLE in rows[0].get(VISIT, ()):
            batch[IDLE] = True
        return batch

    def _picture(self, row: dict[str, Any]) -> Any:
        if self.augmentation is None:
            return self.backbone.picture(row["image"])
        epoch, place, *_ = row[VISIT]
        chance = Chance(self.seed, epoch, place, texts=self.task.texts(row))
        return self.augmentation(open_image(row["image"]), chance, self.backbone.fit)


def raise_failures(failures: Iterable[str]) -> None:
    """Raise what a data worker, or another process, could only return.

    Raises:
        UserError: with its own message.
    """
    for failure in failures:
        raise UserError(failure)


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Visits (epoch, row) in a permutation that depends on nothing but (seed, epoch): a resumed run sees the same.

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

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, generator = self.epoch, torch.Generator()
        generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        for row in torch.randperm(self.length, generator=generator).tolist():
            yield epoch, row


class SharedBatches(torch.utils.data.Sampler[list[tuple[Any, ...]]]):
    """This process's share of the batches that one process would make: every row once, in one of the processes.

    A batch at the end of an epoch may have fewer rows than there are processes. Those that go without get a row that
    another one has too, marked with ``IDLE``.

    Args:
        order: of the visits.
        size: of a batch, in all processes together.
        index: of this process.
        count: of processes.
    """

    def __init__(self, order: EpochSampler, size: int, index: int, count: int) -> None:
        self.order = order
        self.size = size
        self.index = index
        self.count = count

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        visits = list(self.order)
        for start in range(0, len(visits), self.size):
            batch = visits[start : start + self.size]
            share: list[tuple[Any, ...]] = [*batch[self.index :: self.count]]
            yield share or [(*batch[0], IDLE)]
