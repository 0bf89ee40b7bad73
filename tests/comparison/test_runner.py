import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from padapter.comparison.locks import RunLock
from padapter.comparison.plan import Job
from padapter.comparison.records import read_record, read_records, write_record
from padapter.comparison.runner import Runner
from padapter.comparison.slots import environments
from padapter.comparison.watching import last_step
from padapter.errors import UserError

FAKE = (sys.executable, str(Path(__file__).parent / "fake_train.py"))


def job(seed=0, stage="test", rate=0.01, **settings):
    options = {"task": "vqa", "model": "m", "train": "t", "eval": "e", "method": "lora", "learning_rate": rate}
    own = {"seed": seed, "method_options": settings, "score_base": seed == 0}
    return Job(stage, "vqa", "lora", seed, options | own)


def runner(folder, jobs=2, **options):
    return Runner(folder, jobs=jobs, gpus=0, train=FAKE, **options)


def watch(records, running):
    pass


def calls(folder, name):
    path = folder / "runs" / f"{name}.calls"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_every_run_leaves_one_record_and_is_never_repeated(tmp_path):
    jobs = [job(seed) for seed in range(3)]
    outcome = runner(tmp_path).execute(jobs, watch)
    assert list(outcome.failed) == []
    assert {record.seed for record in read_records(tmp_path / "records")} == {0, 1, 2}
    again = runner(tmp_path).execute([*jobs, job(3)], watch)
    assert again.records.keys() == {item.name for item in [*jobs, job(3)]}
    assert [calls(tmp_path, item.name) for item in [*jobs, job(3)]] == [["begin"]] * 4


def test_a_record_holds_what_the_run_says(tmp_path):
    record = runner(tmp_path).execute([job()], watch).records[job().name]
    assert record == read_record(tmp_path / "records" / f"{job().name}.json")
    assert (record.score, record.items, record.base_score) == (0.25, [1.0, 0.0, 0.0, 0.0], 0.25)
    assert record.curve == [[1, 3.0]]
    assert record.scores == [[2, 0.5]]
    assert record.adapter_bytes == 5
    assert record.fraction == 0.1
    assert record.peak_memory_bytes == 100
    assert record.options["learning_rate"] == 0.01
    assert not (tmp_path / "runs" / job().name / "checkpoints").exists()


def test_a_run_from_before_an_option_existed_counts_as_one_with_its_default(tmp_path):
    first = runner(tmp_path)
    record = first.execute([job()], watch).records[job().name]
    older = {name: value for name, value in record.options.items() if name != "keep"}
    write_record(replace(record, key="of before", options=older), first.record_path(job()))
    assert first.finished([job()]).keys() == {job().name}
    write_record(replace(record, key="of before", options={**older, "keep": "best"}), first.record_path(job()))
    with pytest.raises(UserError, match="with other options: keep was 'best' and is 'last'"):
        first.finished([job()])


def test_items_whose_mean_is_not_the_score_are_not_kept(tmp_path):
    first = runner(tmp_path)
    first.execute([job()], watch)
    path = tmp_path / "runs" / job().name / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["scores"]["after"]["metrics"]["accuracy"] = 0.26
    path.write_text(json.dumps(metrics), encoding="utf-8")
    from padapter.comparison.collect import collect

    assert collect(job(), path.parent).items == []
    metrics["status"] = "running"
    path.write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(UserError, match="not finished"):
        collect(job(), path.parent)


def test_a_rate_that_is_too_high_is_a_result_of_tuning_and_a_failure_of_the_table(tmp_path):
    high, table = job(stage="tune", r="66"), job(r="66")
    outcome = runner(tmp_path).execute([high, table], watch)
    record = outcome.records[high.name]
    assert record.diverged
    assert record.curve == [[1, 3.0]]
    assert outcome.failed.keys() == {table.name}
    assert read_record(tmp_path / "records" / f"{high.name}.json") == record


def test_a_damaged_run_stops_no_other(tmp_path):
    bad, good = job(0, r="55"), job(1)
    outcome = runner(tmp_path, jobs=1).execute([bad, good], watch)
    assert outcome.records.keys() == {good.name}
    assert "is not finished" in outcome.failed[bad.name]


def test_every_child_is_interrupted_once_and_waited_for(tmp_path):
    """A second interruption would cost a run its checkpoint."""
    quick, slow = job(0, r="88"), job(1, r="89")
    places = [tmp_path / "runs" / each.name for each in (quick, slow)]

    def interrupt(records, running):
        if all((place / "hanging").exists() for place in places):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path).execute([quick, slow], interrupt)
    assert [(place / "heard").read_text(encoding="utf-8") for place in places] == ["1", "1"]


def test_looking_at_what_is_finished_removes_nothing(tmp_path):
    runner(tmp_path).execute([job()], watch)
    before = sorted(tmp_path.rglob("*"))
    assert runner(tmp_path, overwrite=True).finished([job(rate=0.02)]) == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failing_run_stops_no_other_and_is_tried_again(tmp_path):
    bad, good = job(0, r="99"), job(1)
    outcome = runner(tmp_path, jobs=1).execute([bad, good], watch)
    assert outcome.records.keys() == {good.name}
    assert outcome.failed == {bad.name: "exit code 2: error: it cannot be done"}
    runner(tmp_path).execute([bad, good], watch)
    assert len(calls(tmp_path, bad.name)) == 2
    assert len(calls(tmp_path, good.name)) == 1


