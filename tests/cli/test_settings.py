"""Settings: which source wins, what is refused, and that the refusal tells what to do."""

import os
import re

import msgspec
import pytest

from cartwheel.core.errors import ConfigError
from cartwheel.runtime.addresses import join_address, split_address
from cartwheel.runtime.settings import (
    SETTING_NAMES,
    MemberSpec,
    Secret,
    ServerSettings,
    is_loopback,
    keep_secret,
    load_settings,
    new_secret,
    read_secret,
    variable_of,
)

THREE = "n1=127.0.0.1:7702,n2=127.0.0.1:7712,n3=127.0.0.1:7722"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "cluster.secret"
    keep_secret(path, new_secret())
    return path


def write(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


# --- what wins ---


@pytest.mark.parametrize(
    ("file", "variable", "flag", "value", "origin"),
    [
        (None, None, None, 1024, "default"),
        ("64", None, None, 64, "q in "),
        ("64", "128", None, 128, "CARTWHEEL_Q"),
        ("64", "128", "256", 256, "--q"),
        ("64", None, "256", 256, "--q"),
        (None, "128", "256", 256, "--q"),
        ("64", "", None, 64, "q in "),  # an empty variable is as good as none
    ],
)
def test_flags_win_over_the_environment_over_the_file(tmp_path, file, variable, flag, value, origin):
    """Each row: the same setting in these places gives this value, and the origin says whence."""
    path = write(tmp_path, f"q = {file}") if file else None
    environ = {"HOME": str(tmp_path)} | ({"CARTWHEEL_Q": variable} if variable is not None else {})
    settings, origins = load_settings({"q": flag}, environ, path)
    assert settings.q == value
    assert origins["q"].startswith(origin)


def test_without_any_setting_a_node_is_a_cluster_of_itself(tmp_path):
    """Invariants 1 to 4 hold for the defaults, and nothing is written."""
    settings, origins = load_settings({}, {"HOME": str(tmp_path)})
    assert settings.initial_cluster == (MemberSpec("n1", "127.0.0.1:7702", host="127.0.0.1"),)
    assert (settings.advertise_host, settings.peer_port) == ("127.0.0.1", 7702)
    assert settings.data == tmp_path / ".local/share/cartwheel/n1"
    assert settings.secret_file == settings.data / "secret"
    assert len(settings.secret) >= 32
    assert set(origins) == set(SETTING_NAMES)
    assert list(tmp_path.iterdir()) == []


def test_the_data_directory_follows_xdg_and_the_node(tmp_path):
    """$XDG_DATA_HOME/cartwheel/NODE."""
    settings, _ = load_settings({"node": "n9"}, {"XDG_DATA_HOME": str(tmp_path)})
    assert settings.data == tmp_path / "cartwheel" / "n9"


def test_every_kind_of_setting_parses_from_text(tmp_path):
    """Words, numbers, fractions, switches and paths."""
    environ = {
        "CARTWHEEL_NODE_ID": "a.b-c_D",
        "CARTWHEEL_NODE": "127.0.0.1:9",  # the client commands' variable: no setting
        "CARTWHEEL_DATA": "~/somewhere",
        "CARTWHEEL_ENGINE": "lmdb",
        "CARTWHEEL_ALLOW_FLUSH": "Yes",
        "CARTWHEEL_ALLOW_BEST_EFFORT_NX": "0",
        "CARTWHEEL_REQUEST_TIMEOUT_S": "0.5",
        "CARTWHEEL_RESP_PORT": "6379",
        "CARTWHEEL_LOG_LEVEL": "debug",
    }
    settings, _ = load_settings({}, environ)
    assert (settings.node, settings.engine, settings.log_level) == ("a.b-c_D", "lmdb", "debug")
    assert (settings.allow_flush, settings.allow_best_effort_nx) == (True, False)
    assert (settings.request_timeout_s, settings.resp_port) == (0.5, 6379)
    assert settings.data.is_absolute()
    assert settings.data.name == "somewhere"


def test_the_file_takes_its_own_types(tmp_path):
    """TOML numbers, booleans and tables."""
    path = write(
        tmp_path,
        'node = "n2"\nallow_flush = true\nrequest_timeout_s = 3\n'
        '[[initial_cluster]]\nnode = "n2"\naddress = "127.0.0.1:9002"\nzone = "a/b"\nweight = 2\n',
    )
    settings, origins = load_settings({}, {"HOME": str(tmp_path)}, path)
    assert settings.initial_cluster == (MemberSpec("n2", "127.0.0.1:9002", "a/b", "127.0.0.1", 2.0),)
    assert settings.peer_port == 9002
    assert "initial_cluster" in origins["peer_port"]
    assert (settings.allow_flush, settings.request_timeout_s) == (True, 3.0)


def test_members_have_zones_hosts_and_weights(secret_file):
    """The text form of ``initial_cluster``, and that the own address follows from it."""
    flags = {
        "node": "n2",
        "initial_cluster": "n1=127.0.0.1:7702/zone=a/weight=2, n2=[::1]:7712/host=h2,",
        "secret_file": secret_file,
    }
    settings, _ = load_settings(flags, {})
    assert settings.initial_cluster == (
        MemberSpec("n1", "127.0.0.1:7702", "a", "127.0.0.1", 2.0),
        MemberSpec("n2", "[::1]:7712", "", "h2", 1.0),
    )
    assert (settings.advertise_host, settings.peer_port) == ("::1", 7712)


def test_peers_may_be_dialed_elsewhere(tmp_path):
    """As text, or as a table in the file; by default each is dialed at its address."""
    wanted = {"n2": "127.0.0.1:9001", "n3": "[::1]:9002"}
    assert load_settings({}, {})[0].dial == {}
    assert load_settings({"dial": "n2=127.0.0.1:9001, n3=[::1]:9002,"}, {})[0].dial == wanted
    path = write(tmp_path, '[dial]\nn2 = "127.0.0.1:9001"\nn3 = "[::1]:9002"\n')
    assert load_settings({}, {}, path)[0].dial == wanted


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resp-port = 1", ["'resp-port'", "did you mean resp_port?"]),
        ("rest_port = 1", ["did you mean resp_port?"]),
        ("zzz = 1", ["unknown setting 'zzz'", "known are node, cluster"]),
        ("secret = 'x'", ["name its file with secret_file"]),
        ("q = ", ["is not TOML"]),
        ("q = true", ["q=True (from q in", "a whole number between 1 and 65536"]),
        ("q = 1.5", ["a whole number"]),
        ("node = 7", ["node=7", "must be a text"]),
        ("allow_flush = 1", ["allow_flush=1", "true or false"]),
        ("initial_cluster = 3", ["initial_cluster", "[[initial_cluster]]"]),
        ("[[initial_cluster]]\nnode = 'n1'\n", ["address"]),
        ("dial = 3", ["dial", "[dial]"]),
        ("[dial]\nn2 = 9001", ["n2=9001 is not NODE=HOST:PORT"]),
        ("[[initial_cluster]]\nnode = 'n1'\naddress = '127.0.0.1:1'\nzoen = 'a'", ["zoen"]),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, words):
    """Each row: this file is refused in one line that names it and has these words."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"HOME": str(tmp_path)}, path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"q": "1000"}, ["q='1000' (from --q)", "power of two"]),
        ({"q": "131072"}, ["between 1 and 65536"]),
        ({"resp_port": "0"}, ["resp_port='0' (from --resp-port)", "between 1 and 65535"]),
        ({"resp_port": "x"}, ["whole number"]),
        ({"resp_port": "7702"}, ["resp_port (from --resp-port)", "both 7702"]),
        ({"request_timeout_s": "nan"}, ["request_timeout_s"]),
        ({"engine": "leveldb"}, ["rocksdb, lmdb, memory"]),
        ({"node": "a b"}, ["1 to 64 of"]),
        ({"node": "n" * 65}, ["1 to 64 of"]),
        ({"node": ""}, ["not empty"]),
        ({"cluster": "c" * 201}, ["200 bytes"]),
        ({"log_level": "loud"}, ["debug, info, warning, error"]),
        ({"initial_cluster": ","}, ["names no node"]),
        ({"initial_cluster": "n1"}, ["is not NODE=HOST:PORT"]),
        ({"initial_cluster": "n1=127.0.0.1"}, ["is not HOST:PORT"]),
        ({"initial_cluster": "n1=::1:7702"}, ["is not HOST:PORT"]),
        ({"initial_cluster": "n1=127.0.0.1:7702/rack=3"}, ["'rack=3'", "zone=..."]),
        ({"initial_cluster": "n1=127.0.0.1:7702/weight=x"}, ["no number"]),
        ({"initial_cluster": "n1=127.0.0.1:7702/weight=0"}, ["weight", "between"]),
        ({"initial_cluster": "n1=127.0.0.1:1,n1=127.0.0.1:2"}, ["the node n1 is there twice"]),
        ({"initial_cluster": "n1=127.0.0.1:1,n2=127.0.0.1:1"}, ["the address 127.0.0.1:1 is there twice"]),
        ({"dial": "n2=127.0.0.1"}, ["dial (from --dial)", "n2=127.0.0.1 is not NODE=HOST:PORT"]),
        ({"dial": "n2"}, ["n2= is not NODE=HOST:PORT"]),
        ({"dial": "=127.0.0.1:1"}, ["'' is no node's name"]),
        ({"dial": "n2=127.0.0.1:1,n2=127.0.0.1:2"}, ["a node is there twice"]),
        ({"initial_cluster": THREE, "node": "n4"}, ["n1, n2, n3", "not this node, n4 (from --node)"]),
        ({"initial_cluster": THREE, "peer_port": "7712"}, ["peer_port=7712", "contradicts"]),
        ({"initial_cluster": THREE, "advertise_host": "::1"}, ["advertise_host=::1", "contradicts"]),
        ({"initial_cluster": THREE}, ["a cluster of 3 nodes needs one secret_file", "--secret-file"]),
        ({"host": "0.0.0.0"}, ["host=0.0.0.0 (from --host)", "no TLS", "--insecure"]),
        ({"host": "db1.example"}, ["--insecure"]),
        ({"initial_cluster": "n1=10.0.0.1:7702"}, ["would listen on 127.0.0.1 only", "--host"]),
        ({"advertise_host": "10.0.0.1"}, ["would listen on 127.0.0.1 only"]),
    ],
)
def test_mistakes_in_flags(tmp_path, flags, words):
    """Each row: these flags are refused in one line with these words."""
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, {"HOME": str(tmp_path)})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_mistake_in_the_environment_names_the_variable():
    """The user must find the place."""
    with pytest.raises(ConfigError, match=r"q='x' \(from CARTWHEEL_Q\)"):
        load_settings({}, {"CARTWHEEL_Q": "x"})


def test_beyond_loopback_with_insecure(secret_file):
    """Who insists gets it."""
    flags = {
        "host": "0.0.0.0",
        "insecure": True,
        "initial_cluster": "n1=10.0.0.1:7702,n2=10.0.0.2:7702",
        "secret_file": secret_file,
    }
    settings, _ = load_settings(flags, {})
    assert (settings.host, settings.advertise_host) == ("0.0.0.0", "10.0.0.1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False)],
)
def test_loopback(host, expected):
    """Only what surely stays on this machine counts as loopback."""
    assert is_loopback(host) is expected


# --- the secret ---


def test_a_kept_secret_is_read_back_and_never_replaced(tmp_path):
    """0600, and a second call changes nothing."""
    path = tmp_path / "secret"
    first = new_secret()
    keep_secret(path, first)
    keep_secret(path, new_secret())
    assert read_secret(path, "default") == first
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_secret_open_to_others_is_refused(secret_file, mode):
    """And the message is the command that mends it."""
    secret_file.chmod(mode)
    with pytest.raises(ConfigError, match=re.escape(f"mode {mode:04o}): chmod 600 {secret_file}")):
        load_settings({"secret_file": secret_file}, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(secret_file):
    """Its owner could read it, or change it."""
    os.chown(secret_file, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load_settings({"secret_file": secret_file}, {})


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "0 bytes"), (b"short\n", "at least 16"), (b"x" * 5000, "longer than 4096")]
)
def test_a_secret_of_no_sensible_length_is_refused(secret_file, content, words):
    """Empty, guessable, or the wrong file."""
    secret_file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_settings({"secret_file": secret_file}, {})


def test_a_secret_that_is_missing_or_no_file_is_refused(tmp_path):
    """The system's own words, with the name of the file and where it came from."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(f"secret_file {path} (from CARTWHEEL_SECRET_FILE)")):
            load_settings({}, {"CARTWHEEL_SECRET_FILE": str(path)})


