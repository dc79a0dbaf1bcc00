"""Every timer and policy a decision reads, in one frozen struct with two profiles: ``default`` and ``test``.

It decides the numbers (design §8: those that users of Swarm rely on); it knows no clock. Seconds and counts throughout.
"""

from __future__ import annotations

import msgspec

from covey.model.resources import NOMINAL, Resources


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Timers and policies.

    A node is down ``missed_heartbeats`` periods after it was last heard. That time has two parts: for
    ``session_silence`` the dispatcher keeps the session record of a worker it does not hear (also when the connection
    closed: a quick reconnect is then no event at all); once the record is gone, ``grace`` runs in ``liveness``.
    """

    heartbeat: float = 5.0
    heartbeat_jitter: float = 0.5
    missed_heartbeats: int = 3
    session_silence: float = 7.5
    #: How long after an election the grace is doubled: workers are still finding their managers.
    new_leader: float = 30.0
    #: This many nodes and this share of those ready, gone at once, look like our own trouble: the grace is doubled.
    mass_count: int = 3
    mass_share: float = 0.34

    lease_ttl: float = 5.0
    resync: float = 60.0
    registrations: int = 3
    registration_window: float = 8.0
    backoff_first: float = 0.1
    backoff_last: float = 8.0

    #: Used where a spec's RestartPolicy has no Delay.
    restart_delay: float = 5.0
    #: A slot whose tasks keep crashing: so many restarts at the plain delay, then each delay twice the last, up to the limit
    #: (0: no back-off). A task that ran for ``backoff_reset`` did not crash. So many crashes on a node, and it is avoided.
    backoff_after: int = 3
    backoff_limit: float = 300.0
    backoff_reset: float = 300.0
    avoid_after: int = 5
    history: int = 5
    #: Former specs of a service that are kept for ``rollback --to``.
    past_specs: int = 10
    failure_limit: int = 5
    failure_window: float = 300.0

    #: So many tasks are placed in one step of a pass: none must hold the event loop for long (rule 15 of the house).
    pass_tasks: int = 2000
    #: So many tasks are made in one pass: the rest in the next.
    pass_creates: int = 10_000
    #: How fast the time of cron schedules passes: a test need not wait for minutes.
    cron_speed: float = 1.0

    #: binpack, spread, pack or pack-small, where a service does not say (docs/placement.md).
    strategy: str = "binpack"
    #: Steps a node that the improver of a packed list may take (scheduler/placement/improve.py); 0: it is not used.
    pack_effort: int = 0
    nominal: Resources = NOMINAL
    first_port: int = 30000
    last_port: int = 32767

    @property
    def down_after(self) -> float:
        """From the last sign of life to the verdict, without jitter."""
        return self.heartbeat * self.missed_heartbeats

    def grace(self, share: float) -> float:
        """From the end of the session record to the verdict; ``share`` in [0, 1) picks within the jitter."""
        period = self.heartbeat + self.heartbeat_jitter * (2 * share - 1)
        return max(period * self.missed_heartbeats - self.session_silence, self.heartbeat / 2)

    @classmethod
    def default(cls) -> Settings:
        """The numbers of a real cluster."""
        return cls()

    @classmethod
    def test(cls) -> Settings:
        """A cluster on one machine that shall heal in a blink: heartbeat 200 ms, down after 600 ms, no restart delay."""
        return cls(
            heartbeat=0.2,
            heartbeat_jitter=0.02,
            session_silence=0.3,
            new_leader=3.0,
            lease_ttl=2.0,
            resync=5.0,
            registration_window=0.4,
            backoff_first=0.02,
            backoff_last=0.5,
            restart_delay=0.0,
            cron_speed=30.0,
        )

    @classmethod
    def profile(cls, name: str) -> Settings:
        """The profile ``default`` or ``test``; ValueError names both."""
        if name == "default":
            return cls.default()
        if name == "test":
            return cls.test()
        raise ValueError(f"profile {name!r} is unknown: use default or test")
