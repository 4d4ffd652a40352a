"""Who may use the service: the key, the Host, the Origin, and the file that a first start writes."""

from __future__ import annotations

import http.client
import os
import resource
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.routing import Route

from qwenbox.errors import UsageError
from qwenbox.server.app import PUBLIC, create_app
from qwenbox.server.auth import is_loopback, service_key
from qwenbox.server.pages import CONTENT_SECURITY_POLICY, Pages
from qwenbox.settings import Settings

KEY = "qk_0123456789abcdef"


def ask(
    running: Any, method: str, path: str, headers: list[tuple[str, str]] | None = None, body: bytes = b"", *, host: bool = True
) -> tuple[int, bytes]:
    """A request exactly as given: no client tidies it up."""
    connection = http.client.HTTPConnection("127.0.0.1", running.service.port, timeout=10)
    connection.putrequest(method, path, skip_host=not host or any(name.lower() == "host" for name, _ in headers or []), skip_accept_encoding=True)
    for name, value in headers or []:
        connection.putheader(name, value)
    connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    result = response.status, response.read()
    connection.close()
    return result


@pytest.fixture
def guarded(start):
    return start(host="127.0.0.1", api_key=KEY)


def all_routes(running: Any) -> list[tuple[str, str]]:
    app = create_app(running.service.shelf, Settings(api_key=KEY), running.service.archive)
    routes = [route for route in app.routes if isinstance(route, Route)]
    return [(method, route.path.replace("{model:path}", "tiny")) for route in routes for method in sorted(route.methods or ())]


def test_every_route_but_health_and_the_page_wants_the_key(guarded):
    public = {*PUBLIC, *Pages().paths}
    assert public.isdisjoint({"/metrics", "/version", "/v1/models", "/tokenize", "/detokenize"})
    for method, path in all_routes(guarded):
        status, body = ask(guarded, method, path)
        assert (status == 401) == (path not in public), (method, path, status, body)
        status, _ = ask(guarded, method, path, [("authorization", f"Bearer {KEY}")])
        assert status != 401, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        [], [("authorization", "")], [("authorization", "Bearer")], [("authorization", "Bearer ")], [("authorization", "Bearer wrong")],
        [("authorization", KEY)], [("authorization", f"Basic {KEY}")], [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")], [("authorization", f"Bearer {KEY}, Bearer {KEY}")],
        [("cookie", f"key={KEY}")], [("authorization", "Bearer \xff\xfe")],
        [("x-api-key", "")], [("x-api-key", f"Bearer {KEY}")], [("x-api-key", KEY), ("x-api-key", KEY)],
        [("x-api-key", KEY), ("authorization", "Bearer wrong")], [("x-api-key", "wrong"), ("authorization", f"Bearer {KEY}")],
    ],
    ids=repr,
)  # fmt: skip
def test_anything_but_the_one_bearer_is_refused(guarded, headers):
    status, body = ask(guarded, "GET", "/v1/models", headers)
    assert status == 401
    assert b"authentication_error" in body
    assert KEY.encode() not in body


def test_the_key_may_come_as_anthropics_clients_send_it(guarded):
    assert ask(guarded, "GET", "/v1/models", [("x-api-key", KEY)])[0] == 200
    assert ask(guarded, "GET", "/v1/models", [("x-api-key", KEY), ("authorization", f"Bearer {KEY}")])[0] == 200


def test_the_scheme_may_be_written_small(guarded):
    assert ask(guarded, "GET", "/v1/models", [("authorization", f"bearer {KEY}")])[0] == 200


@pytest.mark.parametrize("path", [
    f"/v1/models?key={KEY}", "//v1/models", "/v1/../metrics", "/v1%2fmodels", "/health/../metrics", "/health/", "/HEALTH", "/metrics/", "/%6detrics",
    "/health%00", "/v1/models#x", "/app.js/../../metrics", "/health;/metrics", "/nothing",
])  # fmt: skip
def test_no_spelling_of_a_path_gets_past_the_key(guarded, path):
    assert ask(guarded, "GET", path)[0] in (400, 401)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "POST"])
def test_no_method_gets_past_the_key(guarded, method):
    assert ask(guarded, method, "/v1/models")[0] == 401
    assert ask(guarded, method, "/health")[0] == 401


def test_the_absolute_form_of_a_url_gets_no_further(guarded):
    assert ask(guarded, "GET", "http://127.0.0.1/v1/models")[0] == 401


def test_the_client_sends_the_key_and_is_told_when_it_is_wrong(guarded):
    with guarded.client(api_key=KEY) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    with guarded.client(api_key="qk_another") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_the_key_is_in_no_log_and_no_metric(guarded, caplog):
    caplog.set_level("DEBUG")
    prompt = "canary-prompt"
    with guarded.client(api_key=KEY) as client:
        client.completions.create(model="tiny", prompt=prompt, max_tokens=3)
        metrics = ask(guarded, "GET", "/metrics", [("authorization", f"Bearer {KEY}")])[1].decode()
    ask(guarded, "GET", f"/v1/models?key={KEY}", [("authorization", "Bearer guess-guess")])
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records if record.name.startswith("qwenbox"))
    assert "/v1/completions" in logged
    for secret in (KEY, prompt, "guess-guess"):
        assert secret not in logged
        assert secret not in metrics


