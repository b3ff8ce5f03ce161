"""The equation of an einsum layer, read as a product with one matrix."""

import re
import string
from typing import NamedTuple

from keras_lowrank.kernels.matricization import Matricization

_FORM = re.compile(r"(\.{3})?([a-zA-Z]+)(\.{3})?,([a-zA-Z]+)->(\.{3})?([a-zA-Z]+)(\.{3})?")


class EinsumEquation(NamedTuple):
    """An einsum equation whose kernel is a matrix.

    Axes of the kernel that are contracted with the inputs are the rows of the matrix, in the order
    of the inputs, and axes that it brings into the outputs the columns, in the order of the
    outputs: so a group of axes that stand together there is one axis by a mere reshape.

    Attributes:
        inputs, kernel, outputs: str, one letter an axis, without ellipsis.
        ellipsis: str, "left" or "right", where inputs and outputs have one, or "".
    """

    inputs: str
    kernel: str
    outputs: str
    ellipsis: str

    @classmethod
    def parse(cls, equation):
        """Reads an equation of the forms that `keras.layers.EinsumDense` takes.

        Raises:
            ValueError: another form, or a kernel that is no matrix.
        """
        match = _FORM.fullmatch(equation)
        left, inputs, right, kernel, *outputs = match.groups() if match else [None] * 7
        if match is None or (left, right) != (outputs[0], outputs[2]) or (left and right):
            raise ValueError(
                "`equation` must be of the form '[X],[Y]->[Z]', '...[X],[Y]->...[Z]' or "
                f"'[X]...,[Y]->[Z]...'. Received: equation={equation!r}"
            )
        parsed = cls(inputs, kernel, outputs[1], "left" if left else "right" if right else "")
        parsed._check_matrix(equation)
        return parsed

    @property
    def rows(self):
        return [axis for axis in self.inputs if axis in self.kernel]

    @property
    def columns(self):
        return [axis for axis in self.outputs if axis in self.kernel]

    @property
    def free(self):
        """The axes that the inputs hand to the outputs."""
        return [axis for axis in self.inputs if axis in self.outputs]

    @property
    def summed(self):
        """The axes of the inputs that nothing else has, which are summed over."""
        return [axis for axis in self.inputs if axis not in self.kernel + self.outputs]

    def expanded(self, ndim):
        """The equation for inputs of `ndim` axes, with letters in the place of the ellipsis."""
        used = self.inputs + self.kernel + self.outputs
        letters = (letter for letter in string.ascii_letters if letter not in used)
        elided = "".join(next(letters) for _ in range(ndim - len(self.inputs)))
        if self.ellipsis == "left":
            sides = elided + self.inputs, elided + self.outputs
        else:
            sides = self.inputs + elided, self.outputs + elided
        return EinsumEquation(sides[0], self.kernel, sides[1], "")

    def matricization(self, kernel_shape):
        """How a kernel of that shape is a matrix."""
        rows, columns = (
            tuple(self.kernel.index(axis) for axis in axes) for axes in (self.rows, self.columns)
        )
        return Matricization(tuple(kernel_shape), rows, columns)

    def _check_matrix(self, equation):
        for name, axes, others in (
            ("kernel", self.kernel, self.inputs + self.outputs),
            ("outputs", self.outputs, self.inputs + self.kernel),
        ):
            lost = "".join(axis for axis in axes if axis not in others)
            if lost:
                raise ValueError(
                    f"Every axis of the {name} in `equation` must be in another operand. "
                    f"Received: equation={equation!r}, where '{lost}' is not"
                )
        for name, axes in zip(("inputs", "kernel", "outputs"), self):
            if len(set(axes)) < len(axes):
                raise ValueError(
                    "The kernel of `equation` must be a matrix, for which every operand needs an "
                    f"axis once: the {name} are '{axes}'. Received: equation={equation!r}"
                )
        stacked = "".join(axis for axis in self.free if axis in self.kernel)
        if stacked:
            raise ValueError(
                "The kernel of `equation` must be one matrix. An axis in inputs, kernel and "
                f"outputs at once (here '{stacked}') makes it a stack of them, one for each index: "
                f"use one layer for each. Received: equation={equation!r}"
            )
