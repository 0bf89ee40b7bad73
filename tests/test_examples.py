"""The notebooks under examples/ run, from their first cell to their last, and are kept as they ran."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
KILOBYTE = 1000
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?!\w)")

#: Stands in the place of the parameters: as little as the code runs on. RUN comes from the test.
LEAST = {"DATA": "shapes:new-questions:test:4", "STEPS": 2, "TRAIN_ROWS": 4, "ROWS": 4, "POINTS": 12, "QUESTIONS": 2}

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path) -> list[dict]:
    """The code cells."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def tree_of(cell: dict) -> ast.Module:
    return ast.parse("".join(cell["source"]))  # which has no room for magics


def parameters(notebook: Path) -> dict[str, object]:
    """The values of the one cell that is tagged ``parameters``, as papermill knows it."""
    (cell,) = (cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", []))
    found = {}
    for statement in tree_of(cell).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (name,) = statement.targets
        found[name.id] = ast.literal_eval(statement.value)
    return found


def run_cell(cell: dict, namespace: dict) -> object:
    """Execute a cell; the value of its last line if that is an expression, as a notebook shows it."""
    tree = tree_of(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


def saved_pictures(cell: dict) -> list[str]:
    return [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of all notebooks: the first that is executed trains it, the others find it there."""
    return tmp_path_factory.mktemp("examples") / "run"


def test_both_of_the_slides_figures_are_here():
    assert [path.stem for path in NOTEBOOKS] == ["attention_on_patches", "feature_regions"]


@each_notebook
def test_a_notebook_runs(notebook, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    least = {name: str(trained) if name == "RUN" else LEAST[name] for name in parameters(notebook)}
    namespace: dict = {"__name__": "__main__"}
    for cell in cells(notebook):
        capsys.readouterr()
        shown = run_cell(cell, namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace.update(least)
        assert (shown is not None) == bool(saved_pictures(cell))
        assert shown is None or shown._repr_png_().startswith(b"\x89PNG")
        # What the saved cell printed, this one prints too, if with other numbers.
        assert bool(capsys.readouterr().out) == any(output["output_type"] == "stream" for output in cell["outputs"])
    assert (trained / "adapter").is_dir()


@each_notebook
def test_a_notebook_is_kept_as_it_ran(notebook):
    found = cells(notebook)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    assert {output["output_type"] for cell in found for output in cell["outputs"]} == {"stream", "execute_result"}
    assert sum(len(saved_pictures(cell)) for cell in found) >= 2
    assert notebook.stat().st_size < 100 * KILOBYTE


@each_notebook
def test_what_the_text_says_of_numbers_was_printed(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    text = " ".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")
    printed = " ".join("".join(output.get("text", [])) for cell in cells(notebook) for output in cell["outputs"])
    said = set(NUMBER.findall(text))
    assert len(said) >= 3
    assert said <= set(NUMBER.findall(printed))


@pytest.mark.skipif(shutil.which("ruff", path=str(Path(sys.executable).parent)) is None, reason="ruff is not installed")
def test_make_lint_reads_notebooks():
    ruff = str(Path(sys.executable).parent / "ruff")
    listed = subprocess.run([ruff, "check", "--show-files", EXAMPLES], capture_output=True, text=True, check=True)
    assert {Path(line).name for line in listed.stdout.splitlines()} == {path.name for path in NOTEBOOKS}
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *command, EXAMPLES], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
