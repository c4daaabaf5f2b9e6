"""[[Host]] tables: what a host inherits, and which hosts can not live side by side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hmac_file_server.config import load
from hmac_file_server.settings.hosts import shared_secrets
from hmac_file_server.settings.problems import ConfigError

SECRET = "correct7-horse23-battery91-staple17"
OTHER = "other7-secret23-of91-another17"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refusal(path: Path, text: str) -> str:
    """The line, without the file's name; a secret is never in it."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    assert OTHER not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def two(path: Path, plain: str = "", first: str = "", second: str = "") -> str:
    folders = [f'StoreDir = "{path.parent}/{name}"\n' for name in "ab"]
    return (
        f'Secret = "{SECRET}"\n{plain}\n[[Host]]\nUploadSubDir = "a"\n{folders[0]}{first}\n'
        f'[[Host]]\nUploadSubDir = "b"\n{folders[1]}{second}\n'
    )


def test_what_is_inherited(path: Path) -> None:
    """A host has what the plain keys say, but for the folder, where it says nothing itself."""
    plain = 'MaxUploadSize = "10MB"\nDeleteSecret = "delete-it"\n'
    second = f'Name = "the second"\nSecret = ["{OTHER}", "{SECRET}"]\nmaxuploadsize = 5\nDELETESECRET = ""\n'
    path.write_text(two(path, plain, second=second))
    config = load(str(path))
    one, other = config.hosts
    assert (one.name, one.upload_sub_dir, one.store_dir) == ("a", "a", f"{path.parent}/a")
    assert (one.secrets, one.delete_secret, one.max_upload_size) == ((SECRET.encode(),), b"delete-it", 10**7)
    assert (other.name, other.upload_sub_dir, other.store_dir) == ("the second", "b", f"{path.parent}/b")
    assert (other.secrets, other.delete_secret, other.max_upload_size) == ((OTHER.encode(), SECRET.encode()), b"", 5)
    assert list(shared_secrets(config.hosts)) == [(one, other)]
    assert load(str(path), config.handed_down) == config


def test_the_plain_keys_alone(path: Path) -> None:
    """With a secret and a folder they are a host of their own, the first one."""
    path.write_text(two(path, f'StoreDir = "{path.parent}/plain"'))
    assert [host.name for host in load(str(path)).hosts] == ["upload", "a", "b"]


def test_files_at_the_root(path: Path) -> None:
    """A host without a prefix is called after the root."""
    path.write_text(f'[[Host]]\nUploadSubDir = ""\nStoreDir = "{path.parent}/a"\nSecret = "{SECRET}"\n')
    (host,) = load(str(path)).hosts
    assert (host.name, host.upload_sub_dir) == ("/", "")


def test_secrets_in_files(path: Path) -> None:
    """Each host may have a file for its secret, or several while one replaces another; workers are given them."""
    for name, secret in (("new", SECRET), ("old", OTHER)):
        path.with_name(name).write_text(secret + "\n")
    files = f'["{path.with_name("new")}", "{path.with_name("old")}"]'
    path.write_text(
        f'SecretFile = {files}\n[[Host]]\nUploadSubDir = "a"\nStoreDir = "{path.parent}/a"\n'
        f'[[Host]]\nUploadSubDir = "b"\nStoreDir = "{path.parent}/b"\nSecretFile = "{path.with_name("old")}"\n'
    )
    config = load(str(path))
    assert [host.secrets for host in config.hosts] == [(SECRET.encode(), OTHER.encode()), (OTHER.encode(),)]
    path.with_name("new").unlink()
    assert load(str(path), config.handed_down) == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('SecretFile = []\nStoreDir = "/x"', "name the file that holds the secret"),
        ('SecretFile = [1]\nStoreDir = "/x"', "not a text"),
        ('SecretFile = ["/nowhere/at-all"]\nStoreDir = "/x"', "No such file"),
        ('SecretFile = [""]\nStoreDir = "/x"', "is empty"),
    ],
)
def test_lists_of_files(path: Path, text: str, reason: str) -> None:
    """A list of files that can not be read is refused like a single one."""
    assert reason in refusal(path, text)


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ('Secrt = "x"', "[[Host]] 1: Secrt: unknown key; did you mean Secret?"),
        ("Colour = 1", "[[Host]] 1: Colour: unknown key; etc/config.toml lists the keys"),
        (
            "Workers = 2",
            "[[Host]] 1: Workers: belongs to the daemon, not to a host: write it above",
        ),
        ("listenport = 1", "[[Host]] 1: listenport: belongs to the daemon"),
        ("MaxUploadSize = -1", "[[Host]] 1: MaxUploadSize = -1: write a size from 0"),
        ("Secret = 5", "[[Host]] 1: Secret: write the secret in quotes"),
        ("DeleteSecret = 5", "[[Host]] 1: DeleteSecret: write the secret in quotes"),
        ('DeleteSecret = "5\\u0000image/png"', "[[Host]] 1: DeleteSecret: has a NUL character"),
        ('DeleteSecret = "orbit7-shadow23-breeze91-echo17"', "[[Host]] 1: DeleteSecret: is a placeholder"),
        ('Secret = "change-me"', "[[Host]] 1: Secret: is a placeholder"),
        ('DeleteSecret = "changeme"', "[[Host]] 1: DeleteSecret: is a placeholder"),
        (f'Secret = "{SECRET}"\nSecretFile = "/x"', '[[Host]] 1: SecretFile = "/x": there is a Secret too'),
        (f'Secret = "{SECRET}"\nsecret = "x"', "[[Host]] 1: secret is there twice, also as Secret"),
        ('SecretFile = "/nowhere/at-all"', '[[Host]] 1: SecretFile = "/nowhere/at-all": No such file'),
        ('Name = ""', '[[Host]] 1: Name = "": write a name'),
        ('Name = "a\\nb"', "[[Host]] 1: Name = "),
        ("Name = 1", "[[Host]] 1: Name = 1: not a text"),
        (f'Name = "{"x" * 65}"', "[[Host]] 1: Name = "),
        ('Name = "b"', "Name: two hosts are called b; give each its own"),
    ],
)
def test_a_table_that_can_not_be(path: Path, first: str, line: str) -> None:
    """What is wrong in a table is named with its place, in one line."""
    assert refusal(path, two(path, first=first)).startswith(line)


