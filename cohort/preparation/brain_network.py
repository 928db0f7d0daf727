"""Where the brain of a scan ends, by a network: deepbet (Fisch et al. 2024, Comput. Biol. Med. 179:108845).

Its weights come in its wheel, as TorchScript; nothing is downloaded. A head of any position will do.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from cohort.decoding import RefusedError
from cohort.preparation.registration import Working
from cohort.scans import fill_holes, largest_part

if TYPE_CHECKING:
    from deepbet.bet import BrainExtraction


def network_brain(scan: Working) -> np.ndarray:
    """Probability of brain, float32 (D, H, W) on the voxels of a scan: one part without holes is above a half.

    RefusedError where the network finds nothing.
    """
    try:
        probability = _network().run_model(scan.image.copy())
    except (AssertionError, ValueError):  # how deepbet says that its first, coarse pass found nothing to look at
        raise RefusedError("the network for brain extraction found no brain") from None
    brain = probability > 0.5
    kept = fill_holes(largest_part(brain))
    return np.where(kept, np.where(brain, probability, 1), np.where(brain, 0, probability)).astype(np.float32)


@cache
def _network() -> "BrainExtraction":
    """On the processor: one scan after the other in each of several processes, which would share a GPU badly."""
    from deepbet.bet import BrainExtraction  # here, so that scripts that extract no brain do not wait for torch

    return BrainExtraction(no_gpu=True)
