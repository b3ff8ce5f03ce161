"""An einsum equation, read as a product with one matrix."""

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from keras_lowrank.kernels.matricization import Matricization

_FORM = re.compile(r"(\.{3})?([a-zA-Z]+)(\.{3})?,([a-zA-Z]+)->(\.{3})?([a-zA-Z]+)(\.{3})?")


class EinsumEquation(NamedTuple):
    """An einsum equation whose kernel is a matrix.

    The rows of the matrix are the axes of the kernel that are contracted with the inputs, in the
    order of the inputs. The columns are those that reach the outputs, in the order of the outputs.
    A reshape then joins axes that are neighbours.

    Attributes:
        inputs: str, one letter an axis, without ellipsis.
        kernel: str, the same.
        outputs: str, the same.
        ellipsis: str, the side of the ellipsis of inputs and outputs, "left" or "right"; or "".
    """

    inputs: str
    kernel: str
    outputs: str
    ellipsis: str

    @classmethod
    def parse(cls, equation: str) -> "EinsumEquation":
        """Reads an equation of the forms that `keras.layers.EinsumDense` takes.

        Args:
            equation: str.

        Raises:
            ValueError: another form, or a kernel that is not one matrix.
        """
        match = _FORM.fullmatch(equation)
        left, inputs, right, kernel, *outputs = match.groups("") if match else [""] * 7
        if match is None or (left, right) != (outputs[0], outputs[2]) or (left and right):
            raise ValueError(
                "`equation` must be of the form '[X],[Y]->[Z]', '...[X],[Y]->...[Z]' or "
                f"'[X]...,[Y]->[Z]...'. Received: equation={equation!r}"
            )
        parsed = cls(inputs, kernel, outputs[1], "left" if left else "right" if right else "")
        parsed._check_matrix(equation)
        return parsed

    @property
    def rows(self) -> list[str]:
        """The axes of the rows of the matrix."""
        return [axis for axis in self.inputs if axis in self.kernel]

    @property
    def columns(self) -> list[str]:
        """The axes of the columns of the matrix."""
        return [axis for axis in self.outputs if axis in self.kernel]

    @property
    def free(self) -> list[str]:
        """The axes that inputs and outputs share."""
        return [axis for axis in self.inputs if axis in self.outputs]

    @property
    def summed(self) -> list[str]:
        """The axes of the inputs alone, which are summed over."""
        return [axis for axis in self.inputs if axis not in self.kernel + self.outputs]

    def expanded(self, ndim: int) -> "EinsumEquation":
        """Returns the equation for inputs of `ndim` axes, with letters in place of the ellipsis."""
        used = self.inputs + self.kernel + self.outputs
        letters = (letter for letter in string.ascii_letters if letter not in used)
        elided = "".join(next(letters) for _ in range(ndim - len(self.inputs)))
        if self.ellipsis == "left":
            sides = elided + self.inputs, elided + self.outputs
        else:
            sides = self.inputs + elided, self.outputs + elided
        return EinsumEquation(sides[0], self.kernel, sides[1], "")

    def matricization(self, kernel_shape: Sequence[int]) -> Matricization:
        """Returns the matricization of a kernel of that shape."""
        rows, columns = (
            tuple(self.kernel.index(axis) for axis in axes) for axes in (self.rows, self.columns)
        )
        return Matricization(tuple(kernel_shape), rows, columns)

    def _check_matrix(self, equation: str) -> None:
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
                    "The kernel of `equation` must be a matrix, so every operand must have an axis "
                    f"only once: the {name} are '{axes}'. Received: equation={equation!r}"
                )
        stacked = "".join(axis for axis in self.free if axis in self.kernel)
        if stacked:
            raise ValueError(
                "The kernel of `equation` must be one matrix. An axis in inputs, kernel and "
                f"outputs at once (here '{stacked}') makes it a stack of matrices: use one layer "
                f"for each. Received: equation={equation!r}"
            )
