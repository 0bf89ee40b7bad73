"""The commands and where they lead."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, TextIO

import typer

from padapter.cli.compare import compare_command
from padapter.cli.convert import convert
from padapter.cli.data import import_command, preview_command
from padapter.cli.demo import demo_command
from padapter.cli.diagnose import diagnose_command
from padapter.cli.environment import env_command
from padapter.cli.explain import explain_command
from padapter.cli.flags import command, guarded
from padapter.cli.handlers import (
    check_command,
    eval_command,
    methods_command,
    predict_command,
    shard_command,
    submit_command,
)
from padapter.cli.handlers import train_command as train_handler
from padapter.demo import DemoOptions
from padapter.diagnose.options import DiagnoseOptions
from padapter.explain import ExplainOptions
from padapter.importers import IMPORTERS
from padapter.options import (
    CompareOptions,
    DataCheckOptions,
    DataShardOptions,
    EvalOptions,
    PredictOptions,
    SubmitOptions,
    TrainOptions,
)
from padapter.preview import PreviewOptions

app = typer.Typer(
    name="padapter",
    help="Adapt a vision-language model with a p-adapter (or another method), score it, and ask it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make data of what you have, check them, look at them, and pack them.", no_args_is_help=True)

app.command("train")(command(TrainOptions, train_handler))
app.command("eval")(command(EvalOptions, eval_command))
app.command("predict")(command(PredictOptions, predict_command))
app.command("explain")(command(ExplainOptions, explain_command))
app.command("demo")(command(DemoOptions, demo_command))
app.command("submit")(command(SubmitOptions, submit_command))
app.command("diagnose")(command(DiagnoseOptions, diagnose_command))
app.command("compare")(command(CompareOptions, compare_command))
app.command("methods")(guarded(methods_command))
app.command("env")(guarded(env_command))
data.command("check")(command(DataCheckOptions, check_command))
data.command("shard")(command(DataShardOptions, shard_command))
for importer in IMPORTERS.values():
    data.command(f"from-{importer.name}")(command(importer.options, import_command(importer)))
data.command("preview")(command(PreviewOptions, preview_command))
app.add_typer(data, name="data")
app.add_typer(convert, name="convert")


def _version(wanted: bool) -> None:
    if wanted:
        import padapter

        print(padapter.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    # Forked data workers and tokenizer threads do not mix; without this every worker prints a warning.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show_warning
    try:
        app()
    except SystemExit as stop:
        _leave(stop.code if isinstance(stop.code, int) else int(stop.code is not None), None)
        raise
    except BaseException as problem:
        _leave(1, problem)
        raise


def _leave(status: int, problem: BaseException | None) -> None:
    """End here if this is one of several processes; commands that can use several have imported the module."""
    processes = sys.modules.get("padapter.evaluation.processes")
    if processes is not None:
        processes.leave_processes(status, problem)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line without the place in the source, which says nothing to who runs a command."""
    if issubclass(category, (DeprecationWarning, FutureWarning)):
        return  # for the developers of libraries
    print(f"warning: {message}", file=file or sys.stderr)
