"""Folders of labeled images: which splits, classes and images are found."""

import os
import pathlib
import unicodedata

import pytest
from PIL import Image

from keras_nfnets import data


def write(root, *names):
    """Write files that differ; they are listed by their names and never decoded."""
    for name in names:
        path = pathlib.Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(path))


def write_classes(folder, classes=("cats", "dogs"), count=5):
    write(folder, *(f"{name}/{i}.jpg" for name in classes for i in range(count)))


def names_of(source, split):
    return [os.path.relpath(path, source.name) for path, _ in source.files(split)]


@pytest.mark.parametrize(
    "train, other, split",
    [
        ("training_set", "test_set", "test"),
        ("training", "validation", "validation"),
        ("train", "dev", "validation"),
        ("Train", "Val", "validation"),
        ("train_images", "val_images", "validation"),
        ("train-data", "eval-data", "validation"),
        ("TRAIN_SET", "VAL-SET", "validation"),
        ("trn", "tst", "test"),
        ("training set", "Testing Set", "test"),
        ("trainset", "evaluation", "validation"),
        ("images_train", "images_valid", "validation"),
        ("train2017", "val2017", "validation"),
        ("01_train", "02_test", "test"),
        ("train", "test1", "test"),
        ("flowers_train", "flowers_dev", "validation"),
        ("seg_train", "seg_test", "test"),
    ],
)
def test_the_usual_names_of_splits_are_known(train, other, split, tmp_path):
    write_classes(tmp_path / train)
    write_classes(tmp_path / other, count=2)
    source = data.find(tmp_path)
    assert source.class_names == ["cats", "dogs"]
    assert source.splits == {"train": 10, split: 4}
    assert {pathlib.Path(name).parts[0] for name in names_of(source, split)} == {other}


@pytest.mark.parametrize(
    "classes",
    [
        ("train", "bus", "car"),
        ("valid", "invalid"),
        ("test", "control"),
        ("test1", "test2"),
        ("bullet_train", "steam_train"),
        ("trains", "tests"),
        ("devices", "values"),
    ],
)
def test_classes_are_not_taken_for_splits(classes, tmp_path):
    write_classes(tmp_path, classes)
    source = data.find(tmp_path)
    assert source.class_names == sorted(classes)
    assert source.splits.keys() == {"train", "test"} and not source.notes


@pytest.mark.parametrize(
    "train, others",
    [
        ("train", ("val", "valid")),
        ("train", ("test", "Test-Set")),
        ("train", ("training",)),
    ],
)
def test_two_folders_for_a_split_are_an_error_that_names_both(train, others, tmp_path):
    for name in (train, *others):
        write_classes(tmp_path / name)
    with pytest.raises(ValueError, match="must be one folder") as error:
        data.find(tmp_path)
    both = sorted(others if others[1:] else (train, *others))
    assert f"Received: {', '.join(both)}\n" in str(error.value)


@pytest.mark.parametrize("name", ["test", "test_images", "unlabeled", "pred"])
def test_a_folder_of_unlabeled_images_next_to_train_is_left_out(name, tmp_path):
    write_classes(tmp_path / "train", count=20)
    alone = data.find(tmp_path)
    write(tmp_path / name, "1.jpg", "2.jpg", "annotations/1.xml")
    if name in ("unlabeled", "pred"):
        (tmp_path / name / "annotations" / "1.xml").unlink()
        (tmp_path / name / "annotations").rmdir()
    source = data.find(tmp_path)
    assert source.class_names == ["cats", "dogs"]
    for split in ("train", "test"):
        assert source.files(split) == alone.files(split)
    [note] = source.notes
    assert note == (
        f"Folder {name} was left out, as it has no class folders, so its images have "
        "no labels."
    )
    # Other splits with labels are used.
    write_classes(tmp_path / "val", count=1)
    assert data.find(tmp_path).splits == {"train": 40, "validation": 2}


def test_folders_without_images_next_to_splits_do_not_matter(tmp_path):
    write_classes(tmp_path / "train")
    alone = data.find(tmp_path).splits
    write(tmp_path, "annotations/cats/1.xml", "labels.csv", "__MACOSX/train/._1.jpg")
    source = data.find(tmp_path)
    assert source.class_names == ["cats", "dogs"] and source.splits == alone
    write_classes(tmp_path / "test")
    write_classes(tmp_path / "more")
    assert "Folder more was left out" in data.find(tmp_path).notes[0]


def test_a_split_with_an_unknown_name_is_an_error(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "holdout")
    with pytest.raises(
        ValueError, match="'train' looks like a split.* Received: holdout\n"
    ):
        data.find(tmp_path)


