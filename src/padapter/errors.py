"""The one exception that stands for a mistake its reader can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong path, name, row or option.

    The message says what was wrong, where, and what to do. The command line prints it without a traceback and
    exits with code 2; Python callers see an ordinary ``ValueError``.
    """