def test_white_space_is_not_part_of_the_secret(secret_file):
    """An editor's line end must not make two nodes disagree."""
    secret_file.write_bytes(b"  0123456789abcdef \r\n")
    assert read_secret(secret_file, "default") == b"0123456789abcdef"


def test_a_secret_does_not_print_itself(secret_file):
    """In no form in which settings reach a log."""
    settings, _ = load_settings({"secret_file": secret_file}, {})
    text = settings.secret.decode()
    for shown in (repr(settings), str(settings), f"{settings.secret}", str([settings.secret]), repr(settings.secret)):
        assert text not in shown
    with pytest.raises(AssertionError):
        msgspec.structs.replace(settings, secret=b"plain")
    assert isinstance(ServerSettings().secret, Secret)


# --- names ---


def test_addresses_survive_a_round_trip():
    """Also those with colons."""
    for host, port in (("127.0.0.1", 1), ("::1", 7702), ("db.example", 65535)):
        assert split_address(join_address(host, port)) == (host, port)


def test_no_two_settings_share_a_variable():
    """And none takes that of the client commands."""
    variables = [variable_of(name) for name in SETTING_NAMES]
    assert len(set(variables)) == len(variables)
    assert not {"CARTWHEEL_NODE", "CARTWHEEL_CONFIG"} & set(variables)
