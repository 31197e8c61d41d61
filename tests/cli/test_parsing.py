from __future__ import annotations

import pytest

from ase_finetune.cli import build_parser
from ase_finetune.cli.main import main
from ase_finetune.cli.verbs import VERBS

RELAX = ["relax", "model", "a.xyz", "--output", "out.xyz"]


def parsed(*words):
    found = build_parser().parse_args(words)
    return found[found.command]


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_dashes_are_underscores():
    assert parsed(*RELAX, "--max-edges", "300").max_edges == 300
    assert parsed(*RELAX, "--max_edges=300").max_edges == 300
    options = parsed("fit", "m", "t", "--output", "o", "--bptt.valid-fmax=0.1", "--learning-rate", "1e-3")
    assert (options.bptt.valid_fmax, options.learning_rate) == (0.1, 1e-3)
    assert parsed("relax", "my-model", "a-b.xyz", "--output", "c-d.xyz").output == "c-d.xyz"


def test_arguments_may_stand_anywhere():
    options = parsed("relax", "--fmax", "0.1", "model", "--cell", "a.xyz", "b.xyz", "--output", "out.xyz")
    assert (options.model, options.structures, options.cell, options.fmax) == ("model", ["a.xyz", "b.xyz"], True, 0.1)
    options = parsed("fit", "model", "--epochs", "3", "train", "--output", "o")
    assert (options.model, options.train, options.epochs) == ("model", "train", 3)


def test_options_before_and_behind_the_verb():
    assert parsed("-v", *RELAX).verbose
    assert parsed(*RELAX, "--verbose").verbose
    assert parsed("--quiet", "--debug", *RELAX).debug
    assert parsed(*RELAX, "-q").quiet
    assert not parsed(*RELAX).quiet


def test_lists():
    fit = ["fit", "m", "t", "--output", "o"]
    assert parsed(*fit, "--freeze", "a*", "b", "--epochs", "2").freeze == ["a*", "b"]
    assert parsed(*fit, "--freeze", "[ab]*", "[0-9]").freeze == ["[ab]*", "[0-9]"]
    assert parsed(*fit, "--freeze", "[a, b]").freeze == ["[a, b]"]
    assert parsed(*fit, "--freeze", "[]").freeze == []
    assert parsed("md", "m", "s", "--output", "o", "--repeat", "[2, 1,3]").repeat == [2, 1, 3]
    assert parsed(*fit).freeze == []
    assert parsed(*fit, "--relaxations", "x", "y").relaxations == ["x", "y"]
    assert parsed(*fit, "--valid_relaxations", "x", "y").valid_relaxations == ["x", "y"]
    assert parsed(*fit, "--valid_relaxations", "0.3").valid_relaxations == 0.3
    assert parsed(*fit, "--valid", "null").valid is None
    assert parsed("md", "m", "s", "--output", "o", "--repeat", "2", "1", "3").repeat == [2, 1, 3]


def test_values_that_look_like_others():
    fit = ["fit", "m", "t", "--output", "o"]
    assert parsed(*fit, "--ewc_lambda", "-1").ewc_lambda == -1
    assert parsed("relax", "--output=-o.xyz", "m", "--", "--strange.xyz").structures == ["--strange.xyz"]
    # A switch may have a value, as in a config file.
    assert parsed(*fit, "--drop_outliers", "true").drop_outliers is True
    assert parsed(*fit, "--drop_outliers=false").drop_outliers is False
    assert parsed(*fit, "--drop_outliers").drop_outliers is True


