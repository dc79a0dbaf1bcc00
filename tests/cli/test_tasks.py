"""Tasks as people see them: history is indented in a table, and plain where programs read."""

from cli import tasks


def shown(form, capsys):
    made = [
        {"ID": f"{n}" * 25, "ServiceID": "s", "Slot": slot, "CreatedAt": f"2026-01-01T00:00:0{n}Z"}
        for n, slot in ((1, 1), (2, 1), (3, 2))
    ]
    tasks.LISTING.show(tasks.rows(made, {"s": "web"}, {}, whole=True), form=form)
    return capsys.readouterr().out.splitlines()


def test_a_table_indents_the_history_of_a_slot(capsys):
    assert [line[28:37].rstrip() for line in shown(None, capsys)[1:]] == ["web.1", " \\_ web.1", "web.2"]
    assert shown("table {{.Name}}", capsys)[1:] == ["web.1", " \\_ web.1", "web.2"]


def test_programs_read_plain_names(capsys):
    assert shown("{{.Name}}", capsys) == ["web.1", "web.1", "web.2"]
