"""Two processes answer as one does: every row once, in order, to the last digit; a lost process is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch
from two_processes import LOOPBACK

from padapter.backbones import load_backbone
from padapter.data import load_data
from padapter.errors import UserError
from padapter.evaluation import evaluate, evaluate_source, predict_source, resolve_asking
from padapter.evaluation.processes import join_processes, local_device, refuse_several
from padapter.options import EvalOptions, InferenceOptions, PredictOptions
from padapter.tasks import get_task

VQA = get_task("vqa")
ASKING = resolve_asking(VQA, InferenceOptions(inference="rank", eval_batch_size=3))
WORDS = ["red", "blue", "two", "green"]


class Spy:
    """A backbone that remembers the prompts it was asked about, and ends the process at some batch."""

    def __init__(self, backbone, last=None):
        self.backbone, self.last, self.asked = backbone, last, []

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def rank(self, images, prompts, *arguments, **settings):
        if self.last is not None and len(self.asked) == self.last:
            os._exit(7)
        self.asked.append(len(prompts))
        return self.backbone.rank(images, prompts, *arguments, **settings)


@pytest.fixture
def rows(data):
    return load_data(data["vqa"], VQA, split="test")


@pytest.fixture
def backbone(model):
    return load_backbone(model)


def test_two_answer_as_one(two, backbone, rows, tmp_path):
    """Also without a file, as scores during training are made."""
    whole = evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, output=tmp_path / "one.jsonl", quiet=True)

    def work(index):
        spy = Spy(backbone)
        result = evaluate(spy, VQA, rows, ASKING, candidates=WORDS, output=tmp_path / "two.jsonl", quiet=True)
        unwritten = evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, quiet=True)
        assert result.predictions == unwritten.predictions == whole.predictions
        assert result.metrics == unwritten.metrics == whole.metrics
        assert result.per_item == unwritten.per_item == whole.per_item
        return spy.asked

    assert two(work) == [[3, 3], [3, 1]]  # 10 rows in batches of 3
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("count", [9, 2, 1])
def test_any_number_of_rows(two, backbone, data, tmp_path, count):
    """An odd number of batches, fewer of them than processes, and a single row: none is padded, none is dropped."""
    some = load_data(data["vqa"], VQA, split="test", limit=count)
    how = replace(ASKING, batch_size=1 if count == 9 else 2)
    common = {"candidates": WORDS, "quiet": True}
    whole = evaluate(backbone, VQA, some, how, output=tmp_path / "one.jsonl", **common)

    def work(index):
        spy = Spy(backbone)
        result = evaluate(spy, VQA, some, how, output=tmp_path / "two.jsonl", **common)
        assert result.predictions == whole.predictions
        assert result.metrics == whole.metrics
        return spy.asked

    assert two(work) == {9: [[1] * 5, [1] * 4], 2: [[2], []], 1: [[1], []]}[count]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    ids = [json.loads(line)["id"] for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert ids == some.dataset["id"][:]
    assert len(ids) == count


def test_a_lost_process_is_noticed_and_nothing_answered_is_lost(two, backbone, rows, tmp_path):
    evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, output=tmp_path / "one.jsonl", quiet=True)
    output = tmp_path / "two.jsonl"
    common = {"candidates": WORDS, "output": output, "quiet": True}

    def work(index):
        spy = Spy(backbone, last=1 if index == 1 else None)
        with pytest.raises(UserError, match="process 1 of 2: another process stopped"):
            evaluate(spy, VQA, rows, ASKING, **common)
        return spy.asked

    assert two(work) == [[3, 3], None]
    answered = {path.name: path.read_text().count("\n") - 1 for path in tmp_path.glob("*.partial*")}
    assert answered == {"two.jsonl.partial": 6, "two.jsonl.partial-1": 3}
    assert not output.exists()

    again = Spy(backbone)  # in one process
    evaluate(again, VQA, rows, ASKING, **common)
    assert again.asked == [1]
    assert output.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_two_go_on_from_one(two, backbone, rows, tmp_path):
    whole = evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, quiet=True)
    common = {"candidates": WORDS, "output": tmp_path / "two.jsonl", "quiet": True}

    class StopError(Exception):
        pass

    class Stopping(Spy):
        def rank(self, *arguments, **settings):
            if len(self.asked) == 1:
                raise StopError
            return super().rank(*arguments, **settings)

    with pytest.raises(StopError):
        evaluate(Stopping(backbone), VQA, rows, ASKING, **common)

    def work(index):
        spy = Spy(backbone)
        assert evaluate(spy, VQA, rows, ASKING, **common).predictions == whole.predictions
        return spy.asked

    assert two(work) == [[3, 1], [3]]


def test_a_process_that_was_lost_before_the_work(two, backbone, rows):
    def work(index):
        if index:
            os._exit(7)
        with pytest.raises(UserError, match="another process stopped before the work began"):
            evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, quiet=True)
        return True

    assert two(work) == [True, None]


def test_processes_that_disagree(two, backbone, rows, data):
    def work(index):
        mine = load_data(data["vqa"], VQA, split="test", limit=9) if index else rows
        with pytest.raises(UserError, match="process 2 of 2 differs from the first one in: data, prompts;"):
            evaluate(backbone, VQA, mine, ASKING, candidates=WORDS, quiet=True)
        return True

    assert two(work) == [True, True]


def test_a_mistake_in_scoring_reaches_all(two, backbone, rows, tmp_path, monkeypatch):
    def refuse(self, predictions, rows):
        raise UserError(f"no Java in process {os.environ['RANK']}")

    monkeypatch.setattr(type(VQA), "score", refuse)

    def work(index):
        with pytest.raises(UserError, match="no Java in process 0"):
            evaluate(backbone, VQA, rows, ASKING, candidates=WORDS, output=tmp_path / "two.jsonl", quiet=True)
        return True

    assert two(work) == [True, True]
    assert len(list(tmp_path.glob("two.jsonl.partial*"))) == 2  # the answers are kept


def test_only_the_first_process_writes_and_prints(two, model, data, tmp_path, monkeypatch):
    common = {"model": model, "task": "vqa", "data": data["vqa"], "num_beams": 1, "max_new_tokens": 3}
    common |= {"eval_batch_size": 4, "quiet": True, "device": "cpu"}
    shown = StringIO()
    predict_source(PredictOptions(**common), shown)
    evaluate_source(EvalOptions(**common, output=str(tmp_path / "one")))

    def work(index):
        from padapter.cli.handlers import eval_command, predict_command

        if index:
            for name in ("write_json", "write_jsonl"):
                monkeypatch.setattr(sys.modules["padapter.evaluation.evaluating"], name, None)
        with redirect_stdout(StringIO()) as printed:
            predict_command(PredictOptions(**common))
            predict_command(PredictOptions(**common, output=str(tmp_path / "two.jsonl")))
            lines = printed.getvalue()
            eval_command(EvalOptions(**common, output=str(tmp_path / "two")))
        return lines, printed.getvalue()[len(lines) :]

    (lines, table), other = two(work)
    answers = (tmp_path / "two.jsonl").read_text()
    assert answers == shown.getvalue()
    assert lines == answers + f"{tmp_path / 'two.jsonl'}: 10 answers, one per line\n"
    assert "accuracy" in table
    assert other == ["", ""]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["metrics.json", "predictions.jsonl"]
    one, both = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["scores"]["metrics"] == both["scores"]["metrics"]
    assert (tmp_path / "one" / "predictions.jsonl").read_bytes() == (
        tmp_path / "two" / "predictions.jsonl"
    ).read_bytes()


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device() == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 3 on this machine has no GPU of its own, there are 2"):
        local_device()


def test_others_that_cannot_be_found(monkeypatch):
    assert join_processes().main
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but the other processes cannot be found"):
        join_processes()


def test_a_comparison_starts_its_own(monkeypatch):
    refuse_several("padapter compare")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"starts processes of its own \(see --jobs\): give the command"):
        refuse_several("padapter compare")


TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "localhost:0",
)
RESTARTED = """
import os, pathlib
from padapter.evaluation.processes import join_processes, leave_processes
processes = join_processes()
count = os.environ["TORCHELASTIC_RESTART_COUNT"]
if processes.index == 1 and count == "0":
    os._exit(3)
