"""Help and wrong usage of the command line: nothing here trains."""

import os

import pytest

from protojax import cli, experiment, run_commands, values

EXPERIMENT = """
name = "tiny"
[encoder]
kind = "conv"
[method]
kind = "protoattend"
[train]
candidate_count = 8
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with an experiment and files to be wrong about."""
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    (tmp_path / "t.csv").write_text(
        "age,work,label\n" + "".join(f"{i},{'xyz'[i % 3]},{'ab'[i % 2]}\n" for i in range(40))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, words):
    """What a refused command says: one line, with exit status 2."""
    try:
        status = cli.main(words)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("protojax")
    return lines[0]


COMMANDS = [
    "prepare",
    "convert-weights",
    "recognise",
    "features",
    "train",
    "evaluate",
    "explain",
    "what-if",
    "edit",
    "database",
    "export",
]
VERBS = [f"database {verb}" for verb in ("build", "info", "remove", "relabel", "append")]


@pytest.mark.parametrize("command", ["", *COMMANDS, *VERBS])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "75 stopped by" in shown
    assert not command or f"example:\n  protojax {command} " in shown
    assert command or {*COMMANDS} <= {line.strip().split(" ")[0] for line in shown.splitlines()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the following arguments are required: COMMAND; see protojax --help"),
        ("train tiny.toml", "the following arguments are required: --workdir; see protojax train --help"),
        ("train tiny.toml --workdir w --bogus", "unknown argument --bogus; a setting is given as section.key=value"),
        ("explain --workdir w --least-confident x", "argument --least-confident: invalid int value: 'x'"),
        ("explain --workdir w --split all", "invalid choice: 'all'"),
        ("explain --workdir w --ids 3 --wrong", "--wrong: not allowed with argument --ids"),
        ("explain --workdir w --ids a,b", "--ids 'a,b': give whole numbers from 0, separated by commas, such as 3,7"),
        ("explain --workdir w --ids 3,,7", "--ids '3,,7': give whole numbers"),
        ("explain --workdir w --ids 3,7,3", "--ids '3,7,3': 3 stands there twice"),
        ("explain --workdir w --wrong --count 0", "--count 0: show at least 1 decision"),
        ("explain --workdir w --ids 3 --count 9", "say how many decisions are shown; leave --count out"),
        ("explain --workdir w --wrong", "w is no run folder: it has no run.json"),
        ("explain --workdir t.csv --wrong", "--workdir t.csv: t.csv is a file; give a folder"),
        ("evaluate --workdir t.csv/run", "is a file; give a folder"),
        ("evaluate", "one of the arguments --workdir --compare is required; see protojax evaluate --help"),
        ("evaluate --compare a", "argument --compare: expected 2 arguments"),
        ("evaluate --compare a b --workdir w", "--workdir: not allowed with argument --compare"),
        ("evaluate --compare a b", "a is no run folder: it has no run.json"),
        ("evaluate --compare a b evaluate.batch_size=3", "takes no settings, got evaluate.batch_size=3"),
        ("evaluate --workdir w --output o", "--output is where --compare writes"),
        ("train tiny.toml --workdir t.csv", "--workdir t.csv: t.csv is a file; give a folder"),
        ("train tiny.toml --workdir w --seeds a,b", "--seeds 'a,b': give whole numbers from 0"),
        ("train tiny.toml --workdir w --seeds=-1", "--seeds '-1': give whole numbers from 0"),
        ("train tiny.toml --workdir w --seeds 1,1", "--seeds '1,1': 1 stands there twice"),
        ("train tiny.toml --workdir w --processes 2", "--processes and --process-index need --coordinator HOST:PORT"),
        ("train absent.toml --workdir w", "absent.toml: no such experiment file"),
        ("train . --workdir w", ".: cannot be read as an experiment file: Is a directory"),
        ("train t.csv --workdir w", "t.csv: not valid TOML"),
        ("train tiny.toml --workdir w data.name=tab data.data_dir=absent", "no data set 'tab' is prepared in absent"),
        ("what-if --workdir w", "nothing to ask about: name candidates with --remove ID,... or --relabel ID=LABEL"),
        ("what-if --workdir w --remove x", "--remove 'x': give whole numbers from 0, separated by commas"),
        ("what-if --workdir w --remove 3 --ids 1,1", "--ids '1,1': 1 stands there twice"),
        ("what-if --workdir w --remove 0,1,00", "--remove '0,1,00': 0 stands there twice"),
        ("what-if --workdir w --remove 3 --count 0", "--count 0: show at least 1 decision"),
        ("what-if --workdir w --remove 3", "w is no run folder: it has no run.json"),
        ("what-if --workdir t.csv --remove 3", "--workdir t.csv: t.csv is a file; give a folder"),
        ("database", "the following arguments are required: VERB; see protojax database --help"),
        ("database info", "the following arguments are required: --workdir; see protojax database info --help"),
        ("database info --workdir w", "w is no run folder: it has no run.json"),
        ("database info --workdir w train.steps=3", "database info takes no settings, got train.steps=3"),
        ("database remove --workdir w", "the following arguments are required: --ids"),
        ("database remove --workdir w --ids 3,", "--ids '3,': give whole numbers"),
        ("database relabel --workdir w --ids 3", "the following arguments are required: --label"),
        ("database append --workdir w", "the following arguments are required: --split"),
        ("database append --workdir w --split all", "invalid choice: 'all'"),
        ("database build --workdir w --count x", "argument --count: invalid int value: 'x'"),
        ("export --workdir w", "the following arguments are required: --output"),
        ("export --workdir w --output t.csv", "t.csv is a file; give a folder"),
        ("export --workdir w --output .", ". holds files but no export"),
        ("export --workdir w --output new", "w is no run folder: it has no run.json"),
        ("explain --workdir w --ids 99999999999999999999", "99999999999999999999 is too large"),
        ("prepare csv t.csv --name Bad-Name", "'Bad-Name' cannot name a data set"),
        ("prepare csv t.csv --name t data.name=x", "prepare takes no settings, got data.name=x"),
        ("prepare csv t.csv", "prepare csv needs --name NAME"),
        ("prepare tfds mnist --name m", "--name means nothing for tfds; leave it out"),
        ("prepare tfds mnist --overwrite", "--overwrite means nothing for tfds; remove the folder"),
        ("prepare funnybirds x.tar --name t --test 0.1", "--test means nothing for funnybirds"),
        ("prepare csv t.csv --name t --image-size 8x8", "--image-size means nothing for csv; leave it out"),
        ("prepare text t.csv --name t --numeric age", "--numeric means nothing for text"),
        ("prepare idx . --name t --label age", "--label means nothing for idx"),
        ("prepare image-folder . --name t --image-size 8", "--image-size '8': give HEIGHTxWIDTH, such as 128x128"),
        ("prepare image-folder . --name t --image-size 0x8", "--image-size '0x8': give HEIGHTxWIDTH"),
        ("prepare csv t.csv --name t --numeric age,", "--numeric 'age,': a name is empty"),
        ("prepare csv t.csv --name t --numeric wrk", "t.csv: no column 'wrk'; did you mean 'work'?"),
        ("prepare csv t.csv --name t --numeric work", "t.csv, line 2, column 'work': 'x' is no finite number"),
        ("prepare csv t.csv --name t --label lab", "t.csv: no column 'lab'; did you mean 'label'?"),
        ("prepare csv t.csv --name t --test 1.5", "test is a share of the examples, in [0, 1), got 1.5"),
        ("prepare csv absent.csv --name t", "absent.csv: no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(here, capsys, command, message):
    words = command.split()
    if words[:1] == ["prepare"]:
        words += ["--data-dir", "sets"] * ("data.name=x" not in words)
    assert message in refused(capsys, words)
    assert sorted(path.name for path in here.iterdir()) == ["t.csv", "tiny.toml"]


def test_a_folder_that_cannot_be_written_is_refused(here, capsys, monkeypatch):
    # The superuser may write anywhere, so the answer of the system is given.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refused(capsys, ["train", "tiny.toml", "--workdir", "runs/w"])
    assert f"--workdir runs/w: no permission to write in {here}; give another folder" in message
    assert not (here / "runs").exists()


NAMES = ("cat", "dog", "7")


def test_a_label_is_a_name_or_a_number():
    assert [values.label(text, NAMES, "--label") for text in ("cat", "7", "0", "2")] == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="--label: no class 'dgo'; did you mean 'dog'. Give a name, .* from 0 to 2"):
        values.label("dgo", NAMES, "--label")
    # Nothing is near.
    for text in ("3", "-1", "-7", "17", "", "penguin"):
        with pytest.raises(ValueError, match=f"--label: no class '{text}'. Give a name, or a number from 0 to 2$"):
            values.label(text, NAMES, "--label")


def test_relabelling_is_read():
    assert values.relabelled("5=dog, 6=0", NAMES) == {5: 1, 6: 0}
    assert values.relabelled(None, NAMES) == {}
    for text, message in [
        ("5", "give ID=LABEL, separated by commas, such as 5=cat"),
        ("5=", "give ID=LABEL"),
        ("x=dog", "give ID=LABEL"),
        ("5=dog,5=cat", "5 stands there twice"),
        ("5=horse", "--relabel: no class 'horse'"),
    ]:
        with pytest.raises(ValueError, match=message):
            values.relabelled(text, NAMES)


def test_the_report_of_a_method_without_prototypes():
    one = {
        "accuracy": {"encoder": 0.5, "prototypes": None},
        "support": {"median": None},
        "prototypes_for": {"50": None, "90": None, "95": None},
        "reconstruction": {"mean_squared_error": 0.25},
    }
    expected = [
        "test accuracy of the encoder     0.5",
        "test accuracy of the prototypes  -",
        "support size, median             -",
        "prototypes for 50/90/95 %        - / - / -",
        "squared error of decoded pixels  0.25",
    ]
    assert run_commands.report_lines(one) == expected
    assert [line.replace(" +- 0", "") for line in run_commands.report_lines(experiment.spread([one, one]))] == expected
