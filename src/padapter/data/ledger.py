"""What earlier starts have found out about picture files, so that a start need not open files that it knows.

Looking at header and end of a picture and taking its stamp is little, but not for a hundred thousand pictures at each
start of a run. Asking the file system whether a file has changed is much less.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from pathlib import Path

from padapter.cache import cache_folder

#: Fewer new pictures than this are not worth a file.
WORTH_KEEPING = 1000
#: A file that was changed just now might change again without another time of change.
_SETTLED = 3_000_000_000
#: Windows gives the time of creation as st_ctime: a file with another content, the size of before and its time set back
#: could not be told from the one that was looked at. There every start looks at all pictures.
TELLS_CHANGES = os.name != "nt"

Identity = tuple[int, int, int, int]


class Ledger:
    """Stamps of the sound pictures of one folder, by their paths in it; a file that has changed is not known.

    A file is the same if its size, its inode and its times of last change are: that of the content, and that of the
    entry in the file system, which no copying tool sets back. Where that cannot be asked for (`TELLS_CHANGES`), no
    file is known.

    Args:
        root: The folder.
        kind: What a stamp and "sound" depend on besides the file, such as versions; another kind, another ledger.
    """

    def __init__(self, root: Path, kind: str) -> None:
        name = hashlib.sha256(f"{kind}\n{root.resolve()}".encode()).hexdigest()[:32]
        self._top = str(root)
        self.file = cache_folder() / "pictures" / f"{name}.json"
        self.new: dict[str, tuple[Identity, str]] = {}
        self._known: dict[str, object] | None = None

    def stamp(self, key: str) -> str | None:
        """The stamp of a picture that was sound, if its file has not changed since."""
        known = self._read()
        found = known.get(key)
        if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], str):
            return None
        identity = self.identity(key)
        return found[1] if identity is not None and found[0] == list(identity) else None

    def note(self, key: str, before: Identity | None, stamp: str) -> None:
        """Take down a sound picture.

        Args:
            key: Its path in the folder.
            before: Its :meth:`identity` before it was looked at; if it has changed meanwhile, nothing is taken down.
            stamp: Its stamp.
        """
        if before is not None and before == self.identity(key) and time.time_ns() - max(before[1:3]) > _SETTLED:
            self.new[key] = before, stamp

    def identity(self, key: str) -> Identity | None:
        """What changes whenever the file of a picture does; None if there is no such file, or nobody could tell."""
        return _identity(os.path.join(self._top, key))

    def keep(self) -> None:
        """Write down what is new, if that is much; what cannot be written is found out again next time.

        Pictures that are gone or have changed are dropped then, whoever took them down: a ledger names no more files
        than there are in the folder.
        """
        if len(self.new) < WORTH_KEEPING:
            return
        still = {key: found for key, found in self._read().items() if key not in self.new and self.stamp(key)}
        everything = {**still, **self.new}
        partial = self.file.with_name(f"{self.file.name}.{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(everything), encoding="utf-8")
            os.replace(partial, self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            why = error.strerror or error
            warnings.warn(f"{self.file.parent}: cannot be written ({why}): the next start is as slow", stacklevel=2)
        self.new.clear()

    def _read(self) -> dict[str, object]:
        if self._known is None:
            try:
                content = json.loads(self.file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):  # none yet, or damaged: written anew
                content = None
            self._known = content if isinstance(content, dict) else {}
        return self._known


def _identity(path: str) -> Identity | None:
    if not TELLS_CHANGES:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
