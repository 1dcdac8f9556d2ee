"""A stand-in for `posttrain train CONFIG --run-dir FOLDER` that takes a tenth of a second.

    python pretend_training.py CONFIG FOLDER

It writes the files of a run, with numbers that follow from learning rate, seed and step, and obeys
`faults.json` beside the series' folder, {label: fault}: error, traceback, silent, kill, abort,
interrupted, once (fails at its first call), hang. `starts.txt` there has a line for each process.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def main(config_file: str, folder: str) -> None:
    run_dir = Path(folder)
    config = yaml.safe_load(Path(config_file).read_text())
    trainer = config["trainer"]
    series, label = run_dir.parent, trainer["run_name"]
    with (series.parent / "starts.txt").open("a") as starts:
        done = steps_saved(run_dir) if trainer.get("resume_from_checkpoint") else 0
        starts.write(f"{series.name} {label} {done} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    faults = series.parent / "faults.json"
    fault = json.loads(faults.read_text()).get(label) if faults.is_file() else None
    if fault == "error":
        print("a warning", file=sys.stderr)
        sys.exit("error: model.name: no such model\n")
    if fault == "silent":
        sys.exit(3)
    if fault == "interrupted":
        sys.exit(130)
    run_dir.mkdir(exist_ok=True)
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] <= done]
    metrics.write_text("".join(f"{line}\n" for line in kept))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    for step in range(done + 1, trainer["max_steps"] + 1):
        loss = abs(trainer["learning_rate"] - 2e-3) * 1e3 + trainer["seed"] / 100 + 1 / step
        line = {"step": step, "loss": loss}
        if step % (trainer.get("eval_steps") or 10**9) == 0:
            line |= {"eval_loss": loss + 0.5, "eval_accuracy": 1 / (1 + loss)}
        with metrics.open("a") as out:
            out.write(json.dumps(line) + "\n")
        if step % trainer["save_steps"] == 0 or step == trainer["max_steps"]:
            save(run_dir / f"checkpoint-{step}", step)
        if step == 2 and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and fault == "abort":
            os.abort()
        if step == 2 and fault == "traceback":
            raise RuntimeError("something in C")
        if step == 2 and fault == "once":
            faults.write_text("{}")
            sys.exit("error: the disk is full\n")
        if step == 2 and fault == "hang":
            time.sleep(60)
        time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
    (run_dir / "report.html").write_text("a report")


def steps_saved(run_dir: Path) -> int:
    return max((int(p.name.rpartition("-")[2]) for p in run_dir.glob("checkpoint-*")), default=0)


def save(folder: Path, step: int) -> None:
    temporary = folder.with_name(f".writing-{folder.name}")
    temporary.mkdir()
    (temporary / "checkpoint_info.json").write_text(
        json.dumps({"step": step, "trainer": {"best_step": None}})
    )
    temporary.rename(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
