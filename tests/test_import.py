"""`import padapter` is free, and still nobody meets a PEFT without our methods."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(code: str, *arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_padapter_imports_nothing_heavy():
    heavy = "('torch', 'transformers', 'peft', 'datasets')"
    assert run(f"import padapter, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


#: Runs pieces of code, each in a process that has imported what takes long, but neither PEFT nor us.
EACH = """
import json, os, sys
import accelerate, bitsandbytes, torch, transformers.modeling_layers, transformers.generation
assert not {"peft", "padapter"} & sys.modules.keys()
for code in json.loads(sys.argv[1]):
    sys.stdout.flush()
    process = os.fork()
    if not process:
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        sys.exit(f"ended badly: {code}")
"""


def each(codes: list[str]) -> list[str]:
    """What each piece prints, one line."""
    return run(EACH, json.dumps(codes)).splitlines()


@pytest.mark.parametrize(
    "orders",
    [
        [
            "import padapter; import peft",
            "import peft; import padapter",
            "import peft; import padapter; import importlib; importlib.reload(padapter)",
            "import padapter, transformers; transformers.utils.is_peft_available(); from peft import PeftModel",
        ],
        pytest.param(
            [
                "from padapter import PAdapterConfig",
                "import padapter, importlib.util; importlib.util.find_spec('peft'); import peft",
                "import padapter.tuners; import peft",
                "import padapter; from peft.tuners.lora import LoraConfig",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["common", "others"],
)
def test_the_methods_are_registered_in_every_order_and_peft_is_itself_after_our_hook(orders):
    code = """
import sys
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m
import peft, peft.utils
print(
    sorted(k.value for k in m if m[k].__module__.startswith('padapter')),
    type(peft.__spec__.loader).__name__, type(peft.__loader__).__name__, bool(peft.__path__),
    [f for f in sys.meta_path if getattr(f, 'package', None) == 'peft'],
)
"""
    expected = "['BOTTLENECK', 'P_ADAPTER'] SourceFileLoader SourceFileLoader True []"
    assert dict(zip(orders, each([first + code for first in orders]), strict=True)) == dict.fromkeys(orders, expected)


def test_unknown_attributes_are_attribute_errors():
    import padapter

    with pytest.raises(AttributeError, match="no attribute 'PAdapter'"):
        _ = padapter.PAdapter
    assert set(padapter.__all__) <= set(dir(padapter))
