from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from ase_finetune import FinetuneConfig
from ase_finetune.cli import build_parser, main
from ase_finetune.cli.verbs import VERBS
from tests.cli.running import fit

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {class_path: trap.Loss}", "'class_path' is no option here"),
        ("bptt:\n  loss: {class_path: trap.Loss}", "'class_path' is no option here"),
        ("""loss: '{"class_path": "trap.Loss"}'""", "loss takes options by name"),
        ("loss: 'class_path: trap.Loss'", "loss takes options by name"),
        ("""bptt: '{"class_path": "trap.Loss"}'""", "bptt takes options by name"),
        ("bptt: {loss: 'class_path: trap.Loss'}", "loss takes options by name"),
        ("loss.class_path: trap.Loss", "'loss.class_path' is no option here"),
        ("bptt.loss.class_path: trap.Loss", "is no option here"),
        ("config: inner.yaml", "'config' is no option here"),
        ("loss: inner.yaml", "loss takes options by name"),
        ("method: {class_path: trap.Loss}", "method takes a value or a list of values"),
        ("freeze: [{class_path: trap.Loss}]", "freeze takes a value or a list of values"),
        ("loss: !!python/object/apply:os.system ['touch executed']", "could not determine a constructor for the tag"),
        ("model: !!python/name:trap.Loss", "could not determine a constructor"),
        ("trust_pickle: true", "an option of the command line only"),
        ("relaxations: x", "relaxations takes a list of two files"),
        ("- epochs", "it holds no options by name"),
        ("", "it holds no options by name"),
        ("epochs: &a [*a]", "aliases (*name) are not read"),
        (BOMB, "aliases (*name) are not read"),
        (MERGES, "aliases (*name) are not read"),
        ("epochs: [" * 3000, "cannot be used"),
        ("a" * (2 << 20), "it has more than 1 MB"),
        ("epochs: [", "while parsing"),
        ("\x00", "cannot be used"),
    ],
)
def test_config_files_run_nothing(folder, capsys, monkeypatch, text, message):
    """A module that can be imported is not, whatever a file of options says."""
    (folder / "trap.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass Loss: pass\n")
    (folder / "inner.yaml").write_text("class_path: trap.Loss\n")
    (folder / "options.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit):
        fit(folder, "--config", "options.yaml")
    told = capsys.readouterr().err
    assert "the config file options.yaml cannot be used: " in told
    assert message in told
    assert not (folder / "executed").exists()


def test_config_file_that_is_not_there(folder, capsys):
    with pytest.raises(SystemExit):
        fit(folder, "--config", str(folder / "none.yaml"))
    assert "there is no such file" in capsys.readouterr().err


def test_print_config(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(folder, "--epochs", "3", "--print_config", report=True)
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["epochs"] == 3
    assert printed["loss"]["huber_delta"] == 0.01
    names = {item.name for item in fields(FinetuneConfig)}
    assert names <= set(printed)
    options = {name: printed[name] for name in names}
    assert FinetuneConfig.from_options(options) == FinetuneConfig(epochs=3, device="cpu")
    assert not (folder / "run").exists()


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "fit"])
@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: trap.Loss}",
        "class_path: trap.Loss",
        "model: !!python/object/apply:os.system ['touch executed']",
        "config: inner.yaml",
        "print_config: true",
        "trust_pickle: true",
        "output: [{class_path: trap.Loss}]",
        "quiet: &a [*a]",
        "loss: {class_path: trap.Loss}",
        "nothing_known: 1",
    ],
)
def test_config_files_run_nothing_for_any_verb(tmp_path, capsys, monkeypatch, verb, text):
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass Loss: pass\n")
    (tmp_path / "inner.yaml").write_text("class_path: trap.Loss\n")
    (tmp_path / "options.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main([verb, "--config", "options.yaml"])
    assert caught.value.code == 2
    assert "the config file options.yaml cannot be used: " in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "structures: inner.yaml",
        "structures: '{class_path: trap.Loss}'",
        "structures: ['{class_path: trap.Loss}']",
        "model: inner.yaml",
        "model: '{class_path: trap.Loss}'",
        "fmax: inner.yaml",
        "cell: inner.yaml",
        "max_edges: '{class_path: trap.Loss}'",
    ],
)
def test_texts_are_texts(tmp_path, capsys, monkeypatch, text):
    """What names a file, or looks like YAML, is neither read nor imported."""
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass Loss: pass\n")
    (tmp_path / "inner.yaml").write_text("class_path: trap.Loss\n")
    (tmp_path / "options.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["relax", "--config", "options.yaml"])
    assert caught.value.code == 2
    assert not (tmp_path / "executed").exists()
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fmax: null", "fmax takes a number, got null"),
        ("steps: null", "steps takes a whole number, got null"),
        ("fmax: .nan", "fmax takes a number that is finite, got nan"),
        ("fmax: -.inf", "fmax takes a number that is finite, got -inf"),
        ("fmax: true", "fmax takes a number, got true"),
        ("steps: 1.5", "steps takes a whole number, got 1.5"),
        ("cell: 1", "cell takes true or false, got 1"),
        ("cell: null", "cell takes true or false, got null"),
        ("optimizer: fier", "did you mean fire?"),
        ("head: 1", "head takes a text, got 1; write it in quotes"),
        ("head: ''", "head takes a text, got ''"),
        ("structures: [a, 1]", "structures takes some texts, got 1; write it in quotes"),
        ("overwrite: true", "overwrite replaces files, and is an option of the command line only"),
        ("overwrite: null", "an option of the command line only"),
    ],
)
def test_values_are_checked(tmp_path, capsys, text, message):
    (tmp_path / "options.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["relax", "m", "s", "--output", "o", "--config", str(tmp_path / "options.yaml")])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 2


def test_numbers_as_they_are_written(tmp_path):
    (tmp_path / "o.yaml").write_text("fmax: 1e-3\nsteps: 7\noverwrite: false\n", encoding="utf-8")
    read = build_parser().parse_args(["relax", "m", "s", "--output", "o", "--config", str(tmp_path / "o.yaml")])[
        "relax"
    ]
    assert (read.fmax, read.steps, read.overwrite) == (1e-3, 7, False)


def test_near_names_in_config_files(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("loss: {knd: mse}", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "options.yaml")])
    assert "'knd' is no option here; did you mean kind?" in capsys.readouterr().err


