"""Photographs of many sizes, read from the files of a data set and cut to squares.

A module of the examples, not a program.
"""

from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

import image_data

_SHUFFLED = 16_384  # compressed images, about 2 GB of ImageNet


class StoredSplit(NamedTuple):
    """One part of a data set, with the methods of `image_data.Split`.

    Attributes:
        builder: prepared `tfds.core.DatasetBuilder`, with the features "image" and "label".
        name: str, the split in tensorflow-datasets.
        first, last: int, the images `[first, last)` of it.
        side: int, of the squares, in pixels. Batches are in `[0, 1]`.
    """

    builder: Any
    name: str
    first: int
    last: int
    side: int

    @property
    def size(self):
        return self.last - self.first

    def training_batches(self, batch_size, seed, augment=None, first_epoch=0):
        """Batches in a new order every epoch, the same orders for the same seed.

        Args:
            batch_size: int.
            seed: int.
            augment: callable `(image, seed) -> part` on one image in uint8, such as `random_part`.
                None takes the middle, as in tests.
            first_epoch: int, the number of epochs trained before. The orders continue from there.
        """
        data = self._encoded(shuffle_files=True, read_config=tfds.ReadConfig(shuffle_seed=seed))
        data = data.shuffle(min(self.size, _SHUFFLED), seed, reshuffle_each_iteration=True)
        chance = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

        def square(example, seed):
            return self._square(example, lambda image: augment(image, seed))

        if augment:
            data = tf.data.Dataset.zip(data, chance).map(square, tf.data.AUTOTUNE)
        else:
            data = data.map(self._square, tf.data.AUTOTUNE)
        data = data.batch(batch_size)
        for _ in range(first_epoch):
            next(iter(data))  # each iterator takes the next order
        return data.prefetch(tf.data.AUTOTUNE)

    def test_batches(self, batch_size=250):
        data = self._encoded().map(self._square, tf.data.AUTOTUNE)
        return data.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def split(self, count):
        """Two splits: all but the last `count` images, and the last `count`."""
        return self._replace(last=self.last - count), self._replace(first=self.last - count)

    def take(self, count):
        """The first `count` images, or all if `count` is None."""
        return self if count is None else self._replace(last=min(self.last, self.first + count))

    def _encoded(self, **options):
        """Images as they are stored, because they are shuffled in memory."""
        return self.builder.as_dataset(
            split=f"{self.name}[{self.first}:{self.last}]",
            decoders={"image": tfds.decode.SkipDecoding()},
            **options,
        )

    def _square(self, example, part=None):
        image = self.builder.info.features["image"].decode_example(example["image"])
        image = (part or middle)(image)
        return tf.image.resize(image, [self.side, self.side]) / 255.0, example["label"]


def random_part(image, seed):
    """A random rectangle of 8 to 100% of the area (arXiv:1409.4842, section 6), flipped or not."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.zeros([1, 0, 4]),
        seed=seeds[0],
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    return tf.image.stateless_random_flip_left_right(tf.slice(image, begin, size), seeds[1])


def middle(image):
    """The square in the middle, of 7/8 of the shorter side: 224 of 256 pixels."""
    height, width = tf.unstack(tf.shape(image)[:2])
    edge = 7 * tf.minimum(height, width) // 8
    corner = (height - edge) // 2, (width - edge) // 2
    return tf.image.crop_to_bounding_box(image, *corner, edge, edge)


def load(name, side):
    """Returns the `StoredSplit`s for training and for test.

    Args:
        name: str, the name in tensorflow-datasets of a set with the splits "train" and
            "validation", as `"imagenet2012"`.
        side: int, of the squares.

    Raises:
        SystemExit: there is no such set, or as `image_data.load`; one line.
    """
    try:
        builder = tfds.builder(name, data_dir=image_data.DATA_DIR.value)
    except tfds.core.DatasetNotFoundError:
        raise SystemExit(f"tensorflow-datasets must have the data set. Received: {name}") from None
    image_data.prepare(builder)
    return tuple(
        StoredSplit(builder, split, 0, builder.info.splits[split].num_examples, side)
        for split in ("train", "validation")
    )
