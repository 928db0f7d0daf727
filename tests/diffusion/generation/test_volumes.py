"""From seeds to batches of volumes; the volumes themselves are looked at in tests/diffusion/test_save_synth.py."""

from diffusion.generation.volumes import in_places
from diffusion.synthetic_folder import Wanted


def test_a_seed_has_its_place_whoever_else_is_there() -> None:
    wanted = [Wanted(1, seed) for seed in (12, 3, 5, 6, 7, 8, 20, 21)]
    seeds = [item and item.seed for item in in_places(wanted, 4)]
    assert seeds == [12, 5, 6, 3, 8, 21, None, 7, 20, None, None, None]
    assert in_places(wanted, 1) == wanted
    assert in_places([], 4) == []
