from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["padapter.data", "padapter.tasks", "padapter.metrics"])
def test_importing_it_loads_no_heavy_package(module):
    """The command line lists tasks and checks options before anything heavy is needed."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'peft', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
