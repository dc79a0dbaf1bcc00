"""worker.kernel.nft: batches are whole or nothing, errors are nft's words. Root: a context needs a namespace of its own."""

from __future__ import annotations

import threading

import pytest

from tests.worker.network.namespaces import Namespace
from worker.kernel.nft import Nft, NftError

pytestmark = pytest.mark.root


@pytest.fixture
def namespace():
    made = Namespace()
    yield made
    made.close()


def test_a_batch_is_applied_whole_and_listed(namespace: Namespace):
    def work():
        with Nft() as nft:
            nft.run("add table inet t\nadd chain inet t c")
            return nft.run("list table inet t"), nft.run_json({"nftables": [{"list": {"tables": {}}}]})

    text, listing = namespace.run(work)
    assert "chain c" in text
    assert any(entry.get("table", {}).get("name") == "t" for entry in listing["nftables"])


def test_a_refused_batch_changes_nothing_and_says_why(namespace: Namespace):
    def work():
        with Nft() as nft:
            with pytest.raises(NftError, match="No such file or directory") as caught:
                nft.run("add table inet t\ndelete chain inet t nowhere")
            assert "delete chain inet t nowhere" in caught.value.commands
            return nft.run("list tables")

    assert namespace.run(work).strip() == ""


def test_a_syntax_error_is_reported_and_the_context_lives_on(namespace: Namespace):
    def work():
        with Nft() as nft:
            with pytest.raises(NftError, match="syntax error"):
                nft.run("add tabel inet t")
            nft.run("add table inet t", dry=True)
            assert nft.run("list tables").strip() == ""
            nft.run("add table inet t")
            return nft.run("list tables")

    assert namespace.run(work).strip() == "table inet t"


def test_another_thread_and_a_closed_context_are_refused(namespace: Namespace):
    def work():
        nft = Nft()
        refused: list[str] = []

        def elsewhere() -> None:
            try:
                nft.run("list tables")
            except NftError as error:
                refused.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        nft.close()
        with pytest.raises(NftError, match="closed"):
            nft.run("list tables")
        return refused

    assert namespace.run(work) == ["the nftables context belongs to another thread"]
