"""Pairs of texts for the transformer: generated tasks, and translations.

A module of the examples, not a program.
"""

import collections
import math
import string
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags

import image_data

flags.adopt_module_key_flags(image_data)

TASKS = ("sort", "reverse", "add")
TRANSLATION, LANGUAGES = "ted_hrlr_translate/pt_to_en", ("pt", "en")


class Vocabulary:
    """Numbers the tokens of one side of the pairs: 0 is padding, 1 is unknown.

    Args:
        texts: list of str, the source of the tokens.
        words: bool. Tokens are words in lower case without punctuation, or else characters.
        size: int or None, the largest number of tokens.
    """

    def __init__(self, texts, words, size=None):
        self._vectorization = keras.layers.TextVectorization(
            max_tokens=size,
            standardize="lower_and_strip_punctuation" if words else None,
            split="whitespace" if words else "character",
        )
        self._vectorization.adapt(tf.constant(texts))
        self.tokens = self._vectorization.get_vocabulary()
        self.start, self.end = len(self.tokens), len(self.tokens) + 1
        self._joint = " " if words else ""

    def __len__(self):
        return len(self.tokens) + 2

    def numbers(self, texts):
        """int32 array of shape `(count, longest)`, padded."""
        return self._vectorization(tf.constant(texts)).numpy().astype("int32")

    def sentence(self, numbers):
        """The tokens of a row of numbers, up to its end."""
        numbers = [int(number) for number in numbers]
        if self.end in numbers:
            numbers = numbers[: numbers.index(self.end)]
        return [self.tokens[n] for n in numbers if 0 < n < len(self.tokens)]

    def text(self, numbers):
        """The same as a text."""
        return self._joint.join(self.sentence(numbers))


class Pairs(NamedTuple):
    """Source and target texts as numbers.

    Attributes:
        source: int array, shape `(count, S)`, padded with 0.
        inputs: int array, shape `(count, T)`: start and target, the decoder's input.
        outputs: int array, shape `(count, T)`: target and end, the decoder's output.
    """

    source: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray

    def __len__(self):
        return len(self.source)

    def training_batches(self, batch_size, seed):
        """Batches `((source, inputs), outputs)` in a new order every epoch."""
        data = tf.data.Dataset.from_tensor_slices(tuple(self)).cache()
        data = data.shuffle(len(self), seed=seed, reshuffle_each_iteration=True).batch(batch_size)
        data = data.map(lambda source, inputs, outputs: ((source, inputs), outputs))
        return data.prefetch(tf.data.AUTOTUNE)

    def batches(self, size=256):
        """Batches in order."""
        for start in range(0, len(self), size):
            yield Pairs(*(array[start : start + size] for array in self))


class Corpus(NamedTuple):
    """The data and vocabularies of an experiment.

    Attributes:
        train, test: `Pairs`.
        source, target: `Vocabulary`.
    """

    train: Pairs
    test: Pairs
    source: Vocabulary
    target: Vocabulary


def corpus(train, test, words, size=None, longest=None):
    """Numbers two lists of pairs of texts, with the vocabularies of the first.

    Args:
        train: list of `(source, target)`.
        test: the same.
        words: bool, as in `Vocabulary`.
        size: int or None, as in `Vocabulary`.
        longest: int or None, a number of tokens. Longer pairs are left out.
    """
    sources, targets = (Vocabulary(list(texts), words, size) for texts in zip(*train))
    numbered = []
    for pairs in (train, test):
        sides = zip(*pairs)
        source, target = (v.numbers(list(side)) for v, side in zip((sources, targets), sides))
        if longest is not None:
            short = np.all([np.count_nonzero(side, 1) <= longest for side in (source, target)], 0)
            source, target = source[short, :longest], target[short, :longest]
        numbered.append((source, target))
    widths = [max(one[side].shape[1] for one in numbered) for side in (0, 1)]
    return Corpus(*(_pairs(*one, *widths, targets) for one in numbered), sources, targets)


def generate(task, count, length, seed):
    """Draws `count` different pairs of texts of up to `length` characters, in random order.

    Args:
        task: str. "sort" or "reverse" the letters of a word, or "add" two numbers. The sum is
            written from its last digit to its first, the order of addition.
        count: int.
        length: int, of the longest source.
        seed: int.
    """
    random = np.random.default_rng(seed)
    draw = _sum if task == "add" else _word
    sources = {}  # a set in order, equal for equal seeds
    while len(sources) < count:
        sources[draw(random, length)] = None
    answer = {"sort": lambda s: "".join(sorted(s)), "reverse": lambda s: s[::-1], "add": _add}[task]
    return [(source, answer(source)) for source in sources]


def translations():
    """Training and test pairs of the translations, lists of `(source, target)`.

    Raises:
        SystemExit: the data set is not there and must not or cannot be downloaded; one line.
    """
    builder = tfds.builder(TRANSLATION, data_dir=image_data.DATA_DIR.value)
    image_data.prepare(builder)
    return tuple(
        [
            tuple(example[language].decode() for language in LANGUAGES)
            for example in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        ]
        for split in ("train", "test")
    )


def bleu(references, answers):
    """Returns BLEU of a corpus in percent (Papineni et al. 2002), without smoothing.

    That is `100 min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)` for r tokens of the references and
    c of the answers, where `p_n` is the share of the answers' n-grams that are in their references.

    Args:
        references: list of lists of tokens.
        answers: the same, one for each reference.
    """
    sizes = [sum(map(len, texts)) for texts in (references, answers)]
    precisions = []
    for n in range(1, 5):
        pairs = [(_ngrams(a, n), _ngrams(b, n)) for a, b in zip(answers, references)]
        hits = sum((said & true).total() for said, true in pairs)
        if not hits:
            return 0.0
        precisions.append(hits / sum(said.total() for said, _ in pairs))
    return 100.0 * math.exp(min(0.0, 1.0 - sizes[0] / sizes[1])) * math.prod(precisions) ** 0.25


def _ngrams(tokens, n):
    return collections.Counter(zip(*(tokens[i:] for i in range(n))))


def _pairs(source, target, source_width, target_width, vocabulary):
    source = np.pad(source, [(0, 0), (0, source_width - source.shape[1])])
    target = np.pad(target, [(0, 0), (0, target_width + 1 - target.shape[1])])
    inputs = np.roll(target, 1, axis=1)
    inputs[:, 0] = vocabulary.start
    outputs = target.copy()
    outputs[np.arange(len(target)), np.count_nonzero(target, axis=1)] = vocabulary.end
    return Pairs(source, inputs, outputs)


def _word(random, length):
    letters = random.choice(list(string.ascii_lowercase), random.integers(length // 2, length + 1))
    return "".join(letters)


def _sum(random, length):
    digits = random.integers(1, (length - 1) // 2 + 1, 2)
    return "+".join(str(random.integers(10**d)) for d in digits)


def _add(source):
    return str(sum(map(int, source.split("+"))))[::-1]
