"""Parquet tables with a column of encoded pictures, read at random access."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from dd3g.errors import UserError, needed

IMAGE_COLUMNS = ("image", "picture", "img", "png", "jpg")


class PictureTables:
    """Rows of parquet tables with a column of encoded pictures: bytes, or a struct that holds bytes.

    A table can only be read a row group at a time, so rows that are taken in order are far cheaper than rows
    that are not.

    Args:
        root: their folder.
        files: the tables, in order.

    Raises:
        UserError: when pyarrow is missing, or a table cannot be read or has no such column.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root, self._count = root, 0
        # First row in all, file, group in it, the file's first row in all, column of pictures
        self._groups: list[tuple[int, Path, int, int, str]] = []
        self._held: tuple[int, Any] = (-1, None)  # first row of the group read last, its pictures
        for file in files:
            table, start = _open(file), self._count
            column = _image_column(file, table)
            for group in range(table.num_row_groups):
                self._groups.append((self._count, file, group, start, column))
                self._count += table.metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """A row's file, below the root, and its number in it."""
        _, file, _, start, _ = self._group(index)
        return f"{file.relative_to(self.root).as_posix()} row {index - start}"

    def where(self, index: int) -> str:
        """As `name`, with the file's whole path."""
        _, file, _, start, _ = self._group(index)
        return f"{file} row {index - start}"

    def read(self, index: int) -> bytes:
        """The encoded picture of a row.

        Raises:
            UserError: when there is none, or the table is damaged.
        """
        first, file, group, _, column = self._group(index)
        if self._held[0] != first:
            self._held = first, _read(file, group, [column])[column]
        value = self._held[1][index - first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{self.where(index)} holds no picture")
        return data

    def described(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What each row says in those of some columns that its table has and that hold no pictures.

        Raises:
            UserError: when a table is damaged.
        """
        for _, file, group, *_ in self._groups:
            table = _open(file)
            names = table.schema_arrow.names
            wanted = [c for c in columns if c in names and c not in IMAGE_COLUMNS]
            if wanted:
                yield from _read(file, group, wanted).to_pylist()
            else:
                yield from ({} for _ in range(table.metadata.row_group(group).num_rows))

    def _group(self, index: int) -> tuple[int, Path, int, int, str]:
        return self._groups[bisect_right(self._groups, index, key=itemgetter(0)) - 1]


def _open(file: Path) -> Any:
    with needed("parquet files need the extra 'data': pip install 'dd3g[data]'"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file} is not a parquet file, or is damaged ({error}): copy it again") from error


def _image_column(file: Path, table: Any) -> str:
    from pyarrow import types

    for name in IMAGE_COLUMNS:
        if name in table.schema_arrow.names:
            kind = table.schema_arrow.field(name).type
            if types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind):
                return name
    raise UserError(
        f"{file} has the columns {', '.join(table.schema_arrow.names)}: one of {', '.join(IMAGE_COLUMNS)} "
        "must hold encoded pictures"
    )


def _read(file: Path, group: int, columns: list[str]) -> Any:
    from pyarrow import ArrowException

    try:
        return _open(file).read_row_group(group, columns)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged in row group {group} ({error}): copy it again") from error
