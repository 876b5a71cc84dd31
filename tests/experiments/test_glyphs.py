import functools
import io
import pathlib
import string

import matplotlib
import numpy as np
import pytest
from fontTools import ttLib
from quick import quick

from keras_nfnets import experiments
from keras_nfnets.experiments import fitting, glyphs, images

OWN = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")


@pytest.fixture(autouse=True, scope="module")
def only_fonts_of_matplotlib():
    """Use only bundled fonts; cache opened fonts, as opening takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.font_manager.findSystemFonts", list)
        patch.setattr(glyphs, "_opened", functools.cache(glyphs._opened))
        patch.setattr(glyphs, "MIN_FAMILIES", 5)
        forget()
        yield
    forget()


@pytest.fixture
def installed(monkeypatch):
    """List of paths of additional fonts, empty at first."""
    paths = []
    monkeypatch.setattr(
        "matplotlib.font_manager.findSystemFonts", lambda: [str(p) for p in paths]
    )
    yield paths
    forget()


def forget():
    glyphs.read.cache_clear()
    glyphs.read_characters.cache_clear()
    images._splits.cache_clear()


def changed(path, change):
    """Write a copy of a font that `change` modifies; return its path."""
    with ttLib.TTFont(OWN / "DejaVuSans.ttf") as font:
        change(font)
        font.save(path)
    return path


def nothing(font):
    pass


def renamed(name):
    def change(font):
        for i in (1, 4, 16):
            font["name"].setName(name, i, 3, 1, 0x409)
            font["name"].removeNames(nameID=i, platformID=1)

    return change


def showing(letter, glyph):
    """Return a change that maps a letter to another glyph, or to none (None)."""

    def change(font):
        for table in font["cmap"].tables:
            if glyph is None:
                table.cmap.pop(ord(letter), None)
            elif ord(letter) in table.cmap:
                table.cmap[ord(letter)] = glyph

    return change


def slanted(font):
    """Slant the letters of a font so much that they differ from all other fonts."""
    for letter in string.ascii_letters:
        glyph = font["glyf"][letter]
        if not glyph.isComposite():
            glyph.coordinates.transform(((1, 0), (1, 1)))
            glyph.recalcBounds(font["glyf"])


def another(path):
    """Write a font of another family."""

    def change(font):
        renamed("Another")(font)
        slanted(font)

    return changed(path, change)


def boxed(font):
    """Make all letters of a font look the same."""
    for letter in string.ascii_letters:
        font["glyf"][letter] = font["glyf"]["H"]
        font["hmtx"][letter] = font["hmtx"]["H"]


def blank(font):
    """Replace the letter x of a font by a space."""
    font["glyf"]["x"] = font["glyf"]["space"]


def test_images_depend_only_on_the_fonts():
    x, y, group = glyphs.read()
    before = images._described("glyphs")
    forget()
    again = glyphs.read()
    for one, other in zip((x, y, group), again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert images._described("glyphs") == before
    assert before["fonts"] == len(glyphs.fonts()) == len(np.unique(group))


def test_images_of_a_font_do_not_depend_on_other_fonts(installed, tmp_path):
    x, *_ = glyphs.read()
    before = glyphs.fonts()
    added = another(tmp_path / "Another.ttf")
    installed.append(added)
    forget()
    more, _, more_group = glyphs.read()
    assert set(glyphs.fonts()) == {*before, added}
    assert images._described("glyphs")["fonts"] == len(before) + 1
    left = more_group != glyphs.fonts().index(added)
    np.testing.assert_array_equal(more[left], x)


def test_classes_are_letters_with_equally_many_images():
    x, y, group = glyphs.read()
    assert x.dtype == np.uint8 and x.shape[1:] == (28, 28)
    fonts = len(np.unique(group))
    np.testing.assert_array_equal(np.bincount(y), [2 * fonts] * 26)
    for i in range(fonts):
        np.testing.assert_array_equal(np.bincount(y[group == i]), [2] * 26)


def test_letters_are_complete_and_not_blank():
    x, _, _ = glyphs.read()
    assert (x.max(axis=(1, 2)) > 127).all()
    assert not x[:, [0, -1]].any() and not x[:, :, [0, -1]].any()
    high, wide = ((x.max(axis=axis) > 0).sum(axis=1) for axis in (2, 1))
    assert (np.maximum(high, wide) >= 14).all()
    assert len({picture.tobytes() for picture in x}) == len(x)


def test_letters_look_like_their_class():
    """Letters resemble the same letters of another font far more often than chance."""
    x, y, _ = glyphs.read()
    names = [path.name for path in glyphs.fonts()]
    [sans] = [i for i, name in enumerate(names) if name.startswith("DejaVuSansMono")]
    [roman] = [i for i, name in enumerate(names) if name.startswith("STIXGeneral")]
    of_font = x.reshape(len(names), 52, -1).astype("float32")
    of_font /= np.linalg.norm(of_font, axis=-1, keepdims=True)
    nearest = (of_font[sans] @ of_font[roman].T).argmax(axis=1)
    assert (y[:52][nearest] == y[:52]).mean() > 0.3  # chance level is 1 in 26


def test_no_family_is_in_both_splits():
    dataset = images.load({"dataset": "glyphs"})
    chosen = glyphs.fonts()
    families = [glyphs._family(path) for path in chosen]
    assert len(set(families)) == len(families)
    assert sum(name.startswith("DejaVu Sans") for name in families) <= 2
    x, _, group = glyphs.read()
    family_of = {
        normal.tobytes(): families[i]
        for normal, i in zip(normalized(x), group, strict=True)
    }

    def families_in(batches):
        return {
            family_of[np.asarray(image).tobytes()]
            for i in range(len(batches))
            for image in batches[i][0]
        }

    train, test, _ = dataset.batches(len(x), 0)
    assert families_in(train) | families_in(test) == set(families)
    assert not families_in(train) & families_in(test)
    tuning_train, tuned_on, _ = dataset.batches(len(x), 0, tuning=True)
    assert families_in(tuning_train) | families_in(tuned_on) == families_in(train)
    assert not families_in(tuning_train) & families_in(tuned_on)


def normalized(x):
    x = x.astype("float32")[..., None]
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize(
    "change",
    [nothing, renamed("Another"), slanted],
    ids=["a copy", "another name", "another look"],
)
def test_fonts_of_one_name_or_shape_are_one_family(change, installed, tmp_path):
    before = len(glyphs.fonts())
    installed.append(changed(tmp_path / "Another.ttf", change))
    assert len(glyphs.fonts()) == before


@pytest.mark.parametrize(
    "change",
    [showing("q", None), showing("q", "alpha"), boxed, blank],
    ids=["missing", "a symbol", "boxes", "blank"],
)
def test_fonts_without_all_letters_are_skipped(change, tmp_path):
    assert glyphs._opened(changed(tmp_path / "whole.ttf", renamed("A"))).family == "A"
    assert glyphs._opened(changed(tmp_path / "other.ttf", change)) is None


def test_files_that_are_not_fonts_are_skipped(installed, tmp_path):
    before = glyphs.fonts()
    whole = io.BytesIO((OWN / "cmr10.ttf").read_bytes())
    contents = {"empty": b"", "text": b"no font", "part": whole.read(2000)}
    for name, content in contents.items():
        installed.append(tmp_path / f"{name}.ttf")
        installed[-1].write_bytes(content)
    installed.append(tmp_path / "gone.ttf")
    assert glyphs.fonts() == before


def test_at_most_max_families_are_drawn(monkeypatch):
    all_of_them = glyphs.fonts()
    monkeypatch.setattr(glyphs, "MAX_FAMILIES", 5)
    assert len(glyphs.fonts()) == 5 and set(glyphs.fonts()) < set(all_of_them)


def test_too_few_fonts_are_an_error_that_names_packages(monkeypatch):
    there = len(glyphs.fonts())
    forget()
    monkeypatch.setattr(glyphs, "MIN_FAMILIES", there + 1)
    with pytest.raises(ValueError, match=f"fonts-aenigma.*Received: {there} families"):
        images.load({"dataset": "glyphs"})
    monkeypatch.setattr(glyphs, "_paths", list)
    with pytest.raises(ValueError, match="Received: 0 families"):
        experiments.settings_of(experiments.find("bn_leaks"), "small", "glyphs")


@pytest.mark.parametrize(
    "name", quick(experiments.EXPERIMENTS, "batch_size", "bn_leaks", "bn_cost")
)
def test_settings_identify_the_images(name):
    experiment = experiments.find(name)
    settings = experiments.settings_of(experiment, "small", "glyphs")
    if experiment.measures_machine:
        assert "dataset" not in settings and "fonts" not in settings
        return
    assert settings["fonts"] == len(glyphs.fonts())
    examples = images.load(settings).training_examples
    assert all(size <= examples for size in settings.get("batch_sizes", ()))
    full = experiments.settings_of(experiment, "full", "glyphs")
    assert not any(key.endswith("_split") for key in full)


def test_results_of_other_fonts_are_not_continued(installed, tmp_path):
    experiment = experiments.find("bn_leaks")
    experiments.check_folder(
        tmp_path, experiments.settings_of(experiment, "small", "glyphs")
    )
    installed.append(another(tmp_path / "Another.ttf"))
    forget()
    settings = experiments.settings_of(experiment, "small", "glyphs")
    with pytest.raises(ValueError, match="Received: fonts="):
        experiments.check_folder(tmp_path, settings)


def test_characters_are_drawn_on_one_line_at_one_size():
    x, y, group = glyphs.read_characters()
    fonts = len(np.unique(group))
    assert x.shape[1:] == (16, 16) and x.dtype == np.uint8
    np.testing.assert_array_equal(y.reshape(fonts, 62)[0], np.arange(62))
    np.testing.assert_array_equal(group.reshape(fonts, 62)[:, 0], np.arange(fonts))
    assert (x.max(axis=(1, 2)) > 100).all()
    heights = (x.max(axis=2) > 60).sum(axis=1).reshape(fonts, 62)
    small, capital = (
        np.median(heights[:, [glyphs.CHARACTERS.index(c) for c in letters]])
        for letters in ("cosvwxz", "COSVWXZ")
    )
    assert capital > 1.2 * small


def test_fonts_without_digits_have_no_characters(tmp_path):
    def no_digit(font):
        font["glyf"]["seven"] = font["glyf"]["space"]

    def boxed_digits(font):
        for name in ("zero", "one", "two"):
            font["glyf"][name] = font["glyf"]["H"]
            font["hmtx"][name] = font["hmtx"]["H"]

    whole = glyphs._lines(changed(tmp_path / "whole.ttf", nothing))
    assert whole.shape == (62, 16, 16)
    for change in (no_digit, boxed_digits):
        assert glyphs._lines(changed(tmp_path / "other.ttf", change)) is None


@pytest.mark.slow
def test_glyphs_can_be_learned():
    settings = {
        **experiments.settings_of(experiments.find("batch_size"), "small", "glyphs"),
        "depths": [1],
        "epochs": 20,
    }
    _, row = fitting.train(
        settings, fitting.NORMALIZER_FREE, batch_size=32, learning_rate=0.8, seed=0
    )
    assert not row["diverged"] and row["accuracy"] > 0.3  # chance level is 1 in 26
