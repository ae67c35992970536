"""`--endpoint`: which options it allows, its URLs and names, keys, certificates and proxies."""

import ssl
from pathlib import Path

import pytest
from command_line import assert_error
from loopback import Loopback, LoopbackHandler
from served import Served

CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"  # with its key, self-signed

# Options.


def test_endpoint_ignores_local_options_set_elsewhere(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.config("ctx = 10\ngpu-layers = 3\n")
    for name in ("CTX", "THREADS", "CACHE_GB", "CACHE_TYPE", "SPECULATIVE", "GPU_LAYERS"):
        monkeypatch.setenv(f"CEREBRUM_{name}", {"SPECULATIVE": "on", "CACHE_TYPE": "q8_0"}.get(name, "1"))
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


def test_endpoint_variable_names_several_servers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    served.config(f'[endpoints.big]\nurl = "{first.url}"\n')
    monkeypatch.setenv("CEREBRUM_ENDPOINT", f"big  {second.url}")
    done = served.run_alone("batch", served.questions(12), "-q", "-o", "out.jsonl")
    assert (done.code, len(served.asked())) == (0, 12), done.err
    assert all(server.completions() for server in served.servers)


def test_endpoint_url_may_have_a_version_and_a_slash(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # unused: a server on loopback is asked directly
    url = served.servers[0].url
    for form in (f"{url}/", f"{url}/v1", f"{url}/v1/", url.replace("127.0.0.1", "localhost")):
        done = served.run_alone("ask", "--endpoint", form, "--seed", "0", "2 + 2?")
        assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


def test_endpoint_refuses_a_key_that_is_no_header(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("two\nlines", "schlüssel", "tab\t"):
        monkeypatch.setenv("CEREBRUM_API_KEY", key)
        done = served.run("ask", "hi")
        assert_error(done, 2, "API key")
        assert key not in done.err
    assert served.asked() == []


def test_endpoint_name_stands_for_a_table(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, _] = served.servers
    server.key, server.models = "sesame", ("a.gguf", "b.gguf")
    served.config(f'[endpoints.big]\nurl = "{server.url}/v1"\nkey_env = "BIG_KEY"\nserved_model = "b.gguf"\n')
    assert_error(served.run_alone("ask", "--endpoint", "big", "hi"), 2, "BIG_KEY is not set")
    monkeypatch.setenv("BIG_KEY", "sesame")
    done = served.run_alone("ask", "--endpoint", "big", "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err
    assert served.asked()[0]["model"] == "b.gguf"
    other = served.run_alone("ask", "--endpoint", "big", "--set", "served_model_name=a.gguf", "hi")
    assert (other.code, served.asked()[1]["model"]) == (0, "a.gguf")
    assert_error(served.run_alone("ask", "--endpoint", "small", "hi"), 2, "unknown endpoint 'small'", "big")


def test_endpoint_servers_of_different_models_are_refused(served: Served) -> None:
    served.servers[1].models = ("other.gguf",)
    done = served.run("batch", served.questions(12), "-o", "out.jsonl", servers=2)
    assert_error(done, 1, " serves ", "tiny.gguf (1000 bytes)", "other.gguf (1000 bytes)", "use servers of one model")
    assert served.asked() == []


@pytest.mark.slow
def test_endpoint_key_is_sent_to_the_server_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, other] = served.servers
    server.key = "sesame"
    assert_error(served.run("ask", "hi"), 1, "requires an API key", "CEREBRUM_API_KEY")
    monkeypatch.setenv("CEREBRUM_API_KEY", "wrong-key")
    done = served.run("ask", "--set", "verbose=on", "hi")
    assert_error(done, 1, "refuses this API key")
    assert "wrong-key" not in done.err + done.out
    monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
    assert served.run("ask", "--seed", "0", "2 + 2?").code == 0
    server.arm(path="/props", status=302, headers={"Location": f"{other.url}/props"})
    done = served.run("ask", "hi")
    assert_error(done, 1, "redirects to")
    assert other.asked == [] and "sesame" not in done.err
    assert served.run("batch", served.questions(3), "-o", "out.jsonl").code == 0
    files = [path for path in served.home.rglob("*") if path.is_file()]
    assert not any(b"sesame" in path.read_bytes() for path in files)


def test_endpoint_key_is_not_sent_over_plain_http(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
    url = served.servers[0].url.replace("127.0.0.1", "0.0.0.0")  # reaches the same server, and is not loopback by name
    assert_error(served.run_alone("ask", "--endpoint", url, "hi"), 2, "unencrypted", "ssh -L")
    assert served.servers[0].asked == []


def test_endpoint_untrusted_certificate_stops_immediately(served: Served) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    port = Loopback(LoopbackHandler)
    port.socket = context.wrap_socket(port.socket, server_side=True)
    port.start()
    try:
        url = f"https://127.0.0.1:{port.server_port}"
        done = served.run_alone("batch", served.questions(2), "-o", "out", "--endpoint", url)
    finally:
        port.stop()
    assert_error(done, 1, f"{url}: untrusted certificate: ", "SSL_CERT_FILE")
