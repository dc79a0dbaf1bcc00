"""What a decision says when there is nothing of a kind left to give."""

from __future__ import annotations


class Exhausted(Exception):
    """Nothing of this kind is left, or not yet there; the message says of which, and what to do."""
