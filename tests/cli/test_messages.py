from __future__ import annotations

import pytest

from ase_finetune.cli import main
from ase_finetune.cli.messages import for_command_line
from ase_finetune.errors import InputError
from tests.cli import running

OPTIONS = ("energy_key", "method", "reference", "loss", "output", "relaxations", "stream", "pressure")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exists; pass overwrite=True", "exists; pass --overwrite"),
        ("(energy_key=... and forces_key=... name others)", "(--energy_key and --forces_key name others)"),
        ("'7net'; ase_finetune.potentials.list_models() lists all", "'7net'; 'ase-finetune models' lists all"),
        ("use reference='align'", "use --reference align"),
        ("stream=False, pressure=-1.5.", "--stream false, --pressure -1.5."),
        ("give structures=[atoms, ...] or a file", "give --structures FILE"),
        (
            "give train=frames, or relaxations=pairs with method='bptt'",
            "give frames, or --relaxations with --method bptt",
        ),
        ("pbc=[False, False] and --loss=mse are left", "pbc=[False, False] and --loss=mse are left"),
    ],
)
def test_remedies_are_options(text, expected):
    assert for_command_line(InputError(text), OPTIONS) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("train.extxyz@99", "does not hold as many structures as @99 asks for"),
        ("train.extxyz@x", "@ takes a number or a range such as @3, @-1, @0:10, got @x"),
        ("model", "is a folder, not a file of structures"),
    ],
)
@pytest.mark.parametrize("verb", ["relax", "evaluate"])
def test_files_that_cannot_be_read(folder, capsys, verb, source, message):
    output = folder / ("o.extxyz" if verb == "relax" else "o.json")
    words = [verb, str(folder / "model"), str(folder / source), "--output", str(output), "--device", "cpu", "-q"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("verb", ["evaluate", "fit", "fisher"])
def test_a_run_that_has_not_ended_is_no_model(folder, capsys, verb):
    (folder / "run.json").write_text("{}")
    words = {"fisher": []}.get(verb, [str(folder / "train.extxyz")])
    output = [] if verb == "evaluate" else ["--output", str(folder / "o.safetensors")]
    assert main([verb, str(folder), *words, *output, "--device", "cpu"]) == 1
    expected = f"error: the run in {folder} has not ended: go on with it by --resume; its best model so far is"
    assert f"{expected} {folder / 'model'}\n" in capsys.readouterr().err


def test_the_output_folder_of_a_fit_is_a_model(folder, capsys):
    assert running.fit(folder, "--epochs", "1", output="first") == 0
    capsys.readouterr()
    shown = []
    for model in ("first", "first/model"):
        assert main(["evaluate", str(folder / model), str(folder / "valid.extxyz"), "--device", "cpu"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