def test_other_options_are_refused_and_repeated_on_demand(tmp_path):
    runner(tmp_path).execute([job(), job(1)], watch)
    changed = [job(rate=0.02), job(1)]
    with pytest.raises(UserError, match=r"test--vqa--lora--seed-0 is finished.*learning_rate was 0.01 and is 0.02"):
        runner(tmp_path).execute(changed, watch)
    outcome = runner(tmp_path, overwrite=True).execute(changed, watch)
    assert outcome.records[job().name].learning_rate == 0.02
    assert calls(tmp_path, job(1).name) == ["begin"]


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path):
    hanging = job(0, r="77")

    def interrupt(records, running):
        if (tmp_path / "runs" / hanging.name / "hanging").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path).execute([hanging, job(1)], interrupt)
    outcome = runner(tmp_path).execute([hanging, job(1)], watch)
    assert outcome.records.keys() == {hanging.name, job(1).name}
    assert calls(tmp_path, hanging.name) == ["begin", "resume"]


def test_an_unfinished_run_of_other_options_begins_anew(tmp_path):
    failing = job(0, r="99")
    runner(tmp_path).execute([failing], watch)
    (tmp_path / "runs" / failing.name / "left").touch()
    runner(tmp_path).execute([job(0, r="8")], watch)
    assert calls(tmp_path, failing.name) == ["begin", "begin"]
    assert not (tmp_path / "runs" / failing.name / "left").exists()


def test_an_unfinished_run_from_before_an_option_existed_goes_on(tmp_path):
    failing = job(0, r="99")
    first = runner(tmp_path)
    first.execute([failing], watch)
    config = tmp_path / "runs" / f"{failing.name}.yaml"
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    assert "keep: last\n" in lines
    config.write_text("".join(line for line in lines if line != "keep: last\n"), encoding="utf-8")
    first.execute([failing], watch)
    assert calls(tmp_path, failing.name) == ["begin", "resume"]


def test_an_unfinished_run_begins_anew_on_demand(tmp_path):
    failing = job(0, r="99")
    runner(tmp_path).execute([failing], watch)
    runner(tmp_path, overwrite=True).execute([failing], watch)
    runner(tmp_path).execute([failing], watch)
    assert calls(tmp_path, failing.name) == ["begin", "begin", "resume"]


def test_two_comparisons_in_one_folder_share_the_work(tmp_path):
    jobs = [job(seed) for seed in range(6)]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(runner(tmp_path, 1).execute(jobs, watch))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.records.keys() for outcome in found] == [{item.name for item in jobs}] * 2
    assert [calls(tmp_path, item.name) for item in jobs] == [["begin"]] * 6


def test_a_run_that_somebody_else_executes_is_left_alone_until_it_is_done(tmp_path):
    lock = RunLock(tmp_path / "runs" / f"{job().name}.lock")
    assert lock.acquire()
    seen = []

    def release(records, running):
        seen.append(job().name in records)
        if len(seen) == 3:
            assert calls(tmp_path, job().name) == []
            lock.release()

    assert runner(tmp_path).execute([job()], release).records.keys() == {job().name}


def test_a_damaged_record_is_named(tmp_path):
    runner(tmp_path).execute([job()], watch)
    path = tmp_path / "records" / f"{job().name}.json"
    whole = path.read_text(encoding="utf-8")
    for broken in (whole[:50], "[]", whole.replace('"version": 1', '"version": 2'), '{"version": 1, "seed": 1}'):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"seed-0\.json.*delete it"):
            runner(tmp_path).finished([job()])


def test_slots_share_cores_or_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert environments(2, 0) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert environments(1, 0) == [{}]
    assert environments(3, 2) == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
        {"CUDA_VISIBLE_DEVICES": "0"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert environments(2, 2) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environments(2, 0) == [{}, {}]


def test_the_last_step_of_a_log(tmp_path):
    log = tmp_path / "log.jsonl"
    assert last_step(log) == (0, "starting")
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 10, "loss": 1.5}\n{"step": 20, "lo', encoding="utf-8")
    assert last_step(log) == (10, "loss 1.500")
    log.write_text("{}\n" * 5000 + '{"step": 30, "eval_accuracy": 1}\n', encoding="utf-8")
    assert last_step(log) == (30, "")


def test_names_and_keys_are_the_jobs_own():
    assert replace(job(), seed=1).name != job().name
    assert job(r="4").key != job(r="8").key
    assert job(stage="tune").name == "tune--vqa--lora--lr-0.01--seed-0"


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_run_is_never_executed_twice_at_once(tmp_path, how):
    """Asked to end, a comparison ends its runs; killed, it leaves one behind that still holds its lock."""
    execute = runner(tmp_path, 1).execute
    process = multiprocessing.get_context("fork").Process(target=execute, args=([job(0, r="77")], watch))
    process.start()
    run = tmp_path / "runs" / job().name
    wait_for((run / "hanging").exists)
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode not in (None, 0)
    lock = RunLock(tmp_path / "runs" / f"{job().name}.lock")
    if how is signal.SIGKILL:
        assert not lock.acquire()
        os.kill(int((run / "hanging").read_text(encoding="utf-8")), signal.SIGINT)
        wait_for(lock.acquire)
    else:
        assert lock.acquire()
    lock.release()
    assert runner(tmp_path).execute([job(0, r="77")], watch).records.keys() == {job().name}
    assert calls(tmp_path, job().name) == ["begin", "resume"]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
