import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from protojax import cli, naming, recognise, weights
from protojax.networks.backbones import BACKBONES


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """Weights that are all zero but for the classifier's bias, by which class 1 wins, then 2."""
    module = BACKBONES["efficientnet_lite0"].module(classes=3)
    rows = naming.wanted(module, weights.table_of("efficientnet_lite0"), 0)
    tensors = {row.names[0]: np.zeros(row.shape_of_each(), np.float32) for row in rows}
    tensors["classifier.bias"] = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(tensors, path)
    return path


def _photo(folder):
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "a.png")
    return str(folder / "a.png")


def test_the_most_probable_classes_by_name(lite0, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    command = ["recognise", _photo(tmp_path), "--network", "efficientnet_lite0", "--weights", str(lite0)]
    assert cli.main([*command, "--names", str(tmp_path / "names.txt"), "--top", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a.png\n   60.00 %  dog\n   30.00 %  bird\n"
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert cli.main([*command, "--names", str(tmp_path / "names.txt")]) == 2
    assert "lite0.safetensors: has 3 classes, but there are 2 names" in capsys.readouterr().err
    assert cli.main([*command, "--top", "0"]) == 2
    assert "--top 0: show at least 1 class" in capsys.readouterr().err
    command[3] = "efficientnet_lite"
    assert cli.main(command) == 2
    assert "--network: no 'efficientnet_lite'; did you mean 'efficientnet_lite0'?" in capsys.readouterr().err


def test_names_are_lines_or_json(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"0": "cat", "1": "dog"}')
    assert recognise.read_names(path) == ["cat", "dog"]
    path.write_text('["cat", "dog"]')
    assert recognise.read_names(path) == ["cat", "dog"]
    for text, message in (
        ('{"1": "cat"}', "names.json: names no class '0': number them from '0'"),
        ("[1, 2]", "names.json: cannot be read as names of classes: neither a list of texts nor"),
        ("[", "names.json: cannot be read as names of classes: "),
    ):
        path.write_text(text)
        with pytest.raises(weights.WeightsError, match=message):
            recognise.read_names(path)
    with pytest.raises(weights.WeightsError, match="none.txt: cannot be read as names of classes"):
        recognise.read_names(tmp_path / "none.txt")
