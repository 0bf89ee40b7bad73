"""`import padapter` is free, and still nobody meets a PEFT without our methods."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_padapter_imports_nothing_heavy():
    heavy = "('torch', 'transformers', 'peft', 'datasets')"
    assert run(f"import padapter, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import padapter; import peft",
        "import peft; import padapter",
        "import peft; import padapter; import importlib; importlib.reload(padapter)",
        pytest.param("from padapter import PAdapterConfig", marks=pytest.mark.slow),
        pytest.param(
            "import padapter, importlib.util; importlib.util.find_spec('peft'); import peft", marks=pytest.mark.slow
        ),
        "import padapter, transformers; transformers.utils.is_peft_available(); from peft import PeftModel",
        pytest.param("import padapter.tuners; import peft", marks=pytest.mark.slow),
        pytest.param("import padapter; from peft.tuners.lora import LoraConfig", marks=pytest.mark.slow),
    ],
)
def test_the_methods_are_registered_in_every_order(first):
    ours = "sorted(k.value for k in m if m[k].__module__.startswith('padapter'))"
    code = f"{first}\nfrom peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m\nprint({ours})"
    assert run(code) == "['BOTTLENECK', 'P_ADAPTER']"


def test_peft_is_itself_after_our_hook():
    code = (
        "import padapter, sys; import peft; import peft.utils;"
        "print(type(peft.__spec__.loader).__name__, type(peft.__loader__).__name__, bool(peft.__path__),"
        "[f for f in sys.meta_path if getattr(f, 'package', None) == 'peft'])"
    )
    assert run(code) == "SourceFileLoader SourceFileLoader True []"


def test_unknown_attributes_are_attribute_errors():
    import padapter

    with pytest.raises(AttributeError, match="no attribute 'PAdapter'"):
        _ = padapter.PAdapter
    assert set(padapter.__all__) <= set(dir(padapter))
