"""``padapter explain``."""

from __future__ import annotations

from pathlib import Path

from padapter.cli.handlers import prepare
from padapter.errors import UserError
from padapter.explain import ExplainOptions


def explain_command(options: ExplainOptions) -> None:
    """Show which patches of a picture an answer rests on, and where every head looks, without and with the adapter."""
    output = Path(options.output).expanduser()
    if output.exists() and not options.overwrite:
        raise UserError(f"--output: {output} exists; --overwrite replaces it")
    prepare()
    from padapter.evaluation.processes import refuse_several
    from padapter.explain.run import explain, write

    refuse_several("padapter explain")
    found = explain(options)
    write(found, output)
    for side in found.sides:
        says = "" if side.answer is None else f" says {side.answer!r};"
        of = "its tokens" if side.answer == found.text else repr(found.text)
        likely = ", ".join(
            f"{token} {value + 0.0:.2f}" for token, value in zip(side.tokens, side.log_probs.round(2), strict=True)
        )  # + 0.0: no "-0.00"
        print(f"{side.title}:{says} log-probability of {of}: {likely}")
    print(f"{output}: what {found.text!r} rests on")
