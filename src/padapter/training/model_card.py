"""The model card of a run: what it is, how to load it, how well it does and where the numbers come from."""

from __future__ import annotations

from typing import Any

from padapter.evaluation.beforehand import FULL
from padapter.methods import Method
from padapter.methods.peft_method import PeftMethod
from padapter.models import BUILTIN_MODELS
from padapter.tasks import get_task

_LOAD_PEFT = """\
```python
import padapter  # first: makes PEFT know the adapter type
from peft import PeftModel
from transformers import {auto_class}

model = {auto_class}.from_pretrained({model})
model = PeftModel.from_pretrained(model, "adapter")
```
"""
_LOAD_FULL = """\
```python
{first}from transformers import {auto_class}

model = {auto_class}.from_pretrained("model")
```
"""
_LOAD_OWN = """\
```python
import padapter
from padapter.backbones import load_backbone
from padapter.methods import get_method

backbone = load_backbone({model}{more})
get_method({method}).load(backbone, "adapter")
```
"""


def model_card(metrics: dict[str, Any], method: Method[Any]) -> str:
    """Write the card.

    Args:
        metrics: the content of ``metrics.json`` of a finished run.
        method: the method that made it.

    Returns:
        Markdown, with the header that model hubs read.
    """
    data, training = metrics["data"], metrics["training"]
    sections = [
        _header(metrics, method),
        f"# {metrics['task']}: {metrics['model']} adapted by {method.name}\n",
        f"{method.summary} Made by `padapter train`; `config.yaml` holds every option.\n",
        "## Use\n",
        _loading(metrics, method),
        "Or on the command line, in the folder above this one:\n",
        "```bash\npadapter eval --run RUN --data DATA\npadapter predict --run RUN --image FILE --text TEXT\n```\n",
        "## Scores\n",
        _scores(metrics),
        "## Training\n",
        _list(
            {
                "training data": _data(data["train"]),
                "evaluation data": _data(data["eval"]) if data["eval"] else "none",
                "method options": ", ".join(f"{key}={value}" for key, value in metrics["method_options"].items()),
                "training pictures": (metrics.get("augmentation") or {}).get("operations", "as they are"),
                "pictures": _pictures(metrics.get("preprocessing") or {}),
                "steps": f"{training['steps']} ({training['epochs']:.2f} epochs)",
                "weights": _kept(training),
                "learning rate": training["learning_rate"],
                "seed": metrics["seed"],
                "trainable parameters": _share(training["parameters"]),
                "without a gradient": ", ".join(
                    f"{count:,} in the {part} part" for part, count in (training.get("without_gradient") or {}).items()
                ),
                "time": f"{training['seconds']:.0f} s, {training['seconds_per_step']:.3f} s per step",
                "peak memory": ", ".join(
                    f"{name.removesuffix('_bytes')} {size / 2**20:.0f} MiB" for name, size in metrics["memory"].items()
                ),
                "hardware": _hardware(metrics["provenance"]["hardware"]),
                "versions": ", ".join(f"{name} {v}" for name, v in metrics["provenance"]["versions"].items()),
            }
        ),
    ]
    return "\n".join(sections)


def _header(metrics: dict[str, Any], method: Method[Any]) -> str:
    library = "transformers" if method.name == FULL else "peft"
    return (
        f"---\nbase_model: {_quoted(metrics['model'])}\nlibrary_name: {library}\ntags: [padapter, {method.name}]\n---\n"
    )


def _loading(metrics: dict[str, Any], method: Method[Any]) -> str:
    if method.name == FULL:
        first = "import padapter  # first: makes transformers know the model's type\n" if _is_ours(metrics) else ""
        return _LOAD_FULL.format(first=first, auto_class=metrics["auto_class"])
    own = not isinstance(method, PeftMethod) or type(method).wrap is not PeftMethod.wrap
    template = _LOAD_OWN if own else _LOAD_PEFT
    model = _quoted(metrics["model"])
    if not own and metrics["model"] in BUILTIN_MODELS:
        model = f"str(builtin_path({model}))"
        template = template.replace(
            "from peft import PeftModel\n", "from padapter.models import builtin_path\nfrom peft import PeftModel\n"
        )
    more = "" if get_task(metrics["task"]).asks else ", asks=False"
    return template.format(model=model, more=more, method=_quoted(method.name), auto_class=metrics["auto_class"])


def _is_ours(metrics: dict[str, Any]) -> bool:
    """Whether the model's class is in this package and not in transformers."""
    return str(metrics["model_class"]).startswith("padapter.")


def _scores(metrics: dict[str, Any]) -> str:
    scores = metrics.get("scores") or {}
    after, before = scores.get("after"), scores.get("before")
    if after is None:
        return "Not scored: the run had no evaluation data.\n"
    olds = before["metrics"] if before is not None else {}
    lines = ["| metric | rule | before | after |", "|---|---|---|---|"]
    for name, value in after["metrics"].items():
        old = f"{olds[name]:.4f}" if name in olds else "not scored"
        lines.append(f"| {name} | {after['rule']} | {old} | {value:.4f} |")
    return "\n".join(lines) + f"\n\n{after['rows']} rows, inference by '{metrics['asking']['inference']}'.\n"


def _list(entries: dict[str, Any]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in entries.items() if value != "")


def _data(data: dict[str, Any]) -> str:
    skipped = f", {data['skipped']} skipped" if data["skipped"] else ""
    return f"{data['name']}, split {data['split']}, {data['rows']} rows{skipped}, fingerprint {data['fingerprint']}"


def _kept(training: dict[str, Any]) -> str:
    kept = training.get("kept") or {}
    if kept.get("weights") != "best":
        return ""
    return (
        f"of step {kept['step']}, which had the best {kept['metric']} on the evaluation data during training "
        f"({kept['score']:.4f}): the scores above are of the rows that chose them"
    )


def _pictures(preprocessing: dict[str, Any]) -> str:
    size = preprocessing.get("processor", {}).get("size")
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        return "as `preprocessing.json` says"
    how = preprocessing.get("resize") or "in the model's own way"
    return f"{size['width']} x {size['height']} px, {how}; the rest is in `preprocessing.json`"


def _share(parameters: dict[str, int]) -> str:
    trainable, total = parameters["trainable"], parameters["total"]
    return f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"


def _hardware(hardware: dict[str, Any]) -> str:
    return ", ".join([hardware["processor"], f"{hardware['threads']} threads", *hardware["gpus"]])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
