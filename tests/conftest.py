"""Shared fixtures. OMP_WAIT_POLICY is set before torch is imported: spinning barriers cost 10-50x on busy cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT / default)
    if not path.is_dir():
        pytest.skip(f"{path} is not there; set {variable} to the folder")
    return path


@pytest.fixture(scope="session")
def oracle_dir() -> Path:
    """Vectors of the published system."""
    return folder("MCVD_ORACLE", "../shared/oracle")


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """MNIST, real clips, metric weights."""
    return folder("MCVD_ASSETS", "../shared/assets")
