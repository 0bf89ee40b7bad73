"""Stands in for `padapter train`: writes the files of a finished run at once, or fails, or hangs, as `r` says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def main():
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    options = yaml.safe_load(Path(arguments["--config"]).read_text(encoding="utf-8"))
    run = Path(arguments["--output"])
    run.mkdir(parents=True, exist_ok=True)
    with (run.parent / f"{run.name}.calls").open("a", encoding="utf-8") as calls:
        calls.write("resume\n" if "--resume" in sys.argv else "begin\n")
    (run / "config.yaml").write_text("begun", encoding="utf-8")
    if options["method_options"].get("r") == "99":
        print("error: it cannot be done", file=sys.stderr)
        sys.exit(2)
    if options["method_options"].get("r") == "66":
        finish(run, options)
        broken = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        (run / "metrics.json").write_text(json.dumps({**broken, "status": "diverged"}), encoding="utf-8")
        (run / "log.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": NaN}\n', encoding="utf-8")
        sys.exit(2)
    if options["method_options"].get("r") == "55":
        finish(run, options)
        (run / "metrics.json").write_text("{}", encoding="utf-8")
        return
    if options["method_options"].get("r") in ("88", "89") and "--resume" not in sys.argv:
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        (run / "hanging").touch()
        while not heard:
            time.sleep(0.05)
        time.sleep(0.2 if options["method_options"]["r"] == "88" else 2)  # the steps still under way
        (run / "heard").write_text(str(len(heard)), encoding="utf-8")
        sys.exit(130)
    if options["method_options"].get("r") == "77" and "--resume" not in sys.argv:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        (run / "hanging.partial").write_text(str(os.getpid()), encoding="utf-8")
        (run / "hanging.partial").rename(run / "hanging")
        time.sleep(60)
    finish(run, options)


def finish(run, options):
    score = 0.25 if options["learning_rate"] == 0.01 else 0.75
    write = {
        "adapter/adapter_model.safetensors": "12345",
        "checkpoints/checkpoint-1/weights": "x",
        "log.jsonl": '{"step": 1, "loss": 3.0}\n{"step": 2, "eval_accuracy": 0.5}\n',
        "predictions.jsonl": "".join(
            json.dumps({"id": str(i), "score": float(i < 4 * score)}) + "\n" for i in range(4)
        ),
        "metrics.json": json.dumps(metrics(options, score)),
    }
    for name, text in write.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text, encoding="utf-8")


def metrics(options, score):
    scored = {"metrics": {"accuracy": score}, "rule": "a rule"}
    return {
        "status": "finished",
        "task": options["task"],
        "primary_metric": "accuracy",
        "scores": {"before": scored if options["score_base"] else None, "after": scored},
        "data": {"eval": {"fingerprint": options["eval_split"]}, "train": {"fingerprint": "t"}},
        "training": {
            "steps": 2,
            "learning_rate": options["learning_rate"],
            "seconds": 1.0,
            "seconds_per_step": 0.5,
            "parameters": {"trainable": 1, "total": 10},
        },
        "memory": {"resident_bytes": 100},
        "provenance": {"versions": {"padapter": "0"}},
    }


main()
