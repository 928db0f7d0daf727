"""Grids: what a command line may call one, what follows for its voxels, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cohort.grids import CENTRE_MM, GRIDS, Grid, kept_name, parse_grid, preset_of
from cohort.scans import box_mm
from runtime.cli import parse
from runtime.errors import InputError
from VAE.config import PRESETS

GRID = GRIDS["smoke"]


@pytest.mark.parametrize("name", GRIDS)
def test_grids_share_their_centre_and_survive_json(name):
    grid = GRIDS[name]
    middle = grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1]
    assert np.allclose(middle[:3], (0, -17, 8))
    assert np.array_equal(np.diag(grid.affine)[:3], [grid.spacing_mm] * 3)
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize("change", [{"shape": [1, 2]}, {"spacing_mm": 0}, {"centre_mm": "here"}, {"name": None}])
def test_what_is_no_grid(change):
    values = {**GRID.to_dict(), **change}
    if change == {"name": None}:
        del values["name"]
    with pytest.raises(InputError, match="not a grid"):
        Grid.from_dict(values)


def test_a_middle_beside_the_plane_of_mirror_images_is_refused(tmp_path):
    path = tmp_path / "off.json"
    path.write_text(json.dumps({**GRID.to_dict(), "name": "off", "centre_mm": [4.0, -17.0, 8.0]}))
    with pytest.raises(InputError, match="its middle lies at x = 4 mm"):
        parse_grid(str(path))


@pytest.mark.parametrize(
    ("text", "shape", "spacing", "name"),
    [
        ("paper", (112, 136, 112), 1.5, "paper"),
        ("1.5", (112, 136, 112), 1.5, "paper"),
        ("1mm", (160, 192, 160), 1.0, "1mm"),
        ("1@160x192x160", (160, 192, 160), 1.0, "1mm"),
        ("2", (84, 102, 84), 2.0, "2@168x204x168"),
        ("7.5@161x187x150", (22, 25, 20), 7.5, "7.5@165x187.5x150"),
        ("0.7@160.3x192.5x140", (229, 275, 200), 0.7, "0.7@160.3x192.5x140"),
    ],
)
def test_a_grid_has_whole_voxels_and_a_name_that_is_read_as_the_same(text, shape, spacing, name):
    grid = parse_grid(text)
    assert grid == Grid(name, shape, spacing, CENTRE_MM)
    assert parse_grid(grid.name) == grid
    assert parse(PRESETS, ["smoke", "--grid", text]).grid == name


@pytest.mark.parametrize("text", ["1.3", "3", "9"])
def test_without_a_field_of_view_it_holds_what_paper_does_and_less_than_a_voxel_more(text):
    wanted, found = (box_mm(grid.shape, grid.affine) for grid in (GRIDS["paper"], parse_grid(text)))
    more = np.concatenate([wanted[0] - found[0], found[1] - wanted[1]])
    assert (more >= -1e-9).all()
    assert (more < float(text)).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("papre", "expected paper, demo, smoke, 1mm, 2mm, a spacing in mm such as 2 or 1@160x192x160"),
        ("2@160x192", "expected"),
        ("nan", "expected"),
        ("inf", "expected"),
        ("0", "lengths in mm, above 0"),
        ("-2", "lengths in mm, above 0"),
        ("2@160x0x160", "lengths in mm, above 0"),
        ("2@160x192x220", "leaves the template: its voxels lie from .* the template reaches from"),
        ("1@60x60x60", "longest side is 60 mm, less than 100: no head fits"),
        ("30", r"\(6, 7, 6\) voxels: at least 8"),
        ("0.4", "at most 67,108,864; choose a coarser spacing"),
        ("none.json", "none.json: no such file"),
    ],
)
def test_what_is_refused_says_why(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_grid(text)


def test_the_command_line_refuses_before_anything_runs(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(PRESETS, ["smoke", "--grid", "0"])
    assert "above 0" in capsys.readouterr().err


def test_a_file_names_a_grid_with_a_middle_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Grid("temporal", (30, 40, 20), 4.0, (0.0, -10.0, -6.0))
    for name, grid in (
        ("own", own),
        ("demo", replace(GRIDS["demo"], name="mine")),
        ("false", replace(own, name="2mm")),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(grid.to_dict()))
    assert parse_grid("own.json") == own
    assert kept_name("own.json") == str(tmp_path / "own.json")  # wherever it is read
    assert parse_grid("demo.json") == GRIDS["demo"]
    with pytest.raises(InputError, match="its name 2mm is that of another grid"):
        parse_grid("false.json")


@pytest.mark.parametrize(
    ("text", "preset"),
    [("1mm", "paper"), ("2mm", "paper"), ("3", "demo"), ("demo", "demo"), ("6", "smoke"), ("16", "smoke")],
)
def test_the_preset_is_that_of_the_nearest_voxel_size(text, preset):
    assert preset_of(parse_grid(text)) == preset
