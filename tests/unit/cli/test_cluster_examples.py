"""The examples for clusters call the command line as it is, and the machines of each meet."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT

from posttrain.cli import launch
from posttrain.cli.main import app
from posttrain.runs.launch import LaunchSettings, check

FOLDER = ROOT / "examples/cluster"


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def called(script: str, folder: Path, variables: dict[str, str], *words: str) -> list[str]:
    """Return the arguments with which a script calls posttrain, which only notes them."""
    program(folder, "posttrain", 'printf "%s\\n" "$@" > "$NOTED"')
    program(folder, "getent", "exit 0")
    program(folder, "scontrol", "printf 'one\\ntwo\\n'")
    program(folder, "srun", 'exec "$@"')
    noted = folder / "noted"
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTED": str(noted)}
    subprocess.run(
        ["bash", "-euc", script, "bash", *words], check=True, env=os.environ | path | variables
    )
    return noted.read_text().splitlines()


def settings_of(arguments: list[str], monkeypatch: Any) -> tuple[LaunchSettings, list[str]]:
    """Return what the command line makes of `launch ...`, checked but for the number of GPUs."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: [])
    assert arguments[0] == "launch"
    group: Any = typer.main.get_command(app)
    parent = typer.Context(group)
    context = group.commands["launch"].make_context("launch", arguments[1:], parent=parent)
    launch.check_options(context)
    given = context.params
    fewest, most = launch.numbers(given["nnodes"])
    settings = LaunchSettings(
        given["nproc"],
        most,
        fewest,
        given["node_rank"],
        given["address"],
        given["max_restarts"],
        given["timeout"],
    )
    check(settings)
    return settings, launch.arguments_of(context)


def test_slurm(tmp_path: Path, monkeypatch: Any) -> None:
    script = (FOLDER / "slurm.sh").read_text()
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "1042", "SLURM_NNODES": "4"}
    arguments = called(script, tmp_path, job | {"SLURM_NODEID": "3"}, "my recipe.yaml", "a.b=1 2")
    settings, rest = settings_of(arguments, monkeypatch)
    assert settings == LaunchSettings(None, 4, None, 3, "one:29542")
    assert rest == ["train", "my recipe.yaml", "a.b=1 2", "--resume"]


def test_skypilot(tmp_path: Path, monkeypatch: Any) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    sky |= {"SKYPILOT_NUM_NODES": str(task["num_nodes"])} | task["envs"]
    settings, rest = settings_of(called(task["run"], tmp_path, sky), monkeypatch)
    assert settings == LaunchSettings(None, 2, None, 1, "10.0.0.1:29500")
    assert rest == ["train", "recipe.yaml", "trainer.output_dir=/shared/results", "--resume"]
    assert "/shared" in task["volumes"]


def test_kubernetes(tmp_path: Path, monkeypatch: Any) -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    arguments = called(script, tmp_path, {"JOB_COMPLETION_INDEX": "1"})
    settings, rest = settings_of(arguments, monkeypatch)
    name, port = "posttrain-0.posttrain", service["spec"]["ports"][0]["port"]
    assert settings == LaunchSettings(None, 2, 1, 1, f"{name}:{port}", 20)
    assert rest == ["train", "recipe.yaml", "trainer.output_dir=/shared/results", "--resume"]
    # a pod of an indexed job is named JOB-INDEX, and SERVICE is its domain
    assert name == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == settings.nnodes
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*")), ids=lambda file: file.name)
def test_every_example_is_named_in_the_guide(file: Path) -> None:
    assert f"examples/cluster/{file.name}" in (ROOT / "docs/guide/machines.md").read_text()
