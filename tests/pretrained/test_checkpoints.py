"""Published checkpoints by name: the registry, and weights from a local hub."""

import hashlib
import pathlib
import re
import shutil
import urllib.parse

import numpy as np
import pytest
from golden_case import GoldenCase
from hub_address import set_hub
from safetensors.numpy import save
from server import File, running

import keras_nfnets
from keras_nfnets import pretrained
from keras_nfnets.pretrained import weights

COMMIT = "0123456789abcdef" * 2 + "01234567"
# Network -> hash in the name of timm's release file.
RELEASES = {
    "dm_nfnet_f0": "604f9c3a",
    "dm_nfnet_f1": "fc540f82",
    "dm_nfnet_f2": "89875923",
    "dm_nfnet_f3": "d74ab3aa",
    "dm_nfnet_f4": "0ac5b10b",
    "dm_nfnet_f5": "ecb20ab1",
    "dm_nfnet_f6": "e0f12116",
    "nfnet_l0": "45c6688d",
    "eca_nfnet_l0": "e3e9ac50",
    "eca_nfnet_l1": "7dce93cd",
    "eca_nfnet_l2": "da781a61",
    "nf_regnet_b1": "ad85cfef",
    "nf_resnet50": "9f236009",
    "test_nfnet": None,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Local hub that has test_nfnet, with weights by the rule of the golden data."""
    from huggingface_hub import constants

    content = save(GoldenCase("timm_test_nfnet").parameters)
    with running() as server:
        set_hub(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for revision in ("main", COMMIT):
            path = f"/timm/test_nfnet.r160_in1k/resolve/{revision}/model.safetensors"
            digest = hashlib.sha256(content).hexdigest()
            server.files[path] = File(
                content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
            )
        yield server


def test_all_published_checkpoints_are_registered():
    checkpoints = {c.network: c for c in pretrained.list_checkpoints()}
    assert checkpoints.pop("NFNetTiny").name == "digits"
    assert checkpoints.keys() == RELEASES.keys()
    for network, checkpoint in checkpoints.items():
        assert checkpoint.release_sha256 == RELEASES[network]
        if checkpoint.release:
            assert f"-{checkpoint.release_sha256}.pth" in checkpoint.release
        assert checkpoint.repo == f"timm/{checkpoint.name}"
        assert checkpoint.name.startswith(network + ".")
        assert checkpoint.licence == "apache-2.0"
        assert checkpoint.classes == 1000
        assert 40 < checkpoint.top1 < 90
        assert checkpoint.crop_mode in ("center", "squash")
        assert checkpoint.train_size <= checkpoint.size
        assert bool(checkpoint.authors_url) == network.startswith("dm_")
    urls = [c.authors_url for c in checkpoints.values() if c.authors_url]
    assert urls == [
        f"https://storage.googleapis.com/dm-nfnets/F{n}_haiku.npz" for n in range(7)
    ]
    assert all(urllib.parse.urlsplit(url).path for url in urls)


def test_names_of_weights_are_found():
    def found(constructor, weights="imagenet", **options):
        return pretrained.find(weights, constructor.architecture(**options)).name

    assert found(keras_nfnets.NFNetF0) == "dm_nfnet_f0.dm_in1k"
    assert found(keras_nfnets.NFNetF6, classes=10) == "dm_nfnet_f6.dm_in1k"
    assert found(keras_nfnets.ECANFNetL2) == "eca_nfnet_l2.ra3_in1k"
    assert found(keras_nfnets.NFResNet50, convention="timm") == "nf_resnet50.ra2_in1k"
    assert found(keras_nfnets.NFRegNetB1, convention="timm") == "nf_regnet_b1.ra2_in1k"
    for name in ("F3_haiku.npz", "F3_haiku", "dm_nfnet_f3.dm_in1k"):
        assert found(keras_nfnets.NFNetF3, name) == name
    assert found(keras_nfnets.NFNetTiny, "digits", drop_rate=0.5) == "digits"


@pytest.mark.parametrize(
    "make, message",
    [
        # Networks without published ImageNet weights by the authors.
        (lambda: keras_nfnets.NFResNet50(weights="imagenet"), "nf_resnet50.ra2_in1k"),
        (lambda: keras_nfnets.NFRegNetB1(weights="imagenet"), "no published"),
        (lambda: keras_nfnets.NFNetF7Plus(weights="imagenet"), "dm_nfnet_f0"),
        (lambda: keras_nfnets.NFNetTiny(weights="imagenet"), "digits"),
        # With another activation, the weights would compute something else.
        (
            lambda: keras_nfnets.NFNetF0(weights="imagenet", activation="relu"),
            "activation='relu'",
        ),
        (
            lambda: keras_nfnets.NFNetL0(weights="eca_nfnet_l0.ra2_in1k"),
            r"of another network. Create that by pretrained.create\('eca_nfnet_l0'",
        ),
        (
            lambda: keras_nfnets.NFNetF0(weights="dm_nfnet_f0.dm_in21k"),
            "perhaps dm_nfnet_f0.dm_in1k",
        ),
        (lambda: keras_nfnets.NFNetF0(weights="Imagenet"), "perhaps imagenet?"),
        (lambda: keras_nfnets.NFNetTiny(weights=b"x"), "Received: weights="),
        (lambda: keras_nfnets.NFNetTiny(weights="a\0b"), "Received: weights="),
        (lambda: keras_nfnets.NFNetTiny(weights=__file__), "A weight file must end in"),
    ],
)
def test_unknown_weights_are_errors_that_suggest_others(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_checkpoints_of_unknown_accuracy_are_listed_last(monkeypatch):
    [known] = pretrained.published(keras_nfnets.NFNetL0.architecture())
    unknown = known._replace(name="unknown", top1=None)
    monkeypatch.setattr(weights, "list_checkpoints", lambda: [unknown, known])
    found = pretrained.published(keras_nfnets.NFNetL0.architecture())
    assert found == [known, unknown]


def test_weights_by_name_come_from_the_hub_and_then_from_its_cache(hub, monkeypatch):
    from huggingface_hub import constants

    expected = GoldenCase("timm_test_nfnet")
    model = keras_nfnets.NFNetTest(weights="imagenet", classifier_activation=None)
    logits = model(expected.images)
    np.testing.assert_allclose(logits, expected.outputs["logits"], atol=1e-4)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for again in (
        pretrained.create("test_nfnet", weights="test_nfnet.r160_in1k"),
        pretrained.create("test_nfnet.r160_in1k"),
    ):
        for a, b in zip(again.get_weights(), model.get_weights()):
            np.testing.assert_array_equal(a, b)
    assert len(hub.requests) == asked


def test_a_failed_download_is_an_error_with_the_url(hub):
    hub.files.clear()
    with pytest.raises(ConnectionError, match="test_nfnet.r160_in1k.*HTTP 404"):
        keras_nfnets.NFNetTest(weights="imagenet")


def test_the_authors_file_comes_from_the_authors(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    golden = pathlib.Path(__file__).parent.parent / "golden"
    content = (golden / "deepmind_release_dict.npz").read_bytes()
    [checkpoint] = [
        c for c in pretrained.list_checkpoints() if c.network == "dm_nfnet_f2"
    ]
    assert checkpoint.names[1:] == ("F2_haiku.npz", "F2_haiku")
    with running() as server:
        server.files["/dm/F2_haiku.npz"] = File(content)
        mirror = checkpoint._replace(
            authors_url=server.url + "/dm/F2_haiku.npz",
            authors_md5=hashlib.md5(content).hexdigest(),
        )
        assert mirror.fetch("F2_haiku").read_bytes() == content
        wrong = mirror._replace(authors_md5=checkpoint.authors_md5)
        with (
            pytest.warns(UserWarning, match="The MD5 of .* is not 7a018d8d"),
            pytest.raises(ValueError, match="md5 checksum .*Expected: 7a018d8d"),
        ):
            wrong.fetch("F2_haiku.npz")


def test_a_file_takes_precedence_over_a_checkpoint_of_its_name(
    tmp_path, monkeypatch, nfnet_tiny
):
    monkeypatch.chdir(tmp_path)
    golden = pathlib.Path(__file__).parent.parent / "golden"
    shutil.copy(golden / "deepmind_release_dict.npz", "F0_haiku.npz")
    model = nfnet_tiny(weights="F0_haiku.npz")
    case = GoldenCase("haiku_nfnet_tiny")
    logits = model(case.images)
    np.testing.assert_allclose(logits, case.outputs["out/logits"], atol=1e-4)


@pytest.mark.parametrize("kind", ["dict", "flatmapping"])
def test_the_authors_files_load(kind, nfnet_tiny):
    golden = pathlib.Path(__file__).parent.parent / "golden"
    path = golden / f"deepmind_release_{kind}.npz"
    case = GoldenCase("haiku_nfnet_tiny")
    model, by_weights = nfnet_tiny(), nfnet_tiny(weights=path)
    pretrained.load_deepmind(model, path)
    for a, b in zip(model.get_weights(), by_weights.get_weights()):
        np.testing.assert_array_equal(a, b)
    logits = model(case.images)
    np.testing.assert_allclose(logits, case.outputs["out/logits"], atol=1e-4)


def test_the_page_about_the_weights_agrees_with_the_registry():
    page = pathlib.Path(__file__).parent.parent.parent / "weights" / "README.md"
    rows = re.findall(
        r"^\| `([\w.]+)` \| `(\w+)` \| (\d+) / (\d+) \| ([\d.]+) (\w+) \| ([\d.]+) \|",
        page.read_text(),
        flags=re.MULTILINE,
    )
    assert rows == [
        (
            c.name,
            c.network,
            str(c.train_size),
            str(c.size),
            f"{c.crop:g}",
            c.crop_mode,
            f"{c.top1:.2f}",
        )
        for c in pretrained.list_checkpoints()
    ]