def test_the_line_overrides_the_file(tmp_path):
    (tmp_path / "o.yaml").write_text(
        "model: m\nstructures: [x.xyz, y.xyz]\noutput: o\nfmax: 0.3\nsteps: 7\ncell: true\n"
    )
    config = ["--config", str(tmp_path / "o.yaml")]
    for words in (["relax", "--fmax", "0.2", *config], ["relax", *config, "--fmax", "0.2"]):
        options = parsed(*words)
        assert (options.model, options.structures, options.output) == ("m", ["x.xyz", "y.xyz"], "o")
        assert (options.fmax, options.steps, options.cell) == (0.2, 7, True)
    assert parsed("relax", "other", "z.xyz", *config).structures == ["z.xyz"]
    assert parsed("relax", *config, "--cell", "false").cell is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["relx"], "there is no verb 'relx'; did you mean relax?"),
        (["xyz"], "there is no verb 'xyz'; use one of fit, relax"),
        (["--verbos", "fit"], "did you mean --verbose"),
        ([*RELAX, "--max_egdes", "3"], "there is no option --max_egdes; did you mean --max_edges?"),
        ([*RELAX, "--stepz=3"], "there is no option --stepz; did you mean --steps"),
        ([*RELAX, "--step", "3"], "there is no option --step; did you mean --steps"),
        ([*RELAX, "-x"], "there is no option -x"),
        ([*RELAX, "--optimizer", "fier"], "--optimizer takes one of fire, lbfgs, gradient-descent, got 'fier'"),
        ([*RELAX, "--optimizer", "fier"], "did you mean fire?"),
        ([*RELAX, "--fmax", "small"], "--fmax takes a number, got 'small'"),
        ([*RELAX, "--steps", "1.5"], "--steps takes a whole number, got '1.5'"),
        ([*RELAX, "--fmax"], "--fmax takes a number, and nothing follows"),
        (["relax", "model"], "STRUCTURES, --output are missing"),
        (["export", "model"], "PATH is missing"),
        (["export", "model", "a", "b"], "'b' is one too many: export takes MODEL PATH"),
        (["doctor", "me"], "'me' is one too many: doctor takes no arguments"),
        (["fit", "m", "t", "--output", "o", "--relaxations", "x"], "--relaxations takes 2 values, got x"),
        (["md", "m", "s", "--output", "o", "--repeat", "2"], "--repeat takes 3 values"),
        ([*RELAX, "--fmax", "1", "--fmax", "2"], "--fmax is given twice"),
        ([*RELAX, "--config", "a.yaml", "--config", "b.yaml"], "--config is given twice"),
        ([*RELAX, "--structures", "b"], "'a.xyz' is one too many: relax takes MODEL STRUCTURES, and --structures is"),
        (["validate", "--structures", "POSCAR", "m"], "MODEL is missing; --structures has taken POSCAR m, so write"),
        ([*RELAX, "--cell="], "--cell takes true or false, got an empty text"),
        ([*RELAX, "--cell=maybe"], "--cell takes true or false, got 'maybe'"),
        ([*RELAX, "--fmax", "nan"], "--fmax takes a number that is finite, got nan"),
        ([*RELAX, "--fmax", "0x10"], "--fmax takes a number, got '0x10'"),
        ([*RELAX, "--fmax", "null"], "--fmax takes a number, got 'null'"),
        ([*RELAX, "--head", ""], "--head takes a text, got an empty text"),
        (["relax", "m", "a", "--output", ""], "--output takes a text, got an empty text"),
        (["relax", "m", "", "--output", "o"], "STRUCTURES takes some texts, got an empty text"),
        ([*RELAX, "-fmax", "1"], "there is no option -fmax; did you mean --fmax"),
        (["md", "m", "s", "--output", "o", "--repeat", "2", "1.5", "2"], "takes 3 whole numbers, got '1.5'"),
        ([*RELAX, "--config", "/dev/null"], "it is a pipe or a device, and must be a regular file"),
        (["--print_completion", "cmd"], "--print-completion takes one of bash, zsh, tcsh"),
        ([*RELAX, "--config", "none.yaml"], "the config file none.yaml cannot be used: there is no such file"),
    ],
)
def test_what_is_not_understood(capsys, words, message):
    told = refused(capsys, *words)
    assert message in told
    assert told.startswith("ase-finetune")
    assert len(told.splitlines()) == 2
    assert "--help)" in told


@pytest.mark.parametrize("verb", VERBS)
def test_abbreviations_are_refused(capsys, verb):
    assert "there is no option --hel; did you mean --help" in refused(capsys, verb, "--hel")


@pytest.mark.parametrize("text", ["010", "1:30", "~", "# x", "[a]", "{a: b}", "yes", "1e5", "2020-01-01", "'q'", " x "])
def test_words_are_texts(text):
    assert parsed(*RELAX, "--head", text).head == text
    assert parsed("relax", "m", text, "--output", text).structures == [text]


def test_null_is_none():
    assert parsed(*RELAX, "--head", "null").head is None
    assert parsed(*RELAX, "--max_edges", "null").max_edges is None


@pytest.mark.parametrize(
    ("word", "value"), [("True", True), ("False", False), ("yes", True), ("no", False), ("0", False), ("1", True)]
)
def test_booleans(word, value):
    assert parsed(*RELAX, f"--cell={word}").cell is value
    assert parsed(*RELAX, "--cell", word).cell is value
    assert parsed("doctor", "--self_test", word).self_test is value


def test_short_switches_together():
    options = parsed("-vq", *RELAX)
    assert options.verbose
    assert options.quiet
    assert parsed(*RELAX, "-qv").verbose
    assert parsed("--debug=true", *RELAX).debug
    assert not parsed(*RELAX, "--debug=false").debug


def test_arguments_that_the_file_has_are_skipped(tmp_path, capsys):
    file = tmp_path / "o.yaml"
    words = ["relax", "--output", "o", "--config", str(file)]
    file.write_text("model: m\n")
    options = parsed(*words, "a.xyz")
    assert (options.model, options.structures) == ("m", ["a.xyz"])
    options = parsed("relax", "--output", "o", "--model", "m", "a.xyz", "b.xyz")
    assert (options.model, options.structures) == ("m", ["a.xyz", "b.xyz"])
    file.write_text("model: m\nstructures: [x.xyz]\n")
    assert parsed(*words, "n", "a.xyz").model == "n"
    assert "what is 'n'? The config file has all arguments" in refused(capsys, *words, "n")