# --- browsers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered_to(served, host):
    for port in ("", f":{served.service.port}"):
        assert ask(served, "GET", "/v1/models", [("host", host + port)])[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:80",
        "127.0.0.1.evil.com",
        "localhost.",
        "localhost:80:80",
        "",
        "localhost@evil.com",
        "0.0.0.0",
        "[::1",
        "127.1",
        "x" * 5000,
    ],
)
def test_a_name_that_was_bound_to_loopback_is_not(served, host):
    status, body = ask(served, "GET", "/v1/models", [("host", host)])
    assert status == 403
    assert b"evil" not in body


def test_two_hosts_or_none_are_refused(served):
    assert ask(served, "GET", "/v1/models", [("host", "localhost"), ("host", "localhost")])[0] == 403
    assert ask(served, "GET", "/v1/models", host=False)[0] in (400, 403)


def test_pages_of_other_origins_cannot_post(served):
    own = f"http://127.0.0.1:{served.service.port}"
    body = b'{"prompt": "x", "max_tokens": 1}'
    for origin, allowed in ((own, True), ("http://evil.com", False), ("null", False), ("http://127.0.0.1:1", False), ("https://localhost", False)):
        status, _ = ask(served, "POST", "/v1/completions", [("origin", origin), ("content-type", "text/plain")], body)
        assert (status == 200) == allowed, origin
    served.engine.wait_for(lambda engine: len(engine.plans) == 1)


def test_preflights_find_no_permission(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.service.port, timeout=10)
    connection.request("OPTIONS", "/v1/completions", headers={"origin": "http://evil.com", "access-control-request-method": "POST"})
    response = connection.getresponse()
    assert response.status in (403, 405)
    assert not [name for name, _ in response.getheaders() if name.lower().startswith("access-control")]
    connection.close()


def test_the_page_comes_under_a_strict_policy_and_is_asked_for_again(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.service.port, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read()
    assert b"<html" in page
    assert response.getheader("content-security-policy") == CONTENT_SECURITY_POLICY
    assert response.getheader("x-content-type-options") == "nosniff"
    assert response.getheader("cache-control") == "no-cache"
    connection.request("GET", "/", headers={"if-none-match": response.getheader("etag")})
    again = connection.getresponse()
    assert (again.status, again.read()) == (304, b"")
    connection.request("GET", "/app.js")
    script = connection.getresponse()
    assert script.getheader("content-type").startswith("text/javascript")
    script.read()
    for path in ("/routes.py", "/web/app.js", "/../auth.py", "/%2e%2e/auth.py", "/__init__.py"):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 404, path
        response.read()
    connection.close()


# --- where the key comes from --------------------------------------------------------------------------------------


def test_loopback_needs_no_key_and_other_addresses_do():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


def test_the_first_start_on_another_address_makes_a_key_that_only_its_owner_reads(tmp_path):
    settings = Settings(host="0.0.0.0", state_dir=tmp_path / "state")
    first = service_key(settings)
    assert first.created == tmp_path / "state" / "api-key"
    assert stat.S_IMODE(os.stat(first.created).st_mode) == 0o600
    assert len(first.text) > 40
    second = service_key(settings)
    assert (second.text, second.created) == (first.text, None)
    assert service_key(Settings(host="127.0.0.1", state_dir=tmp_path / "state")).text is None


def test_a_disk_that_is_full_leaves_no_half_key(tmp_path):
    settings = Settings(host="0.0.0.0", state_dir=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))  # the key has more bytes, and thirty of them would be taken for one
    try:
        with pytest.raises(UsageError, match=r"cannot be kept in .*: File too large"):
            service_key(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    assert len(service_key(settings).text) > 40


def test_starts_at_the_same_time_make_one_key(tmp_path):
    settings = Settings(host="0.0.0.0", state_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: service_key(settings), range(32)))
    assert len({key.text for key in keys}) == 1
    assert [key.created for key in keys].count(tmp_path / "api-key") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_service_on_all_addresses_gives_a_sign_in_link_and_keeps_out_everybody_else(start):
    running = start(host="0.0.0.0")
    key = running.service.key.text
    assert running.service.sign_in_url == f"http://127.0.0.1:{running.service.port}/#key={key}"
    assert ask(running, "GET", "/v1/models", [("host", "any.example")])[0] == 401
    assert ask(running, "GET", "/v1/models", [("host", "any.example"), ("authorization", f"Bearer {key}")])[0] == 200


def test_a_key_comes_from_the_setting_or_its_file(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\nsecond line\n")
    assert service_key(Settings(api_key=KEY)).text == KEY
    assert service_key(Settings(api_key_file=file)).text == KEY
    for bad in ("short", "with space in the middle", "ключ-ключ-ключ-ключ", ""):
        with pytest.raises(UsageError):
            service_key(Settings(api_key=bad))
    with pytest.raises(UsageError, match="no key file"):
        service_key(Settings(api_key_file=tmp_path / "missing"))


def test_a_taken_port_is_an_error_that_says_so(start):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="--port"):
        start(port=taken.getsockname()[1])
