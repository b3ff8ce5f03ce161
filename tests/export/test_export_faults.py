"""A disk that is full, a folder that may not be written: one line, and all as it was."""

import resource
import subprocess

import keras
import pytest
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel

FOLDER, FILE = ("tf_saved_model", "1"), ("litert", "m.tflite")
FOLDER_FIRST = pytest.mark.parametrize("format, name", partly_slow([FOLDER], [FILE]))
FILE_FIRST = pytest.mark.parametrize("format, name", partly_slow([FILE], [FOLDER]))


def make(rank):
    inputs = keras.Input((300,))
    return LowRankModel(inputs, LowRankDense(300, rank=rank)(inputs))


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB of its own, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=300k", "tmpfs"]
    try:
        made = subprocess.run(["mount", *options, folder], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip("mounting a file system takes more rights")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_refused(folder, format, name, reason):
    before = contents(folder)
    with pytest.raises(
        OSError, match=rf"could not be written.*Choose a folder.*{reason}"
    ) as caught:
        make(rank=140).export(folder / name, format, verbose=False, overwrite=True)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(folder) == before
    assert [path.name for path in folder.iterdir()] == [name]


@FOLDER_FIRST
def test_full_disk_and_read_only_folder(small_disk, format, name):
    make(rank=2).export(small_disk / name, format, verbose=False)
    check_refused(small_disk, format, name, "No space left on device")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    check_refused(small_disk, format, name, "Read-only file system")


@FILE_FIRST
def test_a_write_that_fails_half_way(tmp_path, format, name):
    # Needs no rights: the system refuses to let a file grow beyond the limit, as a disk would.
    make(rank=2).export(tmp_path / name, format, verbose=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        check_refused(tmp_path, format, name, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@FOLDER_FIRST
def test_a_file_in_the_place_of_the_folder(tmp_path, format, name):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="could not be written"):
        make(rank=2).export(tmp_path / "file" / name, format)
    assert (tmp_path / "file").read_text() == "here"
