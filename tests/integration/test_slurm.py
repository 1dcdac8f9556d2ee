"""The SLURM script with an srun that starts two tasks here."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from conftest import ROOT
from test_cluster_examples import program

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SRUN = """
for task in 0 1; do SLURM_NODEID=$task "$@" > "$OUT/$task" 2>&1 & tasks[$task]=$!; done
code=0; for task in 0 1; do wait "${tasks[$task]}" || code=$?; done; exit $code
"""


def job_with_a_free_port() -> int:
    """Return the number of a job whose port, 29500 + number % 1000, is free here."""
    for number in range(1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 29500 + number)) != 0:
                return number
    raise AssertionError("no port is free")


def test_a_job_and_its_repetition(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "scontrol", "printf 'localhost\\nelsewhere\\n'")
    program(folder, "srun", SRUN)
    program(folder, "posttrain", f'exec {sys.executable} -m posttrain "$@"')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny.run_config(tmp_path, "sft", max_steps=6, save_steps=3)))
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "OMP_NUM_THREADS": "1"}
    job |= {"SLURM_JOB_ID": str(job_with_a_free_port()), "OUT": str(tmp_path)}
    for lost in (None, "checkpoint-6"):  # as after a kill between the two checkpoints
        for folder_of_run in tmp_path.glob(f"sft_*/{lost}"):
            shutil.rmtree(folder_of_run)
        done = subprocess.run(
            ["bash", str(ROOT / "examples/cluster/slurm.sh"), str(recipe)],
            env=os.environ | job | {"PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr + "".join(
            (tmp_path / task).read_text() for task in "01" if (tmp_path / task).is_file()
        )
        said = (tmp_path / "0").read_text()
        assert said.startswith("2 ranks: ")
    assert re.search(r"resumed from \S+/checkpoint-3: 3 steps left", said)
    assert len(list(tmp_path.glob("sft_*"))) == 1