def test_classes_that_only_another_split_has_are_an_error(tmp_path):
    write_classes(tmp_path / "train")
    write(tmp_path, "test/test/1.jpg")
    with pytest.raises(
        ValueError, match="images without labels elsewhere. Received: test\n"
    ) as error:
        data.find(tmp_path)
    assert "    test/  1 image, split 'test'\n      test/  1 image\n" in str(
        error.value
    )


def test_a_missing_folder_of_training_images_is_an_error(tmp_path):
    write_classes(tmp_path / "val")
    write_classes(tmp_path / "test")
    with pytest.raises(
        ValueError, match="none of training images.* Received: test, val"
    ):
        data.find(tmp_path)


@pytest.mark.parametrize("inner", ["dataset", "dataset/dataset", "train", "data/train"])
def test_class_folders_further_inside_are_named(inner, tmp_path):
    write_classes(tmp_path / "download" / inner)
    write(tmp_path / "download", ".DS_Store", "__MACOSX/._x.jpg", "README.txt")
    if inner == "train":
        assert data.find(tmp_path / "download").class_names == ["cats", "dogs"]
        received, inner = tmp_path, "download/train"
    else:
        received = tmp_path / "download"
        inner = f"download/{inner}"
    with pytest.raises(ValueError, match="class folders are in ") as error:
        data.find(received)
    assert f"Give that folder, or move them up. Received: {received}\n" in str(
        error.value
    )
    assert repr(str(tmp_path / inner)) in str(error.value)
    assert data.find(tmp_path / inner).class_names == ["cats", "dogs"]


def test_splits_inside_a_folder_of_the_same_name_are_an_error(tmp_path):
    write_classes(tmp_path / "seg_train" / "seg_train")
    write_classes(tmp_path / "seg_test" / "seg_test")
    write(tmp_path, "seg_pred/seg_pred/1.jpg")
    with pytest.raises(ValueError, match="class folders are in .*seg_train/seg_train'"):
        data.find(tmp_path)


def test_errors_show_the_folder_and_the_layouts_that_are_expected(tmp_path):
    root = tmp_path / "animals"
    write_classes(root / "train", ("cats", "dogs", *"abcdefgh"), count=2)
    write(root, "val/cats/1.jpg", "val/dogs/old/notes.txt", "val/dogs/2.HEIC")
    with pytest.raises(ValueError, match="class folder has no images") as error:
        data.find(root)
    first, *lines = str(error.value).splitlines()
    assert first.endswith(
        f"Received: {root}/val/dogs, which has 2 files with other extensions: "
        ".heic (1), .txt (1)"
    )
    assert lines[:4] == [
        "The folder contains",
        "  animals/  21 images",
        "    train/  20 images, split 'train'",
        "      a/  2 images",
    ]
    assert "      and 4 more" in lines
    assert "    val/  1 image, split 'validation'" in lines
    assert "  train/cats/1.jpg, train/dogs/2.jpg, validation/cats/3.jpg, ..." in lines