@pytest.mark.parametrize("text", ["Host = 1", 'Host = "x"', "[Host]\nName = 1", "Host = [1]", "[host.x]"])
def test_no_tables(path: Path, text: str) -> None:
    """Another form of it is told how it is written."""
    plain = f'Secret = "{SECRET}"\nStoreDir = "/x"\n'
    assert "write each host as a table of its own, which begins with [[Host]]" in refusal(path, plain + text)


def test_a_host_that_lacks_something(path: Path) -> None:
    """Each host needs a secret and a folder."""
    folder = f'StoreDir = "{path.parent}/a"'
    assert refusal(path, f"[[Host]]\n{folder}").startswith("[[Host]] 1: Secret is missing; add")
    assert refusal(path, f'Secret = "{SECRET}"\n[[Host]]\n').startswith("[[Host]] 1: StoreDir is missing; add")
    line = refusal(path, f'Secret = "{SECRET}"\nStoreDir = "/x"\n[[Host]]\nUploadSubDir = "b"\n')
    assert line.startswith("[[Host]] 1: StoreDir is missing; add")


@pytest.mark.parametrize("prefix", ["b", "/b/", "b/"])
def test_equal_prefixes(path: Path, prefix: str) -> None:
    """Two hosts at one prefix could not be told apart."""
    line = refusal(path, two(path, first="").replace('UploadSubDir = "a"', f'Name = "x"\nUploadSubDir = "{prefix}"'))
    assert line == 'UploadSubDir of the hosts x and b is "b"; give each its own'
    plain = f'StoreDir = "{path.parent}/plain"\nUploadSubDir = "{prefix}"\n'
    assert 'UploadSubDir of the hosts b and b is "b"' in refusal(path, two(path, plain))


@pytest.mark.parametrize("other", ["a", "a/", "./a", "a/inside", "../{name}/a", "link", "link/inside", "."])
def test_folders_that_meet(path: Path, other: str) -> None:
    """Two hosts in one folder, or one inside the other's, however it is written, would see each other's files."""
    (path.parent / "a").mkdir()
    os.symlink("a", path.parent / "link")
    folder = f"{path.parent}/{other.format(name=path.parent.name)}"
    line = refusal(path, two(path).replace(f'"{path.parent}/b"', f'"{folder}"'))
    assert line.startswith("StoreDir of the hosts a and b: ")
    assert line.endswith("are one folder, or one lies in the other; give each its own")


def test_folders_beside_each_other(path: Path) -> None:
    """A name that begins like another is no folder inside it."""
    path.write_text(two(path).replace(f'"{path.parent}/b"', f'"{path.parent}/a-too"'))
    assert len(load(str(path)).hosts) == 2


def test_the_example_secret(path: Path) -> None:
    """The secret that everybody knows is refused for a host, too, where others could reach it."""
    example = 'Secret = "orbit7-shadow23-breeze91-echo17"'
    assert "everybody knows" in refusal(path, two(path, 'ListenPort = ":8080"', second=example))
