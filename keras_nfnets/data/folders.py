"""Folders of labeled images: their splits, classes and images."""

import collections
import hashlib
import os
import re
import typing
import unicodedata

from keras_nfnets.data.image_files import (
    EXTENSIONS,
    Listing,
    counted,
    entries,
    has_extension,
    has_images,
    is_file,
    is_of_system,
    subfolders,
    with_other_files,
)
from keras_nfnets.printing import printable

# Fraction of test images in folders that have no splits.
_TEST_FRACTION = 0.2

# Names of the folders of each split. Case, hyphens, underscores, spaces and numbers
# ("val2017") do not matter, and a word such as "set" may follow or precede.
_SPLIT_NAMES = {
    "train": "train|training|trn",
    "validation": "validation|validate|valid|val|dev|development|eval|evaluation",
    "test": "tests|test|testing|tst",
}
_WORD = "(sets?|data|datasets?|images?|imgs?|photos|pictures|samples|split|folder)?"

# Number of images up to which splits are searched for images that they share: of images
# of equal sizes in bytes, each is read.
_MOST_COMPARED = 20_000
# Number of bytes that are compared first, from the middle of each file.
_SAMPLE = 16_384

# Number of folders that a message shows at each level.
_MOST_SHOWN = 6


class FolderContent(typing.NamedTuple):
    """Labeled images of a folder.

    Attributes:
        class_names: list of str.
        files: dict `{split: list of (path, label)}`.
        notes: list of str. What was skipped or is unusual.
    """

    class_names: list
    files: dict
    notes: list


def labeled_images(folder, divide=True):
    """Find the splits, classes and images of a folder.

    Args:
        folder: `pathlib.Path`.
        divide: bool. Whether to divide a folder that has no splits; otherwise all of its
            images are split `"all"`.

    Returns:
        A `FolderContent`.

    Raises:
        ValueError: the layout of the folder is unknown or ambiguous, or images are missing.
    """
    listing = Listing(folder)
    by_split, notes = _split_folders(folder, needs_train=divide)
    if by_split and "train" not in by_split:
        return _without_training(by_split, notes, folder, listing)
    train_folder = by_split.pop("train", folder)
    train = _class_folders(train_folder, folder, listing)
    class_names = sorted(train)
    if len(class_names) < (2 if divide else 1):
        raise _error(folder, *_without_classes(train_folder, class_names))
    if by_split:
        files_by_split = {"train": train}
        for split, path in by_split.items():
            files_by_split[split] = _with_classes_of_train(
                _class_folders(path, folder, listing), class_names, folder, split, notes
            )
    elif not divide:
        files_by_split = {"all": train}
    else:
        files_by_split = {"train": {}, "test": {}}
        for name, files in train.items():
            test_files, train_files = _split_files(files, train_folder)
            files_by_split["train"][name] = train_files
            files_by_split["test"][name] = test_files
    files = _labeled(files_by_split, class_names)
    for split in files:
        if not files[split]:
            raise _error(
                folder,
                f"{folder} has too few images for a training and a test split. Add images.",
                f"no images for split {split!r}",
            )
    notes += _notes_on_class_names(class_names)
    within = {folder, train_folder, *by_split.values()}
    notes += _notes_on_images_without_class(sorted(within), folder)
    notes += _notes_on_subfolders(train, train_folder, folder)
    notes += listing.notes()
    notes += _notes_on_shared_images(files, folder)
    return FolderContent(class_names, files, notes)


def _without_training(by_split, notes, folder, listing):
    """Return the `FolderContent` of a folder for evaluation only."""
    found = {
        split: _class_folders(path, folder, listing) for split, path in by_split.items()
    }
    class_names = sorted(set().union(*found.values()))
    files = _labeled(found, class_names)
    return FolderContent(class_names, files, notes + listing.notes())


def _labeled(files_by_split, class_names):
    """Return `{split: list of (path, label)}` for `{split: {class name: paths}}`."""
    return {
        split: [
            (str(path), label)
            for label, name in enumerate(class_names)
            for path in files_of.get(name, ())
        ]
        for split, files_of in files_by_split.items()
    }


def _split_named(name):
    """Return the split that a folder's name denotes, or None."""
    plain = re.sub(r"[-_ .]", "", name.lower())
    for split, names in _SPLIT_NAMES.items():
        if re.fullmatch(rf"\d*{_WORD}({names}){_WORD}\d*", plain):
            return split
    return None


def _folders_by_split(paths):
    """Return `{split: folders}` of those with the name of a split, and the others."""
    # Of "flowers_train" and "flowers_test", both are named for the flowers.
    prefix = os.path.commonprefix([path.name for path in paths]) if paths[1:] else ""
    prefix = re.match(r"(.*[-_ .])?", prefix, re.DOTALL)[0]
    by_split, others = collections.defaultdict(list), []
    for path in paths:
        split = _split_named(path.name) or _split_named(path.name.removeprefix(prefix))
        (by_split[split] if split else others).append(path)
    return by_split, others