found = processes.gather(processes.index)
pathlib.Path(__file__).with_name(f"{processes.index}.txt").write_text(f"{count} {found}")
leave_processes(0)
"""
# Seconds for a process that imports torch, on a machine that has other things to do.
PATIENCE = 280


def run(command):
    """What a process printed that ended well; one that does not end in time is ended with all that it has started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        printed, problems = process.communicate(timeout=PATIENCE)
    except BaseException as problem:  # pytest's own timeout too
        process.terminate()  # a launcher that is killed at once would leave its processes behind
        try:
            _, problems = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise problem from None
        if not isinstance(problem, subprocess.TimeoutExpired):
            raise
        raise AssertionError(f"not done after {PATIENCE} s: {command}\n{problems}") from None
    assert process.returncode == 0, problems
    return printed


def start(output, launcher=(), *, words):
    """A command with the built-in model, as a user starts it."""
    output = output / "run"
    printed = run([sys.executable, *launcher, "-m", "padapter", *words, "--output", str(output)])
    assert printed.count("results in") == 1
    return output, json.loads((output / "metrics.json").read_text())


@pytest.mark.slow
def test_a_launcher_starts_them_again(tmp_path):
    """The second time they must not look for those of the first."""
    (tmp_path / "work.py").write_text(RESTARTED)
    run([sys.executable, *TORCHRUN, "--max-restarts", "1", str(tmp_path / "work.py")])
    assert [(tmp_path / f"{index}.txt").read_text() for index in range(2)] == ["1 [0, 1]"] * 2


