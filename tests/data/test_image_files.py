"""Lists of image files."""

import pytest

from keras_nfnets import data


def test_folders_and_files_are_found(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("b.png", "A.JPG", "c.txt", "manual.pdf", "model.h5"):
        (folder / name).touch()
    (folder / "sub.png").mkdir()
    found = data.find_pictures([tmp_path / "a folder" / "c.txt", str(folder)])
    assert [path.name for path in found] == ["c.txt", "A.JPG", "b.png"]
    with pytest.raises(ValueError, match="There is no file .*none.png"):
        data.find_pictures([tmp_path / "none.png"])
    with pytest.raises(ValueError, match="There is no file ''"):
        data.find_pictures([""])


def test_images_in_subfolders_are_found_as_in_training(tmp_path, caplog):
    for name in (
        *("dogs/1.jpg", "cats/2.png", "cats/old/1.JPE", "top.jpg", "cats/3.heic"),
        *("cats/._2.png", "cats/@eaDir/2.png", "__MACOSX/1.jpg", ".cache/1.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cats" / "all").symlink_to(tmp_path)
    found = data.find_pictures([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["cats/2.png", "cats/old/1.JPE", "dogs/1.jpg", "top.jpg"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: Skipped 1 file with other extensions: .heic (1).",
        f"{tmp_path}: Skipped 4 hidden files or system thumbnails, such as .cache.",
        (
            f"{tmp_path}: Skipped 1 link to a missing file or to a folder that is listed already, "
            "such as cats/all."
        ),
    ]
    # The folder itself may have any name.
    assert len(data.find_pictures([tmp_path / "__MACOSX"])) == 1
    (tmp_path / "cats" / "2.png").unlink()
    (tmp_path / "cats" / "old" / "1.JPE").unlink()
    with pytest.raises(ValueError, match=r"There are no images .*: \.heic \(1\)"):
        data.find_pictures([tmp_path / "cats"])