def _split_folders(folder, needs_train):
    """Return `{split: folder}` of the splits that a folder has, and notes.

    The dict is empty if the folder contains class folders, and has only `"train"` if its
    images are to be divided.
    """
    by_split, others = _folders_by_split(subfolders(folder))
    named = [path for paths in by_split.values() for path in paths]
    if "train" not in by_split:
        has_splits = named and not others and all(map(subfolders, named))
        if has_splits and not needs_train:
            _check_one_folder_each(by_split, folder)
            return {split: path for split, [path] in by_split.items()}, []
        if has_splits and len(by_split) > 1:
            raise _error(
                folder,
                "There are folders of other splits, but none of training images. Add a folder "
                "'train', or give the folder of the training images this name.",
                _names(named, folder),
            )
        return {}, []
    others = [path for path in others if has_images(path)]
    if len(named) == 1:
        [train] = named
        is_split = len(subfolders(train)) > 1 and not _images_in(train)
        if others and not is_split:
            return {}, []  # a class whose name is "train"
        if len(others) > 1 or any(map(subfolders, others)):
            raise _error(
                folder,
                f"The folder {printable(train.name)!r} looks like a split, but other "
                "folders next to it do not have the name of a split. Name these "
                "'validation' or 'test', or move them elsewhere. If it is a class, move "
                "its images out of its subfolders.",
                _names(others, folder),
            )
    _check_one_folder_each(by_split, folder)
    chosen, notes = {}, []
    for split, [path] in by_split.items():
        if split != "train" and _has_only_unlabeled_images(path):
            others.append(path)
        else:
            chosen[split] = path
    for path in others:
        if _has_only_unlabeled_images(path):
            reason = "has no class folders, so its images have no labels"
        else:
            reason = "does not have the name of a split"
        notes.append(f"Folder {_shown(path, folder)} was left out, as it {reason}.")
    return chosen, notes


def _check_one_folder_each(by_split, root):
    for split, paths in by_split.items():
        if len(paths) > 1:
            raise _error(
                root,
                f"Split {split!r} must be one folder. Merge these, or move one elsewhere.",
                _names(paths, root),
            )


def _has_only_unlabeled_images(folder):
    return bool(_images_in(folder)) and not any(map(has_images, subfolders(folder)))


def _images_in(folder):
    """List the names of images that are in a folder itself."""
    return [
        entry.name
        for entry in entries(folder)
        if has_extension(entry.name) and not is_of_system(entry.name) and is_file(entry)
    ]


def _class_folders(folder, root, listing):
    """Return `{class: files}`, with one class per subfolder and all files below it."""
    found, paths = {}, {}
    for path in subfolders(folder):
        # Systems differ in the Unicode form of names with accents.
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise _error(
                root,
                "Two class folders have the same name, in two Unicode forms. Merge them.",
                _names([paths[name], path], root),
            )
        found[name], paths[name] = listing.images_below(path), path
        if not found[name]:
            in_class = Listing(root)
            in_class.images_below(path)
            raise _error(
                root,
                "A class folder has no images (files that end in "
                f"{', '.join(sorted(EXTENSIONS))}). Add some, or remove the folder.",
                f"{printable(path)}{with_other_files(in_class)}",
            )
    return found


def _with_classes_of_train(files_of, class_names, root, split, notes):
    """Return the files of another split by the names of the training classes."""
    files_by_name, unknown = collections.defaultdict(list), []
    for name, files in files_of.items():
        alike = [own for own in class_names if own.casefold() == name.casefold()]
        if name in class_names:
            files_by_name[name] += files
        elif len(alike) == 1:
            files_by_name[alike[0]] += files
            notes.append(
                f"Class {printable(name)!r} of split {split!r} was treated as class "
                f"{printable(alike[0])!r}, whose name differs only in case."
            )
        else:
            unknown.append(name)
    if unknown:
        raise _error(
            root,
            f"Split {split!r} of {printable(root)} has classes that split 'train' does not "
            "have. Add images of these to 'train', or remove them; move images without "
            "labels elsewhere.",
            _listed(unknown),
        )
    return files_by_name


def _split_files(files, folder):
    """Divide the files of a class into test and training files.

    Only a file's name decides, except that both splits get at least one file if there
    are two.
    """

    def position(path):
        name = os.fsencode(path.relative_to(folder).as_posix())
        return int.from_bytes(hashlib.sha256(name).digest()[:8]) / 2**64

    in_order = sorted(files, key=position)
    count = sum(position(path) < _TEST_FRACTION for path in files)
    count = min(max(count, 1), len(files) - 1)
    test = set(in_order[:count])
    return sorted(test), [path for path in files if path not in test]


# Notes.


def _notes_on_class_names(class_names):
    by_name = collections.defaultdict(list)
    for name in class_names:
        by_name[name.casefold()].append(name)
    for names in by_name.values():
        if len(names) > 1:
            yield f"The names of classes {_listed(names)} differ only in case."


