"""The folder of a run: what is in it, and who may write into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from padapter.evaluation.files import read_json
from padapter.evaluation.journal import remove_partials
from padapter.evaluation.pictures import NAME as PREPROCESSING
from padapter.evaluation.processes import ALONE, Processes
from padapter.evaluation.results import write_json, write_text
from padapter.options import TrainOptions, to_plain
from padapter.training.checkpoints import complete_checkpoints
from padapter.training.may_begin import check_run_folder, plain

OWN_FILES = (
    "config.yaml",
    PREPROCESSING,
    "metrics.json",
    "candidates.json",
    "log.jsonl",
    "predictions.jsonl",
    "predictions_base.jsonl",
    "README.md",
)
PARTIAL_WEIGHTS = ".weights.partial"
OWN_FOLDERS = ("adapter", "model", "checkpoints", PARTIAL_WEIGHTS)


class RunFolder:
    """Paths of a run, and the rules of beginning and resuming one.

    Args:
        path: the folder, which need not exist.
        processes: those that make the run together. The main one reads and writes, for all; calls without another
            word are made by all of them.
    """

    def __init__(self, path: str | Path, processes: Processes = ALONE) -> None:
        self.path = Path(path)
        self._processes = processes
        self._begun_here = False
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.candidates = self.path / "candidates.json"
        self.log = self.path / "log.jsonl"
        self.predictions = self.path / "predictions.jsonl"
        self.base_predictions = self.path / "predictions_base.jsonl"
        self.card = self.path / "README.md"
        self.checkpoints = self.path / "checkpoints"

    def check(self, options: TrainOptions) -> None:
        """Refuse to overwrite a run, or to resume one that was made differently.

        Args:
            options: resolved options of the run that wants to write.

        Raises:
            UserError: saying which folder or which fields, and what to do.
            OSError: when the folder cannot be made or written.
        """
        self._processes.on_main(lambda: check_run_folder(self.path, options))

    def begin(self, options: TrainOptions, preprocessing: Mapping[str, Any]) -> None:
        """Make the folder ready; a run that starts anew removes the files of the old one, and only those.

        Args:
            options: of the run.
            preprocessing: how it looks at pictures.
        """
        self._processes.on_main(lambda: self._begin(options, preprocessing))

    def _begin(self, options: TrainOptions, preprocessing: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            self._remove_own()
            self._begun_here = True
        if not self.config.exists():
            write_text(self.config, dump_yaml(to_plain(options)))
        if not (self.path / PREPROCESSING).exists():
            write_json(self.path / PREPROCESSING, dict(preprocessing))

    def discard_unless_trained(self) -> None:
        """Leave nothing behind when this process began the run and no step was logged.

        A mistake that shows only once the model is there (a misspelt target module) can then be mended and the same
        command given again. Does nothing in other processes than the main one, and waits for none.
        """
        if self._begun_here and not (self.log.exists() and self.log.stat().st_size):
            self._remove_own()
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def remove_left_over(self) -> None:
        """Delete answers on their way, when the scores that they gave are written; only in the main process."""
        if not self._processes.main:
            return
        for output in (self.predictions, self.base_predictions):
            remove_partials(output)

    def _remove_own(self) -> None:
        for name in OWN_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        self.remove_left_over()

    def last_checkpoint(self) -> Path | None:
        """The latest complete checkpoint."""
        return self._processes.on_main(lambda: next(reversed(complete_checkpoints(self.checkpoints)), None))

    def read_metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says so far."""
        return self._processes.on_main(self._read)

    def add_metrics(self, **entries: Any) -> dict[str, Any]:
        """Add entries to ``metrics.json`` and return all of it."""
        return self._processes.on_main(lambda: self._add(entries))

    def write_candidates(self, candidates: Sequence[str]) -> None:
        """Keep what the run ranks."""
        self._processes.on_main(lambda: write_json(self.candidates, {"candidates": list(candidates)}))

    def write_weights(self, final: Path, save: Callable[[Path], None]) -> None:
        """Write a folder of weights, whole or not at all; in the main process alone.

        Args:
            final: the folder, in that of the run.
            save: writes into the folder that it is given.
        """
        if not self._processes.main:
            return
        partial = self.path / PARTIAL_WEIGHTS
        shutil.rmtree(partial, ignore_errors=True)
        save(partial)
        # PEFT writes a card of empty headings; the run's own stands one folder above.
        (partial / "README.md").unlink(missing_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)

    def finish(self, entries: Mapping[str, Any], card: Callable[[dict[str, Any]], str]) -> None:
        """The last entries of ``metrics.json``, and the card; in the main process alone.

        Args:
            entries: with the status "finished", which is written last: a run that says so has everything.
            card: makes the card's text of all entries.
        """
        write_text(self.card, card({**self._read(), **entries}))
        self._add(entries)

    def scored_base(self, scores: Mapping[str, Any]) -> None:
        """Keep the scores of the unadapted model; in the main process alone."""
        self._add({"scores": {"before": dict(scores), "after": None}})

    def stopped(self, status: str | None) -> None:
        """Say why a run that has begun is not finished; does nothing in other processes than the main one."""
        if status is not None and self._processes.main and self.metrics.exists():
            self._add({"status": status})

    def _read(self) -> dict[str, Any]:
        if not self.metrics.exists():
            return {}
        return read_json(self.metrics, "delete it to resume without it, or start anew with --overwrite")

    def _add(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        metrics = {**self._read(), **entries}
        write_json(self.metrics, metrics)
        return metrics


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in the given order."""
    import yaml

    return str(yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True))
