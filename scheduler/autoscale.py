"""How many replicas a service should have, by how busy those are that run. Pure: samples in, a number and why out.

The rule is proportional, as the horizontal autoscaler of Kubernetes has it: wanted = ceil(replicas × mean / target), where the
mean is over running replicas with a fresh sample. Within ``tolerance`` of the target nothing changes. Growing follows at
once, bounded by doubling; shrinking waits until no sample within ``cool_down`` asked for more, so that a dip does not undo
what a peak needed. Where samples come from, and who sets the number, is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple


class Policy(NamedTuple):
    """``target``: the use each replica should have, in the unit of the samples (as 0.6 of a CPU). Seconds else."""

    minimum: int
    maximum: int
    target: float
    cool_down: float = 300.0
    tolerance: float = 0.1
    fresh: float = 60.0


class Sample(NamedTuple):
    """The use of one task at a time (seconds of the epoch)."""

    task: str
    at: float
    value: float


class Advice(NamedTuple):
    """``replicas`` wanted now, and why in words and numbers."""

    replicas: int
    why: str


def advise(policy: Policy, replicas: int, running: Sequence[str], samples: Sequence[Sample], now: float) -> Advice:
    """For a service that asks for ``replicas``, of which the tasks ``running`` run."""
    bounded = min(max(replicas, policy.minimum), policy.maximum)
    if bounded != replicas:
        return Advice(bounded, f"{replicas} replicas are not from {policy.minimum} to {policy.maximum}")
    known = frozenset(running)
    mine = [sample for sample in samples if sample.task in known and sample.at <= now]
    mean = _mean(mine, now, policy.fresh)
    if mean is None or replicas == 0:
        return Advice(replicas, "no running task has a fresh sample")
    wanted = _wanted(policy, replicas, mean)
    said = f"mean use {mean:g}, target {policy.target:g}"
    if wanted >= replicas:
        return Advice(wanted, said if wanted > replicas else f"{said}: enough")
    peak = _peak(policy, replicas, mine, now)
    if peak > wanted:
        return Advice(min(peak, replicas), f"{said}: {peak} were needed within the last {policy.cool_down:g} s")
    return Advice(wanted, said)


def _mean(samples: Sequence[Sample], at: float, fresh: float) -> float | None:
    """The mean of each task's newest sample that is not older than ``fresh`` seconds at ``at``."""
    newest: dict[str, Sample] = {}
    for sample in samples:
        if at - fresh <= sample.at <= at and (sample.task not in newest or newest[sample.task].at < sample.at):
            newest[sample.task] = sample
    return sum(sample.value for sample in newest.values()) / len(newest) if newest else None


def _wanted(policy: Policy, replicas: int, mean: float) -> int:
    ratio = mean / policy.target
    if abs(ratio - 1) <= policy.tolerance:
        return replicas
    # What is a hair above a whole number is that number: a float's last digit starts no replica.
    wanted = ceil(replicas * ratio - 1e-9)
    return min(max(wanted, policy.minimum), policy.maximum, 2 * replicas)


def _peak(policy: Policy, replicas: int, samples: Sequence[Sample], now: float) -> int:
    """The most that was wanted at any sample within the cool-down. Without samples that far back, what there is stays."""
    moments = sorted({sample.at for sample in samples if sample.at >= now - policy.cool_down})
    if not any(sample.at <= now - policy.cool_down for sample in samples):
        return replicas
    means = (_mean(samples, at, policy.fresh) for at in moments)
    return max((_wanted(policy, replicas, mean) for mean in means if mean is not None), default=replicas)
