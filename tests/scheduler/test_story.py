"""A task's life as a person reads it."""

from covey.model.task_states import TaskState as S
from scheduler.story import story
from tests.scheduler.apply import World


def test_story_of_a_task_that_failed_and_was_followed() -> None:
    world = World()
    world.node("n1")
    world.network("net")
    world.service("web", template={"ContainerSpec": {"Image": "x"}, "Networks": [{"Target": "net"}]})
    world.run()
    first = world.running("web")[0]
    world.report(first.id, S.FAILED, exit_code=137, oom_killed=True, error="task: non-zero exit (137)")
    world.run()
    snapshot = world.snapshot
    old, new = world.tasks("web")
    told = [line.what for line in story(old, snapshot.statuses[old.id], [old, new], snapshot.statuses, "n1")]
    assert told == [
        "created as attempt 1 of slot 1 of service web",
        "given 10.0.0.3/24 in network net",
        "assigned to node n1",
        "is failed, exit code 137, killed for lack of memory: task: non-zero exit (137)",
        f"last decision: task {old.id} is failed: restarted after 5 s; desired shutdown",
        f"followed by task {new.id}: placement: binpack",
    ]
    told = [line.what for line in story(new, snapshot.statuses.get(new.id), [old, new], snapshot.statuses, "n1")]
    assert told[0] == f"its predecessor {old.id} is failed"