LAUNCHERS = pytest.mark.parametrize(
    "launcher",
    [
        TORCHRUN,
        # without --multi_gpu it starts one process where there is no GPU
        ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
EVAL = [
    "eval", "--model", "shapes-blip", "--task", "vqa", "--data", "shapes:source:test:48", "--device", "cpu",
    "--eval-batch-size", "8", "--quiet",
]  # fmt: skip
TRAIN = [
    "train", "--task", "vqa", "--model", "shapes-blip", "--train", "shapes:new-questions:train:16",
    "--eval", "shapes:new-questions:test:8", "--eval-split", "test", "--max-steps", "2", "--device", "cpu",
    "--save-every", "1", "--no-score-base", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return start(tmp_path_factory.mktemp("evaluated"), words=EVAL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return start(tmp_path_factory.mktemp("trained"), words=TRAIN)


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
@LAUNCHERS
def test_launched(launcher, evaluated, tmp_path):
    (one, alone), (two, together) = evaluated, start(tmp_path, launcher, words=EVAL)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert (one / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()
    assert len((two / "predictions.jsonl").read_text().splitlines()) == 48
    assert alone["scores"]["metrics"] == together["scores"]["metrics"]
    assert sorted(path.name for path in two.iterdir()) == ["metrics.json", "predictions.jsonl"]


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
@LAUNCHERS
def test_training_launched(launcher, trained, tmp_path):
    """One run folder, and the run that one process makes."""
    (_, alone), (two, together) = trained, start(tmp_path, launcher, words=TRAIN)
    assert (alone["training"]["processes"], together["training"]["processes"]) == (1, 2)
    assert alone["training"]["last_loss"] == pytest.approx(together["training"]["last_loss"], rel=1e-4)
    assert alone["scores"]["after"]["metrics"] == together["scores"]["after"]["metrics"]
    assert not list(two.glob("*.partial*"))
