"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

import shutil
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_LINE_EVERY_SECONDS = 5.0


class Progress:
    """Counts `unit`s of one task towards `total` (None when unknown). Use as a context manager.

    `note` is free text that is shown behind the count, such as a loss. Bytes (unit "B") are shown
    as megabytes, with the rate and the time that is left.
    """

    def __init__(
        self,
        task: str,
        total: int | None,
        unit: str,
        *,
        initial: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.count, self.note = initial, ""
        self._initial = initial
        self._task, self._total, self._unit = task, total, unit
        self._stream = stream if stream is not None else sys.stderr
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if self._stream.isatty() and shutil.get_terminal_size().columns:
            self._bar = tqdm(
                desc=task,
                total=total,
                unit="B" if unit == "B" else f" {unit}",
                unit_scale=unit == "B",
                initial=initial,
                file=self._stream,
                dynamic_ncols=True,
            )

    def update(self, amount: int = 1, note: str | None = None) -> None:
        """Add `amount` units; `note`, when given, replaces the text behind the count."""
        self.count += amount
        if note is not None:
            self.note = note
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._line("")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None:
            self._line(f" in {time.monotonic() - self._start:.1f} s")

    def _line(self, suffix: str) -> None:
        note = f", {self.note}" if self.note else ""
        print(
            f"{self._task}: {self._amount()}{note}{suffix}",
            file=self._stream,
            flush=True,
        )

    def _amount(self) -> str:
        if self._unit != "B":
            total = f"/{self._total:,}" if self._total is not None else ""
            return f"{self.count:,}{total} {self._unit}"
        rate = (self.count - self._initial) / max(time.monotonic() - self._start, 1e-9)
        if self._total is None or not rate:
            return f"{self.count / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s"
        left = f", {(self._total - self.count) / rate:.0f} s left"
        return (
            f"{self.count / 1e6:,.1f}/{self._total / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s"
            + left * (self.count < self._total)
        )
