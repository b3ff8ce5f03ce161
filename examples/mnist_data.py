"""MNIST for the examples: two NumPy arrays a split, and the pipelines made of them.

A module of the examples, not a program.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags

import results

DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow-datasets that holds MNIST or takes the download. "
    "Without it: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
)
DOWNLOAD = flags.DEFINE_bool("download", True, "Download MNIST (11 MiB) where it is not there yet.")


class Split(NamedTuple):
    """One half of the data set.

    Attributes:
        images: float32 array, shape `(count, 28, 28, 1)`, in `[0, 1]`.
        labels: int array, shape `(count,)`.
    """

    images: np.ndarray
    labels: np.ndarray

    def training_batches(self, batch_size, seed):
        """Batches in a new order every epoch, the same orders for the same seed."""
        data = tf.data.Dataset.from_tensor_slices(tuple(self)).cache()
        data = data.shuffle(len(self.labels), seed=seed, reshuffle_each_iteration=True)
        return data.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def split(self, count):
        """Two splits: all but the last `count` images, and those."""
        first = Split(self.images[:-count], self.labels[:-count])
        return first, Split(self.images[-count:], self.labels[-count:])

    def test_batches(self, batch_size=1000):
        data = tf.data.Dataset.from_tensor_slices(tuple(self))
        return data.batch(batch_size).cache().prefetch(tf.data.AUTOTUNE)


def load():
    """Returns the `Split`s for training (60,000 images) and test (10,000).

    Raises:
        SystemExit: the data set is not there and must not or cannot be downloaded; one line.
    """
    builder = tfds.builder("mnist", data_dir=DATA_DIR.value)
    if not builder.is_prepared():
        _download(builder)
    return tuple(_arrays(builder, split) for split in ("train", "test"))


def _download(builder):
    if not DOWNLOAD.value:
        raise SystemExit(
            f"MNIST is not in {builder.data_path.parent.parent}. Name its folder with --data_dir, "
            "or leave out --nodownload."
        )
    # The retries are those of tensorflow-datasets, which has no setting for them.
    results.say("Downloading MNIST. Without a network this gives up after about four minutes.")
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, of the disk or of a mirror: many types, one cure
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SystemExit(
            f"MNIST is not in {builder.data_path.parent.parent} and could not be downloaded: "
            f"{reason[:200]}"
        ) from None


def _arrays(builder, split):
    whole = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
    images, labels = whole
    return Split(images.astype("float32") / 255.0, labels)
