from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import yaml

from evaluation.fid import MINIMUM_PER_CLASS
from runtime.errors import InputError
from runtime.files import ROOT
from tests.support.people import index_of_empty_scans
from tests.support.scans import template_table
from workflow.settings import EVALUATED, checked, claim, least, one_class, read_settings

CONFIGS = sorted(path for path in (ROOT / "workflow/config").glob("*.yaml") if path.stem != "schema")
SMALL = {"name": "small", "grid": "smoke", "simulate": True}


def read(*paths: Path) -> dict:
    """Configuration files as Snakemake joins them, at the top level."""
    return {key: value for path in paths for key, value in yaml.safe_load(path.read_text()).items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path, tmp_path: Path) -> None:
    config = read(path.with_name("smoke_paper.yaml"), path) if path.stem == "smoke_flow" else read(path)
    for source in ("participants", "tables"):
        if source in config:
            config[source] = str(tmp_path)
    index = index_of_empty_scans(tmp_path, 30)
    for split in ("train", "val", "test"):
        shutil.copy(index, tmp_path / f"{split}.csv")
    settings = read_settings(config, [path])
    assert settings["gpus"] == "auto"
    assert settings["arms"]["references"][0] == "real"


def test_defaults_fill_what_is_not_said_and_nothing_else() -> None:
    config = SMALL | {"volumes": {"each": 3}, "arms": {"folds": 3}}
    before = copy.deepcopy(config)
    settings = read_settings(config, [])
    assert config == before
    assert settings["volumes"] == {"each": 3, "swap": 16}
    assert (settings["arms"]["folds"], settings["arms"]["seeds"]) == (3, [0])
    assert settings["run"] == ["report"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grdi": "smoke"}, "unknown key 'grdi'; known: name, grid,"),
        ({"volumes": {"all": 3}}, "volumes: unknown key 'all'; known: each, swap"),
        ({"grid": "papre"}, "grid papre: expected paper, demo, smoke, 1mm, 2mm, a spacing"),
        ({"grid": 0}, "grid 0: the spacing and the sides"),
        ({"run": ["latent"]}, "run.0: 'latent': expected one of cohort"),
        ({"options": {"VAE.trian": "--steps 3"}}, "options: 'VAE.trian': expected one of cohort.make_demo"),
        ({"presets": {"diffusion.train": "flwo"}}, "presets.diffusion.train: 'flwo': expected one of paper, flow"),
        ({"name": "a/b"}, "name: 'a/b' does not match"),
        ({"gpus": -1}, "gpus: -1"),
        ({"participants": "bids"}, "give one of simulate, participants, tables; found simulate and participants"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_settings(SMALL | change, ["mine.yaml"])
    title, *lines = str(refused.value).splitlines()
    assert title == f"mine.yaml: the configuration was refused ({len(lines)}):"
    assert [line for line in lines if line.startswith(f"  - {message}")]
    assert len(lines) == 1


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"refused \(3\)"):
        read_settings({"grid": "four", "nmae": "x", "simulate": True}, [])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    base = {"name": "mine", "grid": "demo"}
    arms = {"table": str(tmp_path / "arms.csv"), "references": ["real", "made"]}
    with pytest.raises(InputError, match=r"participants: .*/bids: no such folder or table"):
        read_settings(base | {"participants": str(tmp_path / "bids")}, [])
    with pytest.raises(InputError, match=r"there \(1\):\n.*known_volumes: .*/aseg.csv: no such folder or table"):
        read_settings(SMALL | {"known_volumes": str(tmp_path / "aseg.csv")}, [])
    with pytest.raises(InputError) as refused:
        read_settings(base | {"tables": str(tmp_path), "arms": arms}, [])
    for name in ("train.csv", "val.csv", "test.csv", "arms.csv"):
        assert f"{tmp_path / name}: no such table" in str(refused.value)
    (tmp_path / "arms.csv").write_text("arm,real\nreal,\n")
    with pytest.raises(InputError, match=r"arms.references: .*arms.csv has no arm made"):
        read_settings(SMALL | {"arms": arms}, [])


def test_arms_that_need_more_volumes_than_are_made_are_refused_before_the_first_training(tmp_path: Path) -> None:
    table = tmp_path / "arms.csv"
    table.write_text("arm,synth_count,synth_hc\nreal,,\nmany,25,\nfew,24,\nothers,900,elsewhere\n")
    config = SMALL | {"volumes": {"each": 12}, "arms": {"table": str(table)}}
    read_settings(config, [])
    with pytest.raises(InputError, match=r"there \(1\):\n.*arm many needs 25 .*, and volumes.each makes 24 of both"):
        read_settings(config | {"run": ["report", "arms"]}, [])


def test_no_configuration_says_where_to_begin() -> None:
    with pytest.raises(InputError, match=r"give --configfile workflow/config/demo.yaml, or .*mine.example.yaml"):
        read_settings({}, [])


def test_a_cohort_too_small_for_what_comes_last_is_refused_when_it_is_divided() -> None:
    assert EVALUATED == MINIMUM_PER_CLASS
    assert least(read_settings(SMALL, [])) == f"--least {EVALUATED} --least-sides 2"
    assert least(read_settings(SMALL | {"run": ["vae", "arms"]}, [])) == ""
    assert least(read_settings(SMALL | {"run": ["report", "infer"]}, [])) == ""
    evaluated = SMALL | {"run": ["report", "evaluation"], "volumes": {"swap": 0}}
    assert least(read_settings(evaluated, [])) == f"--least {EVALUATED}"
    without = SMALL | {"run": ["synthetic"], "volumes": {"swap": 0}}
    assert least(read_settings(without, [])) == ""
    mirrored = SMALL | {"run": ["synthetic"], "options": {"VAE.save_latent": "--mirrored"}}
    assert least(read_settings(mirrored, [])) == "--least-sides 1"


def test_healthy_people_alone_are_for_the_vae(tmp_path: Path) -> None:
    """They were prepared for hours, and then divided by a command that wants both classes."""
    healthy = {"name": "x", "grid": "smoke", "participants": str(tmp_path), "options": {"cohort.prepare": "--all-hc"}}
    assert one_class(read_settings(healthy | {"run": ["infer", "report"]}, [])) == "--allow-one-class"
    assert one_class(read_settings(SMALL, [])) == ""
    with pytest.raises(InputError, match=r"run: synthetic, maps: --all-hc .* say run: \[infer, report\]"):
        read_settings(healthy | {"run": ["infer", "synthetic", "maps"]}, [])
    with pytest.raises(InputError, match=r"run: report of everything: --all-hc"):
        read_settings(healthy | {"run": ["report"]}, [])


def test_volumes_of_a_side_are_refused_where_the_tables_name_none(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        shutil.copy(template_table(tmp_path), tmp_path / f"{name}.csv")
    base = {"name": "mine", "grid": "smoke", "tables": str(tmp_path)}
    with pytest.raises(
        InputError, match=r"volumes.swap: 16: .*train.csv name fewer than 2 of .* \(TLE-L\); say swap: 0"
    ):
        read_settings(base, [])
    read_settings(base | {"volumes": {"swap": 0}}, [])
    read_settings(base | {"run": ["vae"]}, [])


def test_one_folder_holds_one_run(tmp_path: Path) -> None:
    mine = read_settings(SMALL, [])
    claim(mine, tmp_path)
    claim(mine | {"run": ["vae"], "gpus": 0}, tmp_path)
    with pytest.raises(InputError) as refused:
        claim(mine | {"simulate": None, "participants": "bids"}, tmp_path)
    assert "holds another run; choose another name" in str(refused.value)
    assert "participants: the folder has None, this command 'bids'" in str(refused.value)


def test_what_a_user_can_mend_ends_the_program_with_its_message() -> None:
    assert checked(len, "abc") == 3
    with pytest.raises(SystemExit, match="error: no configuration"):
        checked(read_settings, {}, [])
