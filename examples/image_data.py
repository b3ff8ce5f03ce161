"""Images for the examples: NumPy arrays, and pipelines of batches.

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
    "Folder of tensorflow-datasets that holds the data set or takes the download. "
    "Without it: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
)
DOWNLOAD = flags.DEFINE_bool("download", True, "Download the data set where it is not there yet.")


class Split(NamedTuple):
    """One part of a data set, in memory.

    Attributes:
        images: uint8 array, shape `(count, height, width, channels)`. Batches are in `[0, 1]`.
        labels: int array, shape `(count,)`.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self):
        return len(self.labels)

    def training_batches(self, batch_size, seed, augment=None, first_epoch=0):
        """Batches in a new order every epoch, the same orders for the same seed.

        Args:
            batch_size: int.
            seed: int.
            augment: callable `(images, seed) -> images` on a batch in uint8, or None. Its seed, of
                shape `(2,)`, is for TensorFlow's stateless random numbers.
            first_epoch: int, the number of epochs trained before. The orders continue from there.
        """
        images, labels = tf.constant(self.images), tf.constant(self.labels)
        order = tf.data.Dataset.range(len(self.labels))
        order = order.shuffle(len(self.labels), seed=seed, reshuffle_each_iteration=True)
        chance = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

        def batch(indices, seed):
            chosen = tf.gather(images, indices)
            return _scaled(augment(chosen, seed) if augment else chosen), tf.gather(labels, indices)

        # Shuffling indices and gathering whole batches is faster than shuffling images.
        data = tf.data.Dataset.zip(order.batch(batch_size), chance).map(batch)
        for _ in range(first_epoch):
            next(iter(data))  # each iterator takes the next order
        return data.prefetch(tf.data.AUTOTUNE)

    def test_batches(self, batch_size=1000):
        data = tf.data.Dataset.from_tensor_slices(tuple(self)).batch(batch_size)
        return data.map(lambda images, labels: (_scaled(images), labels)).cache()

    def split(self, count):
        """Two splits: all but the last `count` images, and the last `count`."""
        first = Split(self.images[:-count], self.labels[:-count])
        return first, Split(self.images[-count:], self.labels[-count:])

    def take(self, count):
        """The first `count` images, or all if `count` is None."""
        return Split(self.images[:count], self.labels[:count])


def flip_and_shift(images, seed, reach=4):
    """Flips half of the images left to right, and shifts each by up to `reach` pixels."""
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    seeds = tf.unstack(tf.random.split(seed, 2))
    images = tf.image.stateless_random_flip_left_right(images, seeds[0])
    images = tf.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    corners = tf.random.stateless_uniform([2, count, 1], seeds[1], 0, 2 * reach + 1, tf.int32)
    images = tf.gather(images, corners[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(images, corners[1] + tf.range(width), axis=2, batch_dims=1)


def load(name):
    """Returns the `Split`s for training and for test.

    Args:
        name: str, the name in tensorflow-datasets: `"mnist"` or `"cifar10"`.

    Raises:
        SystemExit: the data set is not there and must not or cannot be downloaded; one line.
    """
    builder = tfds.builder(name, data_dir=DATA_DIR.value)
    prepare(builder)
    return tuple(_arrays(builder, split) for split in ("train", "test"))


def prepare(builder):
    """Downloads a data set of tensorflow-datasets if it is missing.

    Raises:
        SystemExit: it must not or cannot be downloaded; one line.
    """
    if builder.is_prepared():
        return
    # The path ends with the name, the version, and sometimes a configuration between them.
    folder = builder.data_path.parents[builder.info.full_name.count("/")]
    missing = f"{builder.info.full_name} is not in {folder}"
    if not DOWNLOAD.value:
        raise SystemExit(f"{missing}. Name its folder with --data_dir, or leave out --nodownload.")
    # tensorflow-datasets retries on its own, and has no setting for it.
    results.say("Downloading. Without a network this gives up after about four minutes.")
    try:
        builder.download_and_prepare()
    except Exception as error:  # of many classes: network, disk, mirror
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SystemExit(f"{missing} and could not be downloaded: {reason[:200]}") from None


def _scaled(images):
    return tf.cast(images, tf.float32) / 255.0


def _arrays(builder, split):
    whole = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
    return Split(*whole)