GIVEN = {
    "fit": [
        "m",
        "t",
        "--output",
        "o",
        "--method",
        "ewc",
        "--freeze",
        "a*",
        "b",
        "--loss.kind",
        "mse",
        "--valid",
        "null",
    ],
    "relax": ["m", "a b.xyz", "--output", "o: #1", "--cell", "--fmax", "1e-5", "--max-edges", "7"],
    "md": ["m", "s", "--output", "o", "--repeat", "2", "2", "1", "--ensemble", "npt", "--pressure", "-0.5"],
    "evaluate": ["m", "f", "g", "--reference", "target"],
    "validate": ["m", "--checks", "phonons", "dimers", "--against", "7net-0"],
    "report": ["r", "s", "--output", "o.html", "--names", "yes", "1.5"],
    "fisher": ["m", "--output", "f", "--kind", "empirical", "--probes", "3", "--loss.huber_delta", "0.02"],
    "models": ["mace", "--json"],
    "export": ["m", "p", "--head", "null"],
    "doctor": ["--self_test", "false"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("spelling", ["--print-config", "--print_config"])
def test_templates_are_read_back(tmp_path, capsys, verb, spelling):
    """What is printed says the same as the options it was printed for, and every option has its comment."""
    with pytest.raises(SystemExit) as caught:
        main([verb, spelling, *GIVEN[verb]])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    (tmp_path / "template.yaml").write_text(text, encoding="utf-8")
    expected = build_parser().parse_args([verb, *GIVEN[verb]])[verb].as_dict()
    read = build_parser().parse_args([verb, "--config", str(tmp_path / "template.yaml")])[verb].as_dict()
    del expected["config"], read["config"]
    assert read == expected
    lines = [line.strip() for line in text.splitlines()]
    values = [place for place, line in enumerate(lines) if not line.startswith("#") and ": " in line]
    assert len(values) >= 2
    assert all(lines[place - 1].startswith("# ") for place in values)


def test_templates_need_nothing(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["relax", "--print_config"])
    assert caught.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] is None
