from tests.support import Daemon


def test_upload_and_download(daemon: Daemon) -> None:
    """A signed PUT is stored at the path of its URL, and a GET brings it back."""
    assert daemon.put("slot/photo.jpg", b"x" * 300_000).status == 201
    assert (daemon.store / "slot/photo.jpg").read_bytes() == b"x" * 300_000
    answer = daemon.get("slot/photo.jpg")
    assert (answer.status, answer.body) == (200, b"x" * 300_000)
    assert answer.headers["content-type"] == "image/jpeg"
