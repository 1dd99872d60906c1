"""Parser of server-sent events, on bytes as they arrive.

On bytes, because a read may end in the middle of a UTF-8 character, of a CRLF or of a field name; decoding is done per
whole line only. Rules: WHATWG HTML, section 9.2.6 (event stream interpretation).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmpod.loadtest.intake import EVENT_LIMIT_BYTES

_LINE_END = re.compile(rb"[\r\n]")


class EventTooLargeError(ValueError):
    """An event beyond the limit; no more of it is kept."""


@dataclass(slots=True)
class SseParser:
    """`for data in parser.feed(chunk)` gives the data of each event that `chunk` completed.

    Lines end in LF, CRLF or CR. Comments (`:` keep-alives) and fields other than `data` are passed over. Text after the
    last blank line is no event: `pending` says whether a stream ended in the middle of one. Raises EventTooLargeError.
    """

    _line: bytearray = field(default_factory=bytearray)
    _data: list[bytes] = field(default_factory=list)
    _after_cr: bool = False
    _first_line: bool = True
    _kept_bytes: int = 0

    @property
    def pending(self) -> bool:
        return bool(self._line or self._data)

    def feed(self, chunk: bytes) -> Iterator[str]:
        start = 0
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                start = 1
        while start < len(chunk):
            found = _LINE_END.search(chunk, start)
            end = found.start() if found else -1
            self._line += chunk[start:] if end < 0 else chunk[start:end]
            if len(self._line) + self._kept_bytes > EVENT_LIMIT_BYTES:
                raise EventTooLargeError(f"one event is larger than {EVENT_LIMIT_BYTES // 2**20} MB")
            if end < 0:
                return
            if chunk[end : end + 1] == b"\r":
                if end + 1 == len(chunk):
                    self._after_cr = True
                elif chunk[end + 1 : end + 2] == b"\n":
                    end += 1
            start = end + 1
            line, self._line = bytes(self._line), bytearray()
            if self._first_line:
                self._first_line = False
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line:
                self._take(line)
            elif self._data:
                event, self._data, self._kept_bytes = b"\n".join(self._data), [], 0
                yield event.decode("utf-8", "replace")

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._kept_bytes += len(line)