def test_images_without_class_folders_are_an_error(tmp_path):
    write(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    with pytest.raises(
        ValueError, match="train has no class folders.* 2 images without"
    ):
        data.find(tmp_path)
    with pytest.raises(ValueError, match="has no class folders.* 1 image without"):
        data.find(tmp_path / "test")


def test_images_in_subfolders_belong_to_the_class_and_are_noted(tmp_path):
    write_classes(tmp_path)
    write(tmp_path, "cats/old/1.jpg", "cats/old/older/2.jpg")
    source = data.find(tmp_path)
    assert sum(source.splits.values()) == 12
    [note] = source.notes
    assert note.startswith("2 training images in subfolders of class folders")
    assert "such as cats/old/1.jpg, got the class of the outer folder." in note
    # Perhaps the outer folders are splits.
    write_classes(tmp_path / "folds" / "a")
    write_classes(tmp_path / "folds" / "b")
    with pytest.raises(ValueError, match=r"name the folders above .*: cats, dogs\n"):
        data.find(tmp_path / "folds")


def test_folders_without_training_images_are_for_evaluation_only(tmp_path):
    write_classes(tmp_path / "val", ("cats", "dogs"))
    write_classes(tmp_path / "test", ("dogs",))
    with pytest.raises(ValueError, match="none of training images"):
        data.find(tmp_path)
    source = data.find(tmp_path, divide=False)
    assert source.class_names == ["cats", "dogs"]
    assert {label for _, label in source.files("test")} == {1}
    assert {label for _, label in source.files("validation")} == {0, 1}


def test_the_digest_knows_files_of_the_same_size_apart(tmp_path):
    for name in "ab":
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            shade = 100 * (name == "a") + i
            Image.new("RGB", (50, 50), (shade,) * 3).save(tmp_path / name / f"{i}.bmp")
    before = data.find(tmp_path).digest()
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    assert data.find(tmp_path).digest() != before


def test_class_names_may_differ_in_case_or_in_unicode_form_in_another_split(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Bücher") for form in ("NFC", "NFD"))
    write_classes(tmp_path / "train", (nfd, "Cats", "a", "A"))
    write_classes(tmp_path / "val", (nfc, "cats", "a"), count=2)
    source = data.find(tmp_path)
    assert source.class_names == ["A", nfc, "Cats", "a"]
    assert source.counts("validation") == [0, 2, 2, 2]
    assert source.notes == [
        (
            "Class 'cats' of split 'validation' was treated as class 'Cats', whose name differs only "
            "in case."
        ),
        "The names of classes A, a differ only in case.",
    ]
    write_classes(tmp_path / "train", (nfc,))
    with pytest.raises(ValueError, match="the same name, in two Unicode forms"):
        data.find(tmp_path)


def test_skipped_files_are_counted(tmp_path, caplog):
    write_classes(tmp_path)
    write(
        tmp_path,
        *(f"cats/{i}.heic" for i in range(15)),
        *(f"dogs/{i}.HEIC" for i in range(5)),
        *(f"cats/{i}.txt" for i in range(3)),
        *("cats/photo", "stray.png"),
        *("cats/._1.jpg", "cats/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "cats/Thumbs.db"),
        *("cats/SYNOPHOTO_THUMB_M.jpg", "@eaDir/1.jpg", "cats/.cache/notes.txt"),
        *("dogs/.thumbnails/1.png", "dogs/scan.jpe", "dogs/.DS_Store"),
    )
    source = data.find(tmp_path)
    assert sum(source.splits.values()) == 11
    assert source.notes == [
        "Skipped 1 image outside of class folders, such as stray.png.",
        "Skipped 24 files with other extensions: .heic (20), .txt (3), none (1).",
        "Skipped 4 hidden files or system thumbnails, such as cats/._1.jpg.",
    ]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: {note}" for note in source.notes
    ]
    # They are logged once, although `load` finds the folder for each split.
    data.find(tmp_path)
    assert len(caplog.records) == 3


def test_linked_files_and_folders_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    write_classes(root, count=20)
    before = data.find(root)
    write(elsewhere, "more/1.jpg", "b.jpg")
    (root / "cats" / "linked").symlink_to(elsewhere / "more")
    (root / "dogs" / "b.jpg").symlink_to(elsewhere / "b.jpg")
    (root / "birds").symlink_to(elsewhere)
    (root / "cats" / "0").symlink_to(root)
    (root / "cats" / "1").symlink_to(root / "cats")
    (elsewhere / "more" / "back").symlink_to(elsewhere)
    (root / "cats" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "cats" / "itself").symlink_to(root / "cats" / "itself")
    source = data.find(root)
    assert source.class_names == ["birds", "cats", "dogs"]
    total = [sum(counts) for counts in zip(*map(source.counts, source.splits))]
    # (The link `back` adds `b.jpg` to the class that has `more`.)
    assert total == [2, 22, 21]
    for split in ("train", "test"):
        assert set(names_of(before, split)) <= set(names_of(source, split))
    assert any(
        note.startswith("Skipped 6 links to a missing file") for note in source.notes
    )
    # A folder that is linked next to its own name keeps it.
    (root / "dogs" / "z").mkdir()
    write(root, "dogs/z/1.jpg")
    (root / "dogs" / "a").symlink_to(root / "dogs" / "z")
    found = data.find(root)
    names = names_of(found, "train") + names_of(found, "test")
    assert "dogs/z/1.jpg" in names and "dogs/a/1.jpg" not in names


def test_images_in_two_splits_are_counted(tmp_path):
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        write_classes(tmp_path / split, count=count)

    def contents(**names):
        for content, paths in names.items():
            for path in paths.split():
                (tmp_path / path).write_bytes(content.encode() + bytes(9999))

    contents(
        a="train/cats/1.jpg val/dogs/0.jpg test/cats/0.jpg",
        b="val/dogs/1.jpg test/cats/1.jpg",
        # Equal in size and in the middle.
        c="train/dogs/4.jpg",
        d="val/dogs/2.jpg",
        # Copies within a split do not matter.
        e="val/cats/1.jpg val/cats/2.jpg",
    )
    for split in ("train", "val"):
        (tmp_path / split / "cats" / "empty.jpg").touch()
    [note] = data.find(tmp_path).notes
    assert note == (
        "3 images of one split also occur in another, such as test/cats/0.jpg, "
        "which equals train/cats/1.jpg. Results on such images are misleading: remove the copies."
    )


def test_a_folder_called_as_a_data_set_of_tfds_is_used_and_says_so(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "cifar10")
    source = data.find("cifar10")
    assert source.class_names == ["cats", "dogs"]
    assert any("not the data set 'cifar10' of TensorFlow" in x for x in source.notes)
    assert "cifar10: This folder is used" in caplog.text
    assert data.find("./cifar10").notes == []
