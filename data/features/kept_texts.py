"""The texts of a vocabulary's values: concatenated in UTF-8 in one file, and the end of each text in another.

Both are in the order of the rows. A value without a text is an integer, equal to its word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.files import io_errors, read_array
from dlrmctl.data.hashed_texts import MOST_TEXT_BYTES
from dlrmctl.data.sealed import Values

END_TYPE = np.dtype("<u8")
CONTENT_TYPE = np.dtype("u1")


@dataclass(frozen=True)
class KeptTexts:
    """The texts of a column's values.

    Attributes:
        arrays: their content and their ends; None if all values are integers.
    """

    arrays: tuple[KeptArray, KeptArray] | None

    @classmethod
    def describe(cls, directory: Path, content: str, ends: str) -> "KeptTexts":
        """Describes existing files; removes them if all values are integers.

        Raises:
            DataError: if they cannot be read.
        """
        kept = KeptArray.describe(directory, content, CONTENT_TYPE)
        if kept.num_values:
            return cls((kept, KeptArray.describe(directory, ends, END_TYPE)))
        for file in (content, ends):
            with io_errors(directory / file, "write"):
                (directory / file).unlink()
        return cls(None)

    @property
    def files(self) -> tuple[KeptArray, ...]:
        """Returns the files of the texts."""
        return self.arrays or ()

    def read(self, directory: Path, words: np.ndarray, places: Sequence[int]) -> list[str]:
        """Reads the texts of some values.

        Args:
            directory: the directory of the files.
            words: the words of the values.
            places: the places of the values in the vocabulary.

        Raises:
            DataError: if a file is missing or changed.
        """
        for kept in self.files:
            kept.check(directory)
        return [self._text(directory, int(word), place) for word, place in zip(words, places, strict=True)]

    def _text(self, directory: Path, word: int, place: int) -> str:
        if self.arrays is not None:
            content, ends = self.arrays
            first = max(place - 1, 0)
            found = read_array(directory / ends.file, END_TYPE, place + 1 - first, first * END_TYPE.itemsize).tolist()
            start, end = (0, *found)[-2:]
            if start < end <= content.num_values:
                text = read_array(directory / content.file, CONTENT_TYPE, min(end - start, MOST_TEXT_BYTES), start)
                return text.tobytes().decode(errors="replace")
        return str(np.array(word, np.uint64).view(np.int64))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        if self.arrays is None:
            return {"bytes": 0}
        content, ends = self.arrays
        return {
            "file": content.file,
            "bytes": content.num_values,
            "crc32": content.crc32,
            "ends": {"file": ends.file, "crc32": ends.crc32},
        }

    @classmethod
    def from_values(cls, values: Values, num_values: int) -> "KeptTexts":
        """Parses what `to_dict` returned.

        Args:
            values: values of a manifest.
            num_values: number of values in the vocabulary.

        Raises:
            DataError: if a value is missing or invalid.
        """
        num_bytes = values.whole("bytes")
        if not num_bytes:
            return cls(None)
        content = KeptArray.from_values(values, CONTENT_TYPE, num_bytes)
        return cls((content, KeptArray.from_values(values.inner("ends"), END_TYPE, num_values)))
