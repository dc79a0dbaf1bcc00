"""How a pull or push looks: a line a layer that is under way and the whole below them on a terminal, else a line a step.

It decides the picture only; the messages are the daemon's, Docker's progress stream.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.output import clean, size
from cli.progress import Display
from covey.errors import Internal

_BAR = 24
_EVERY = 0.1
_DONE = ("Already exists", "Pull complete", "Pushed", "Layer already exists", "Mounted from")
_MOVES = ("Downloading", "Pushing")
_ARRIVED = ("Verifying Checksum", "Download complete", "Extracting")


@dataclass
class _Layer:
    """One layer as last told. ``moved`` of ``total`` bytes over the line."""

    state: str = ""
    current: int = 0
    whole: int = 0
    moved: int = 0
    total: int = 0

    @property
    def done(self) -> bool:
        return self.state.startswith(_DONE)


class Transfer:
    """Takes the messages of one stream, one after another. ``last``: the last line that was no layer's."""

    def __init__(self, display: Display, now: Callable[[], float] = time.monotonic, live: bool = True) -> None:
        self._display, self._now, self._live = display, now, live
        self._layers: dict[str, _Layer] = {}
        self._begun = self._painted = now()
        self.last = ""

    def take(self, message: Mapping[str, Any]) -> None:
        """Shows one message. Raises Internal with what the daemon says went wrong."""
        if message.get("error"):
            self._display.clear()
            raise Internal(str((message.get("errorDetail") or {}).get("message") or message["error"]))
        text = str(message.get("status") or message.get("stream") or "").strip()
        if not text:
            return
        if "progressDetail" not in message:
            self._say(f"{message['id']}: {text}" if message.get("id") else text)
            return
        self._layer(str(message.get("id") or ""), text, message.get("progressDetail") or {})

    def end(self) -> None:
        """Takes the picture away: what stays are the lines."""
        self._display.clear()

    def _say(self, text: str) -> None:
        self.last = text
        self._display.clear()
        self._display.plain(text)

    def _layer(self, name: str, text: str, detail: Mapping[str, Any]) -> None:
        layer = self._layers.setdefault(name, _Layer())
        changed = layer.state != text
        layer.state = text
        layer.current, layer.whole = int(detail.get("current") or 0), int(detail.get("total") or 0)
        if text in _MOVES:
            layer.moved, layer.total = layer.current, layer.whole
        elif text in _ARRIVED or layer.done:
            layer.moved = layer.total
        if not self._live:
            if changed and text not in (*_MOVES, "Extracting"):
                self._display.plain(f"{name}: {text}")
            return
        if changed or self._now() - self._painted >= _EVERY:
            self._painted = self._now()
            self._display.paint(self.picture())

    def picture(self) -> list[str]:
        """The lines that are repainted: layers under way, as many as fit, and the sum."""
        room = max(1, shutil.get_terminal_size().lines - 3)
        open_layers = [(name, layer) for name, layer in self._layers.items() if not layer.done]
        open_layers.sort(key=lambda row: row[1].state in ("Waiting", "Pulling fs layer", "Preparing"))
        lines = [self._line(name, layer) for name, layer in open_layers[:room]]
        if len(open_layers) > room:
            lines[-1] = f"  and {len(open_layers) - room + 1} more"
        return [*lines, self._sum()]

    def _line(self, name: str, layer: _Layer) -> str:
        if not layer.whole:
            return f"  {name}  {layer.state}"
        filled = min(_BAR, _BAR * layer.current // layer.whole)
        bar = "█" * filled + "░" * (_BAR - filled)
        return f"  {name}  {layer.state:<11}  {bar}  {size(layer.current)} / {size(layer.whole)}"

    def _sum(self) -> str:
        done = sum(layer.done for layer in self._layers.values())
        moved = sum(layer.moved for layer in self._layers.values())
        total = sum(layer.total for layer in self._layers.values())
        line = f"{done} of {len(self._layers)} layers"
        seconds = self._now() - self._begun
        if not total or seconds <= 0:
            return line
        line += f", {size(moved)} of {size(total)}"
        if moved >= total:
            return line
        rate = moved / seconds
        left = (total - moved) / rate if rate > 0 else 0.0
        return f"{line}, {size(rate)}/s" + (f", {left:.0f} s left" if left >= 1 else "")


def show(lines: Iterable[Mapping[str, Any]], quiet: bool = False) -> str:
    """Show a stream to its end; its last line that is no layer's. Raises Internal when the daemon says it failed."""
    display = Display(quiet)
    transfer = Transfer(display, live=display.live)
    try:
        for message in lines:
            transfer.take(message)
    finally:
        transfer.end()
    return clean(transfer.last)
