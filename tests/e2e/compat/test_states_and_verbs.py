"""The same containers, states and verbs at Covey's cluster and at Debian's dockerd: the same codes but for those given."""

from __future__ import annotations

from typing import Any

import pytest

from tests.worker.containers import states_and_verbs
from tests.worker.containers.states_and_verbs import STATES, Caller
from tests.worker.containers.test_states_and_verbs import EXPECTED

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

IMAGE = "covey/busybox:demo"
CALLERS = "the caller's mistake, not the server's fault"
OTHER_NETWORK = "20.10 cannot rename what has no network sandbox for the moment"
CHECKED_FIRST = "a body is checked before the container is looked up"
#: dockerd 20.10's code where it is another, and why ours is.
DIFFERENT = {
    **{(state, "unpause"): (500, CALLERS) for state in ("created", "running", "restarting", "exited")},
    **{(state, "top without pids"): (500, CALLERS) for state in ("running", "paused")},
    ("running", "exec with bad keys"): (500, CALLERS),
    ("restarting", "rename"): (404, OTHER_NETWORK),
    ("restarting", "resize"): (404, "containerd's 'no such container' for one that is there"),
    ("missing", "update to a bad policy"): (404, CHECKED_FIRST),
    ("missing", "update to too little memory"): (404, CHECKED_FIRST),
}


def test_dockerd_has_the_same_codes(dockerd: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answers = states_and_verbs.probe(Caller(dockerd.path), IMAGE)
    wrong = [
        (state, verb, answers[state, verb], "expected", DIFFERENT.get((state, verb), (code,))[0])
        for (state, verb), code in EXPECTED.items()
        if answers[state, verb].status != DIFFERENT.get((state, verb), (code,))[0]
    ]
    assert not wrong
    with capsys.disabled():
        same = len(EXPECTED) - len(DIFFERENT)
        print(f"\nstates × verbs: {same} of {len(EXPECTED)} answers have dockerd 20.10's code; the others:")
        for (state, verb), (code, why) in DIFFERENT.items():
            print(f"  {verb:30} {state:11} Covey {EXPECTED[state, verb]}, dockerd {code}: {why}")


def test_a_cluster_answers_as_its_node_does(covey: Any) -> None:
    """Through a manager's front door, where a container that is not here is looked for in the cluster."""
    states = tuple(state for state in STATES if state in ("running", "exited", "missing"))
    answers = states_and_verbs.probe(Caller(covey.path), IMAGE, states)
    # What is nowhere is told before a request is read further.
    codes = {key: {code, 404} if key[0] == "missing" else {code} for key, code in EXPECTED.items()}
    assert not [(key, answer, codes[key]) for key, answer in answers.items() if answer.status not in codes[key]]
