"""One run on two machines, which are network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

HOSTS = {"posttrain-a": "10.213.77.1", "posttrain-b": "10.213.77.2"}
STEPS = 200
TIMEOUT = 8  # seconds

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def set_link(state: str) -> None:
    """Plug the cable in ("up") or out ("down")."""
    first = next(iter(HOSTS))
    ip("netns", "exec", first, "ip", "link", "set", "wire0", state)


@pytest.fixture
def cable() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root, ip and unshare")
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)
    try:
        for host in HOSTS:
            ip("netns", "add", host)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    a, b = HOSTS
    try:
        ip("link", "add", "wire0", "netns", a, "type", "veth", "peer", "name", "wire1", "netns", b)
        for host, wire in ((a, "wire0"), (b, "wire1")):
            inside = ("netns", "exec", host, "ip")
            ip(*inside, "addr", "add", f"{HOSTS[host]}/24", "dev", wire)
            ip(*inside, "link", "set", wire, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def start(folder: Path, port: int, *arguments: Any) -> list[subprocess.Popen[str]]:
    processes = []
    for rank, host in enumerate(HOSTS):
        place = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c"]
        named = [*place, f'hostname {host}; exec "$@"', "sh"]
        command = [sys.executable, "-m", "posttrain", "launch", "--nproc", "1", "--nnodes", "2"]
        command += ["--node-rank", str(rank), "--address", f"{HOSTS['posttrain-a']}:{port}"]
        with (folder / f"{host}.out").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [*named, *command, *map(str, arguments)],
                    stdout=output,
                    stderr=output,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
    return processes


def ended(processes: list[subprocess.Popen[str]], within: float) -> list[int]:
    """Return the exit codes; raise TimeoutExpired if a process goes on for longer."""
    deadline = time.monotonic() + within
    try:
        return [p.wait(max(0.1, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()


def lines(folder: Path) -> list[dict[str, Any]]:
    files = list(folder.glob("sft_*/metrics.jsonl"))
    text = files[0].read_text() if files else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_a_cable_that_is_cut(cable: None, tmp_path: Path) -> None:
    """Both machines end within a bound and name the other; the run goes on once it is mended."""
    shown = {}
    for name in ("whole", "cut"):
        folder = tmp_path / name
        tree = tiny.run_config(folder, "sft", max_steps=STEPS, save_steps=20)
        tree["distributed"] = {"timeout": TIMEOUT if name == "cut" else 60}
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        processes = start(folder, 29601, recipe)
        if name == "whole":
            assert ended(processes, 180) == [0, 0], (folder / "posttrain-b.out").read_text()
            said = (folder / "posttrain-a.out").read_text()
            assert "2 ranks: posttrain-a (cpu, " in said
        else:
            deadline = time.monotonic() + 120
            while len(lines(folder)) < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            set_link("down")
            assert ended(processes, TIMEOUT + 45) == [2, 2]
            a, b = ((folder / f"{host}.out").read_text() for host in HOSTS)
            assert "rank 0 (posttrain-a): the other ranks did not answer in all_" in a
            assert "rank 1 (posttrain-b) is silent: it finished step" in a
            assert "on the machine of rank 0, is out of reach" in b
            set_link("up")
            assert ended(start(folder, 29602, recipe, "--resume"), 180) == [0, 0]
            assert "resumed from" in (folder / "posttrain-a.out").read_text()
        same = ("step", "loss", "grad_norm")
        shown[name] = [{key: line[key] for key in same} for line in lines(folder)]
    assert len(shown["whole"]) == STEPS
    assert shown["cut"] == shown["whole"]


def test_machines_with_other_recipes_are_refused(cable: None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny.run_config(tmp_path, "sft")))
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "posttrain", "launch", "--nproc", "1", "--nnodes", "2"]
    processes = []
    for rank, host in enumerate(HOSTS):
        address = f"{HOSTS['posttrain-a']}:29603"
        more = ["--node-rank", str(rank), "--address", address, str(recipe)]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *command, *more, f"trainer.learning_rate={rank + 1}"],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "have different recipes: trainer.learning_rate is 1.0 and 2.0" in said[0]
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


def test_a_machine_that_never_comes(cable: None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny.run_config(tmp_path, "sft")))
    command = [sys.executable, "-m", "posttrain", "launch", "--nproc", "1", "--nnodes", "2"]
    for rank, host in enumerate(HOSTS):
        more = ["--node-rank", str(rank), "--address", f"{HOSTS['posttrain-a']}:29604"]
        done = subprocess.run(
            ["ip", "netns", "exec", host, *command, *more, "--timeout", "5", str(recipe)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "error: " in done.stderr
        assert "within 5 s" in done.stderr
