"""More words for scripts, which a configuration gives under `options`, tried before anything runs."""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.errors import InputError
from workflow.settings import TRAININGS, preset

NEEDED = {
    "cohort.prepare": "--participants - --out - --index -",
    "cohort.check": "--csv - --out -",
    "cohort.split": "--index -",
    "VAE.infer": "--checkpoint -",
    "VAE.save_latent": "--checkpoint -",
    "diffusion.save_synth": "--vae - --diffusion -",
    "classifier.generate_saliency_maps": "--checkpoint -",
}
"""What scripts insist on; the workflow gives it."""


def refuse_options(settings: dict[str, Any]) -> None:
    """Raises InputError for words that their scripts do not take, all at once; they would otherwise be refused hours
    later, when their turn comes.

    Args:
        settings: Those of `read_settings`.
    """
    given = {script: words for script, words in settings["options"].items() if words.strip()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda script: refusal(settings, script), given)
        problems = [f"{script}: {given[script]}: {why}" for script, why in zip(given, found, strict=True) if why]
    if problems:
        raise InputError.of("options: refused by their scripts", problems)


def refusal(settings: dict[str, Any], script: str) -> str:
    """Why a script does not take its words; empty where it does."""
    before = preset(settings, script) if script in TRAININGS else NEEDED.get(script, "")
    words = shlex.split(f"{before} {settings['options'][script]} --dry-run")
    wide = {**os.environ, "COLUMNS": "500"}
    done = subprocess.run([sys.executable, "-m", script, *words], env=wide, capture_output=True, text=True, check=False)
    return told(done.stderr) if done.returncode else ""


def told(text: str) -> str:
    """What a script said, without the frame around it, and without what is further down in that."""
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    ends = [place for place, line in enumerate(lines) if line.startswith("───")]
    return " ".join(lines[: min(ends, default=len(lines))]).removeprefix("error: ")
