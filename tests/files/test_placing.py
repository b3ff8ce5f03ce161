"""Files that appear whole or not at all, and leave nothing beside them on the way."""

import errno
import pathlib
import tempfile

import pytest

from keras_lowrank.files.placing import placed

KINDS = pytest.mark.parametrize("kind", ["file", "folder"])


def fill(path, kind, text):
    if kind == "folder":
        path.mkdir()
        path = path / "inside"
    path.write_text(text)


def text(path, kind):
    return (path / "inside" if kind == "folder" else path).read_text()


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Two folders: for temporary files, and for the target. Returns that of the target."""
    for name in ("temporary", "target"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "target"


@KINDS
def test_until_the_last_move_nothing_is_beside_the_target(disk, kind):
    # So a process that is killed in between, however, leaves nothing there.
    target = disk / "models" / "m"
    with placed(target, overwrite=False) as made:
        fill(made, kind, "new")
        assert not list(disk.iterdir())
    assert text(target, kind) == "new"
    assert [one.name for one in target.parent.iterdir()] == ["m"]
    assert not list((disk.parent / "temporary").iterdir())


@KINDS
@pytest.mark.parametrize("previous", [False, True])
def test_a_target_on_another_disk_is_replaced_in_one_step_too(disk, kind, previous, monkeypatch):
    target = disk / "m"
    if previous:
        fill(target, kind, "old")

    def across(method):
        def moved(self, other):
            roots = {pathlib.Path(one).relative_to(disk.parent).parts[0] for one in (self, other)}
            if len(roots) > 1:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return method(self, other)

        return moved

    for name in ("rename", "replace"):
        monkeypatch.setattr(pathlib.Path, name, across(getattr(pathlib.Path, name)))
    with placed(target, overwrite=previous) as made:
        fill(made, kind, "new")
    assert text(target, kind) == "new"
    assert [one.name for one in disk.iterdir()] == ["m"]


@KINDS
def test_after_a_failure_all_is_as_it_was(disk, kind):
    target = disk / "m"
    fill(target, kind, "old")
    with pytest.raises(ZeroDivisionError), placed(target, overwrite=True) as made:
        fill(made, kind, "new")
        raise ZeroDivisionError
    assert text(target, kind) == "old" and [one.name for one in disk.iterdir()] == ["m"]
    assert not list((disk.parent / "temporary").iterdir())


def test_what_exists_says_in_one_line_how_to_replace_it(disk):
    (disk / "m").mkdir()
    with (
        pytest.raises(FileExistsError, match="Pass overwrite=True to replace it") as caught,
        placed(disk / "m", overwrite=False),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(disk):
    (disk / "file").write_text("here")
    started = []
    with pytest.raises(OSError, match="could not be written"), placed(disk / "file" / "m", False):
        started.append(True)
    assert not started