def _notes_on_images_without_class(folders, root):
    paths = [folder / name for folder in folders for name in _images_in(folder)]
    if paths:
        yield (
            f"Skipped {counted(len(paths), 'image')} outside of class folders, such as "
            f"{_shown(paths[0], root)}."
        )


def _notes_on_subfolders(train, folder, root):
    """Note training images that are not directly in a class folder."""
    nested = [
        path
        for files in train.values()
        for path in files
        if len(path.relative_to(folder).parts) > 2
    ]
    if not nested:
        return
    note = (
        f"{counted(len(nested), 'training image')} in subfolders of class folders, such as "
        f"{_shown(nested[0], root)}, got the class of the outer folder."
    )
    if len(nested) == sum(map(len, train.values())):
        inside = [{path.name for path in subfolders(at)} for at in subfolders(folder)]
        common = sorted(set.intersection(*inside))
        if len(common) > 1:
            raise _error(
                root,
                "The class folders have no images, but the same subfolders, which look "
                "like the classes. If so, name the folders above 'train', 'validation' or "
                "'test'. Otherwise move all images of a class into its folder.",
                _listed(common),
            )
    yield note


def _notes_on_shared_images(files, root):
    """Note images with the same content in two splits."""
    images = [(split, path) for split, of in files.items() for path, _ in of]
    if len(images) > _MOST_COMPARED:
        return
    groups = [images]
    for value_of in (_size, sample, _content):
        groups = [part for group in groups for part in _in_two_splits(group, value_of)]
    # (Training images come first.)
    copies = [
        (group[0][1], path)
        for group in groups
        for split, path in group
        if split != group[0][0]
    ]
    if copies:
        original, copy = (_shown(path, root) for path in copies[0])
        yield (
            f"{counted(len(copies), 'image')} of one split also occur in another, such as "
            f"{copy}, which equals {original}. Results on such images are misleading: "
            "remove the copies."
        )


def _in_two_splits(images, value_of):
    """Return the groups of images with equal values that are in more than one split."""
    groups = collections.defaultdict(list)
    for split, path in images:
        try:
            groups[value_of(path)].append((split, path))
        except OSError:  # it is left out when it is read
            continue
    # (Empty files have nothing to compare.)
    return [
        group
        for value, group in groups.items()
        if value and len({split for split, _ in group}) > 1
    ]


def _size(path):
    return os.stat(path).st_size


def sample(path):
    """Return some bytes from the middle of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, _size(path) - _SAMPLE) // 2)
        return file.read(_SAMPLE)


def _content(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# Messages.


def _without_classes(folder, class_names):
    """Describe why there are not two classes; return the reason and what was received."""
    here, inner = printable(folder), folder
    while len(inside := subfolders(inner)) == 1 and not _images_in(inner):
        [inner] = inside
    if inner != folder and len(inside) > 1:
        return (
            f"The class folders are in {printable(inner)!r}. Give that folder, or move them up.",
            here,
        )
    if images := not class_names and _images_in(folder):
        return (
            f"{here} has no class folders, so the classes of its images are not known.",
            f"{counted(len(images), 'image')} without a class",
        )
    return (
        f"{here} must have a subfolder of images for each of two or more classes.",
        _listed(class_names) or "none",
    )


def _error(root, reason, received):
    """Create an error that shows a folder's layout and the layouts that are expected."""
    return ValueError(
        f"{reason} Received: {received}\n"
        f"The folder contains\n{_tree(root)}\n"
        "A data set needs class folders, directly or in one folder per split, such as\n"
        "  cats/1.jpg, dogs/2.jpg\n"
        "  train/cats/1.jpg, train/dogs/2.jpg, validation/cats/3.jpg, ..."
    )


def _tree(folder, depth=2, indent="  ", names_split=False):
    """Draw folders with their numbers of images and the splits that their names denote."""
    count = len(Listing(folder).images_below(folder))
    split = _split_named(folder.name) if names_split else None
    of_split = f", split {split!r}" if split else ""
    lines = [
        f"{indent}{printable(folder.resolve().name)}/  {counted(count, 'image')}{of_split}"
    ]
    inside = subfolders(folder) if depth else []
    lines += [
        _tree(path, depth - 1, f"{indent}  ", names_split=not split)
        for path in inside[:_MOST_SHOWN]
    ]
    if len(inside) > _MOST_SHOWN:
        lines.append(f"{indent}  and {len(inside) - _MOST_SHOWN} more")
    return "\n".join(lines)


def _shown(path, root):
    return printable(os.path.relpath(path, root))


def _listed(names):
    listed = [printable(name) for name in names[:_MOST_SHOWN]]
    return ", ".join([*listed, *(["..."] if len(names) > _MOST_SHOWN else [])])


def _names(paths, root):
    return _listed([os.path.relpath(path, root) for path in paths])
