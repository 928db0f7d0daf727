"""What several tests of the stage's scripts need."""

from pathlib import Path

import pytest

from tests.support.processes import script
from tests.support.vae_runs import COMMON, tables


@pytest.fixture(scope="session")
def trained(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run."""
    run_dir = tmp_path_factory.mktemp("vae")
    script("VAE.train", "smoke", *COMMON, *tables(cohort_dir, run_dir))
    return run_dir
