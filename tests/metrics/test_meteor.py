"""METEOR. Starting the real one takes some twelve seconds, so few tests do, and they share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from padapter.errors import UserError
from padapter.metrics import Meteor, score_captions

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def meteor():
    with Meteor() as running:
        yield running


def test_recorded_scores(meteor):
    for name, count in (("edge", 9), ("one_image", 1), ("system", 45), ("human", 60)):
        recorded = json.loads((GOLDEN / f"captions_{name}.json").read_text(encoding="utf-8"))
        assert len(recorded["images"]) == count
        scores = score_captions(
            {key: prediction for key, _, prediction, *_ in recorded["images"]},
            {key: references for key, references, *_ in recorded["images"]},
            meteor=meteor,
        )
        assert list(scores.corpus)[4] == "meteor"
        assert scores.corpus["meteor"] == pytest.approx(recorded["corpus"]["METEOR"], abs=1e-9)
        for key, *_, expected in recorded["images"]:
            assert scores.per_image[key]["meteor"] == pytest.approx(expected["METEOR"], abs=1e-9)


def test_any_text_is_one_caption(meteor):
    from pycocoevalcap.meteor import meteor as module

    folder = Path(module.__file__).parent
    before = sorted(folder.rglob("*"))
    # The separator of the protocol, empty captions, other scripts, a lone surrogate, and a set that is one long line.
    said = ["a dog ||| runs", "", "a dog", "", "\u732b \U0001f600", "\ud800", *["a dog runs"] * 1000]
    references = [["a dog runs"], ["a dog"], [""], [""], ["\u732b \U0001f600"], ["a"], *[["a |||dog runs", "x"]] * 1000]
    score, scores = meteor.score(said, references)
    assert scores == [1, 0, 0, 0, 1, 0, *[1] * 1000]
    assert 0 < score < 1
    backwards, reversed_scores = meteor.score(said[::-1], references[::-1])
    assert (backwards, reversed_scores) == (pytest.approx(score, abs=1e-12), scores[::-1])
    assert sorted(folder.rglob("*")) == before


def program(path: Path, script: str) -> Path:
    """A stand-in for Java."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo java.lang.OutOfMemoryError: Java heap space >&2; exit 1", r"out of memory: it may use 1G.*--no-meteor"),
        ("echo Error occurred during initialization of VM; exit 1", "out of memory"),
        ("kill -9 $$", "was killed; if that was for want of memory"),
        ("echo no such option >&2; exit 3", r"ended \(exit code 3\). Java said: no such option"),
        ("echo Unknown; exec cat", "Java said: Unknown"),
        ("exec cat", r"no score, and was ended. Java said: SCORE \|\|\| a \|\|\| a"),
        ("exec sleep 1000", "no answer for 1 seconds and was ended"),
    ],
)
def test_a_process_that_fails_is_ended_and_quoted(tmp_path, script, words):
    running = Meteor(java=program(tmp_path / "java", script), patience=1 if "sleep" in script else 600)
    with pytest.raises(UserError, match=words):
        running.score(["a"], [["a"]])
    assert running._process.returncode is not None
    with pytest.raises(RuntimeError, match="has ended"):
        running.score(["a"], [["a"]])
    running.close()


def test_it_scores_whole_sets_only(tmp_path):
    with Meteor(java=program(tmp_path / "java", "exec cat")) as running:
        with pytest.raises(ValueError, match="at least one caption"):
            running.score([], [])
        with pytest.raises(ValueError, match="a reference for each"):
            running.score(["a"], [[]])


def test_a_line_that_nobody_reads_blocks_nothing(tmp_path):
    running = Meteor(java=program(tmp_path / "java", "exec sleep 1000"), patience=1)
    with pytest.raises(UserError, match="no answer"):
        running.score(["a" * 1_000_000], [["a"]])  # more than a pipe holds


def test_a_java_that_does_not_start_is_named(tmp_path):
    with pytest.raises(UserError, match="could not be started"):
        Meteor(java=tmp_path / "java")


@pytest.mark.parametrize("then", ["meteor.score(['a'], [['a']])", "pass", "raise SystemExit(1)"])
def test_no_process_outlives_the_interpreter(tmp_path, then):
    script = 'echo $$ > "$(dirname "$0")/pid"; echo; exec sleep 1000'
    java = program(tmp_path / "java", script)
    code = f"""
import sys, time
from pathlib import Path
from padapter.metrics import Meteor
meteor = Meteor(java=sys.argv[1])
while not Path(sys.argv[1]).with_name("pid").exists():
    time.sleep(0.01)
{then}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(java)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == (0 if then == "pass" else 1), done.stderr
    assert ("METEOR" in done.stderr) == ("score" in then)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError("the process is still there")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
