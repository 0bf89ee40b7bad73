"""Shared by all methods that are PEFT adapters: wrap, save, load with every tensor accounted for."""

from __future__ import annotations

import json
import re
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from padapter.errors import UserError
from padapter.methods.base import Method, differences, read_weights

if TYPE_CHECKING:
    from padapter.backbones import Backbone

OptionsT = TypeVar("OptionsT")
REWRITING_STARTS = ("pissa", "olora")  # of LoRA: they move a part of the base weights into the adapter
#: What option ``where`` of our own tuners says; the values are those of `padapter.architectures.WHERE`.
WHERE_HELP = (
    "Which parts of the model to adapt, separated by commas: decoder, text_encoder, fusion, language (these three), "
    "vision, connector, all."
)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIRST = "default"  # PEFT's name for the adapter that a model is wrapped with


class PeftMethod(Method[OptionsT]):
    """A method whose result is a PEFT adapter.

    Attributes:
        peft_type: Value of ``peft_type`` in ``adapter_config.json``.
    """

    peft_type: ClassVar[str]

    @abstractmethod
    def config(self, backbone: Backbone, options: OptionsT) -> Any:
        """Translate options into a ``PeftConfig``.

        Args:
            backbone: The model to adapt.
            options: Options of this method.

        Returns:
            The config, with target modules for this model.
        """

    def wrap(self, model: Any, config: Any) -> Any:
        """Return a ``PeftModel`` of ``model``; a method with its own model class overrides this."""
        from peft import get_peft_model

        return get_peft_model(model, config)

    def unwrap(self, wrapped: Any) -> Any:
        """Undo :meth:`wrap`: return the model as it was."""
        return wrapped.unload()

    def prepare(self) -> None:
        """Make PEFT know this method, where it is not one of PEFT's own."""

    def apply(self, backbone: Backbone, options: OptionsT) -> None:
        """See :meth:`Method.apply`."""
        _refuse_adapted(backbone, self.name)
        self.prepare()
        self._wrap(backbone, self.config(backbone, options))

    def save(self, backbone: Backbone, directory: str | Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT does."""
        # Embeddings are never trained here; PEFT's "auto" would ask the hub for the base model's config.
        backbone.model.save_pretrained(str(directory), save_embedding_layers=False)  # type: ignore[operator]

    def load(self, backbone: Backbone, directory: str | Path, trainable: bool = False) -> None:
        """See :meth:`Method.load`."""
        _refuse_adapted(backbone, self.name)
        folder = Path(directory)
        config, found = self._read(backbone, folder, trainable)
        self._wrap(backbone, config)
        wrapped: Any = backbone.model
        problem = _fill(wrapped, found, FIRST)
        if problem:
            backbone.model = self.unwrap(wrapped)
            if getattr(config, "init_lora_weights", None) in REWRITING_STARTS:
                problem += " Load the model again: this adapter's initialisation has changed its weights."
            raise UserError(f"adapter '{folder}' does not fit model '{backbone.name}': {problem}")
        if not trainable:
            wrapped.requires_grad_(False)

    def add(self, backbone: Backbone, directory: str | Path, name: str) -> None:
        """Put a further adapter of this method beside the one that :meth:`load` put into a backbone.

        ``backbone.model.set_adapter(name)`` makes it the active one; the first is called `FIRST`.

        Args:
            backbone: A backbone that holds an adapter of this method.
            directory: Folder written by :meth:`save`.
            name: What PEFT shall call it.

        Raises:
            UserError: As :meth:`load`, and where PEFT refuses two such adapters in one model; the adapters that were
                there stay.
        """
        folder = Path(directory)
        config, found = self._read(backbone, folder, trainable=False)
        wrapped: Any = backbone.model
        try:
            wrapped.add_adapter(name, config)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"adapter '{folder}' cannot be loaded beside the others: {error}") from error
        problem = _fill(wrapped, found, name)
        if problem:
            wrapped.delete_adapter(name)
            raise UserError(f"adapter '{folder}' does not fit model '{backbone.name}': {problem}")
        wrapped.requires_grad_(False)

    def _read(self, backbone: Backbone, folder: Path, trainable: bool) -> tuple[Any, dict[str, Any]]:
        """Configuration and weights of an adapter's folder."""
        from peft import PeftConfig

        self.prepare()
        self._check_folder(folder)
        config = PeftConfig.from_pretrained(str(folder))
        _warn_other_base(config.base_model_name_or_path, backbone.name, folder)
        config.base_model_name_or_path = None  # set by _wrap; PEFT would warn that the name changes
        config.inference_mode = not trainable
        return config, read_weights(folder / WEIGHTS)

    def _wrap(self, backbone: Backbone, config: Any) -> None:
        """Wrap the model, with PEFT's complaints about targets as user errors."""
        from padapter.architectures.checkpointing import support_checkpointing

        base = backbone.base_model
        try:
            backbone.model = self.wrap(base, config)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"method '{self.name}' cannot be applied to model '{backbone.name}': {error}") from error
        support_checkpointing(base)
        # What the user called the model; PEFT would record where its files were found.
        wrapped: Any = backbone.model
        wrapped.active_peft_config.base_model_name_or_path = backbone.name

    def _check_folder(self, folder: Path) -> None:
        found = adapter_type(folder)
        if found != self.peft_type:
            raise UserError(f"adapter '{folder}' is of type {found}, but method '{self.name}' reads {self.peft_type}.")
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"adapter '{folder}' has no {WEIGHTS}.")


