"""The way to convergence after a change of services: the options that say whether to wait, and the wait."""

from __future__ import annotations

from typing import Annotated

import typer

from covey.engine_api.light import Client

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it has converged")]
Quietly = Annotated[bool, typer.Option("--quiet", "-q", help="No progress")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="How long to wait, as 2m", show_default=False)]


def seconds(text: str | None) -> float | None:
    """A ``--timeout``; None for none."""
    from cli.stack.units import nanoseconds

    return None if text is None else nanoseconds(text, "--timeout") / 1e9


class Wait:
    """Shows the way to convergence of a change unless ``detach``; the command's exit status is its outcome's."""

    def __init__(
        self,
        api: Client,
        present: list[str],
        *,
        detach: bool,
        quiet: bool = False,
        timeout: str | None = None,
        rollback: bool = False,
    ) -> None:
        """``present``: ids of the services that the change will be made to; ``rollback``: it takes a former spec back."""
        self._api = api
        self._detach, self._quiet, self._timeout = detach, quiet, seconds(timeout)
        self._before = {}
        if present and not detach:
            from cli.progress import watch_before

            self._before = watch_before(api, present, rollback=rollback)

    def end(self, services: list[str]) -> None:
        """Wait for ``services`` (ids). Raises typer.Exit when they do not converge."""
        if self._detach:
            return
        from cli.progress import wait_converged

        if status := wait_converged(self._api, services, self._before, quiet=self._quiet, timeout=self._timeout):
            raise typer.Exit(status)
