"""JSON of an hour of video, read in parts as they are asked for: whole it would not fit into memory."""

from __future__ import annotations

import codecs
import io
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dd3g.errors import UserError

SMALL = 2**20  # bytes up to which a file is read at once
MANY = 64  # entries up to which a list in a large file is read at once
FIELDS = 64  # more than any detector gives names to; a table of more is of pictures
CHUNK = 2**20  # bytes read at a time
DECODER = json.JSONDecoder()
SPACE = " \t\r\n"


class Items(Sequence[Any]):
    """The entries of a long list or table, each read from the file when asked for.

    `starts` has the byte where each begins, and where the last ends; a table's have `names`.
    """

    def __init__(self, path: Path, starts: array[int], names: Sequence[str] = ()) -> None:
        self.path, self.starts, self.names = path, starts, names

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # raises IndexError
        with self.path.open("rb") as file:
            file.seek(self.starts[i])
            data = file.read(self.starts[i + 1] - self.starts[i])
        try:
            return DECODER.raw_decode(data.decode())[0]
        except ValueError as e:
            raise UserError("was changed while it was read: leave it alone until the end") from e


def read_json(path: Path) -> Any:
    """What a file holds; in large ones, long lists on the two upper levels and a long table are `Items`.

    Raises:
        ValueError, RecursionError: no JSON.
    """
    if path.stat().st_size <= SMALL:
        return json.loads(path.read_text("utf-8-sig"))
    with path.open("rb") as file:
        text = _Text(file)
        found = _table(text, path) if text.peek() == "{" else _list(text, path)
        if text.peek(end=True):
            raise ValueError(f"more than one value, from byte {text.place} on")
    return found


def _list(text: _Text, path: Path) -> Any:
    if text.peek() != "[":
        return text.value()
    starts = array("q")
    for _ in text.entries("]"):
        starts.append(text.place)
        text.value()
    starts.append(text.place)
    items = Items(path, starts)
    return items if len(items) > MANY else list(items)


def _table(text: _Text, path: Path) -> Any:
    names: list[str] = []
    values: dict[str, Any] = {}
    starts = array("q")
    for _ in text.entries("}"):
        if text.peek() != '"':
            raise ValueError(f"no name at byte {text.place}")
        names.append(text.value())
        text.take(":")
        text.peek()
        starts.append(text.place)
        if len(names) > FIELDS:
            values.clear()
            text.value()
        else:
            values[names[-1]] = _list(text, path)
    starts.append(text.place)
    return values if len(names) <= FIELDS else Items(path, starts, names)


class _Text:
    """A file of JSON from front to back; `place` is the byte that comes next."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8")()
        self.text, self.at = "", 0  # what was read last, and how much of it is done with
        self.place = len(codecs.BOM_UTF8) if file.peek(3).startswith(codecs.BOM_UTF8) else 0
        file.seek(self.place)

    def _read_on(self) -> bool:
        """Whether there was more; what is begun stays, and the longer it is the more is read."""
        self.text, self.at = self.text[self.at :], 0
        data = self.file.read(max(CHUNK, len(self.text)))
        self.text += self.decoder.decode(data, final=not data)
        return bool(data)

    def _done(self, end: int) -> None:
        self.place += len(self.text[self.at : end].encode())
        self.at = end

    def peek(self, end: bool = False) -> str:
        """The next character but spaces; none at the end, where there may be one."""
        while True:
            rest = len(self.text) - self.at
            if found := self.text[self.at : self.at + 1].strip(SPACE):
                return found
            if rest:
                self._done(self.at + 1)
            elif not self._read_on():
                if end:
                    return ""
                raise ValueError(f"it ends at byte {self.place}")

    def take(self, wanted: str) -> str:
        """Go over the next character, which is one of the wanted."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"{found} at byte {self.place}, where {' or '.join(wanted)} should be")
        self._done(self.at + 1)
        return found

    def value(self) -> Any:
        """The next value, with all that is in it."""
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
            except ValueError:
                if not self._read_on():
                    raise
                continue
            after, length = self.text[end : end + 1], end - self.at
            if after and after in SPACE + ",:]}" or not self._read_on():  # else a number may go on
                self._done(self.at + length)
                return found

    def entries(self, close: str) -> Iterator[None]:
        """Stops before each entry of the list or table that begins here, and goes on once it was taken."""
        self.take("[{")
        if self.peek() == close:
            self.take(close)
            return
        yield
        while self.take("," + close) == ",":
            self.peek()
            yield