class OwnTuner(PeftMethod[OptionsT]):
    """A method whose tuner lives in this package and must be registered with PEFT first."""

    def prepare(self) -> None:
        """See :meth:`PeftMethod.prepare`."""
        from padapter.tuners import register

        register()


def adapter_type(folder: Path) -> str:
    """Read ``peft_type`` from a folder's ``adapter_config.json``.

    Args:
        folder: An adapter folder.

    Returns:
        The type, e.g. ``LORA``.

    Raises:
        UserError: If the folder is not a PEFT adapter.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = "holds a whole model" if (folder / "config.json").is_file() else "has none"
        raise UserError(f"'{folder}' is not an adapter: {CONFIG} is needed, and the folder {what}.")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is not a PEFT adapter config: {error!r}.") from error


def targets(text: str | None) -> list[str] | str | None:
    """Read target modules as a user writes them.

    Args:
        text: Names separated by commas, a regular expression (recognised by a character no module name has), or
            ``None``.

    Returns:
        What PEFT takes as ``target_modules``.

    Raises:
        UserError: If the regular expression is none.
    """
    if text is None:
        return None
    if re.search(r"[^\w.,\s-]", text):
        try:
            re.compile(text)
        except (re.error, OverflowError) as error:
            raise UserError(
                f"--set target_modules: {text!r} is not a valid regular expression ({error}); "
                "correct it, or give module names separated by commas"
            ) from error
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def places(where: str, target_modules: str | None) -> dict[str, Any]:
    """Read where the adapters of our own tuners go, as a user writes it.

    Args:
        where: Parts of the model separated by commas; the configuration checks their names.
        target_modules: See `targets`.

    Returns:
        The fields ``where`` and ``target_modules`` of the configuration.

    Raises:
        UserError: If both are given, as the former would have no effect, or if ``target_modules`` cannot be read.
    """
    parts = [part.strip() for part in where.split(",") if part.strip()]
    if target_modules is not None and parts != ["decoder"]:
        raise UserError(
            f"--set where: {where!r} has no effect beside target_modules={target_modules!r}; leave one out."
        )
    return {"where": parts[0] if len(parts) == 1 else parts, "target_modules": targets(target_modules)}


def target_pattern(backbone: Backbone, part: str, text: str | None) -> str:
    """Regular expression for the linear layers to adapt.

    Args:
        backbone: The model.
        part: ``text``, ``image`` or ``both``.
        text: As a user writes target modules (see :func:`targets`); ``None`` for the attention's query and value
            projections.

    Returns:
        A pattern for PEFT's ``target_modules``.

    Raises:
        UserError: If ``text`` is no valid regular expression.
    """
    chosen = targets(text)
    if chosen is None:
        wanted = (group for key, group in backbone.projections.items() if part in (key, "both"))
        chosen = [name for group in wanted for name in group]
    return chosen if isinstance(chosen, str) else part_pattern(backbone, part, chosen)


def part_pattern(backbone: Backbone, part: str, names: Sequence[str]) -> str:
    """Regular expression for modules called one of ``names`` inside a part of the model.

    Args:
        backbone: The model.
        part: ``text``, ``image`` or ``both``.
        names: Last parts of module names.

    Returns:
        A pattern for PEFT's ``target_modules``, which must match the full module name.
    """
    roots = [path for key, path in backbone.parts.items() if part in (key, "both")]
    inside, called = ("|".join(map(re.escape, group)) for group in (roots, names))
    return rf"({inside})\.(.*\.)?({called})"


def _fill(wrapped: Any, found: dict[str, Any], name: str) -> str:
    """Give an adapter its weights; returns what does not fit, and then changes nothing."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    room = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    problem = differences(room, found)
    if not problem:
        set_peft_model_state_dict(wrapped, found, adapter_name=name)
    return problem


def _refuse_adapted(backbone: Backbone, method: str) -> None:
    if backbone.model is not backbone.base_model:
        raise UserError(f"model '{backbone.name}' is adapted already; load it again before applying method '{method}'.")


def _warn_other_base(recorded: str | None, name: str, folder: Path) -> None:
    """Another name may be the same model in another folder, so this is no error; shapes are checked."""
    if recorded and recorded != name:
        warnings.warn(
            f"adapter '{folder}' was trained on model '{recorded}' and is loaded into '{name}'.", stacklevel=3
        )
