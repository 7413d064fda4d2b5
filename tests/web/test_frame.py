"""What holds for every page: who may see it, what its forms prove, what its headers say, how errors look."""

from collections.abc import Callable, Iterator

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import text
from starlette.testclient import TestClient

from services.api.auth import identify
from services.contracts.persons import Role
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.web import assets, navigation, rendering
from services.web.app import PAGES, create_app
from services.web.security import HEADERS
from services.web.visitors import _get_call, _require_visitor, check_form, identify_guest, local_path
from tests.store.conftest import World
from tests.web.conftest import Browser

OPEN_PAGES = {"/login", "/link/{token}", "/theme"}
ROUTES = [route for module in PAGES for route in module.router.routes if isinstance(route, APIRoute)]


def called_by(dependant: Dependant) -> Iterator[Callable[..., object] | None]:
    for one in dependant.dependencies:
        yield one.call
        yield from called_by(one)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.name} {r.path}")
def test_every_page_is_for_somebody_logged_in_and_every_form_carries_its_token(route: APIRoute) -> None:
    calls = set(called_by(route.dependant))
    assert identify_guest in calls
    assert (_require_visitor in calls) == (route.path not in OPEN_PAGES), "a page asks for a visitor"
    assert check_form in calls
    assert identify not in calls, "pages take `needs` from services.web.visitors, not the api's"


@pytest.mark.parametrize("route", [r for r in ROUTES if "POST" in (r.methods or ())], ids=lambda r: r.path)
def test_every_form_but_those_that_log_in_calls_an_act(route: APIRoute) -> None:
    assert (_get_call in set(called_by(route.dependant))) == (route.path not in OPEN_PAGES)


def test_every_link_of_the_navigation_names_its_right() -> None:
    assert len({link.path for link in navigation.NAVIGATION}) == len(navigation.NAVIGATION)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/audit?person=ann", "/audit?person=ann"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
        ("/a\r\nSet-Cookie: x=1", "/"),
        ("/\t/evil.example", "/"),
    ],
)
def test_nobody_is_sent_to_another_site(path: str, expected: str) -> None:
    assert local_path(path) == expected


def test_templates_escape_and_refuse_undefined_names() -> None:
    made = rendering.environment()
    assert made.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    assert rendering.words("set_aside") == "set aside"
    with pytest.raises(Exception, match="undefined"):
        made.from_string("{{ nothing }}").render()


def test_no_template_holds_inline_script_or_style() -> None:
    folder = assets.FOLDER.parent / "templates"
    for file in folder.rglob("*.html"):
        source = file.read_text()
        assert " style=" not in source, file
        assert "<style" not in source, file
        assert "hx-on" not in source, file
        assert "|safe" not in source.replace(" ", ""), file
        for script in source.split("<script")[1:]:
            assert script.lstrip().startswith("src="), file
        for name in ("onclick", "onload", "onchange", "onsubmit", "onerror"):
            assert f" {name}=" not in source, file


@pytest.fixture
def anybody() -> Iterator[TestClient]:
    """A browser at an app whose database is away."""
    settings = Settings.model_validate({"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def test_every_response_carries_the_headers(anybody: TestClient) -> None:
    for path in ("/login", "/nowhere", "/v1/tasks", assets.asset_url("app.css")):
        response = anybody.get(path)
        for name, value in HEADERS.items():
            assert response.headers[name] == value, path


def test_static_files_are_kept_for_good_under_the_hash_of_their_content(anybody: TestClient) -> None:
    response = anybody.get(assets.asset_url("app.css"))
    assert response.headers["cache-control"] == assets.FOREVER
    assert response.headers["content-type"].startswith("text/css")
    assert response.content == (assets.FOLDER / "app.css").read_bytes()
    assert anybody.get("/static/0000000000000000/app.css").status_code == 404
    assert anybody.get("/static/0000000000000000/..%2fapp.py").status_code == 404
    assert anybody.get("/favicon.ico").headers["content-type"].startswith("image/svg+xml")


def test_errors_are_pages_for_browsers_and_problems_for_programs(anybody: TestClient) -> None:
    page = anybody.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "Not Found" in page.text
    assert anybody.get("/nowhere").headers["content-type"] == "application/problem+json"
    of_api = anybody.get("/v1/nowhere", headers={"Accept": "text/html"})
    assert of_api.headers["content-type"] == "application/problem+json"


def test_a_page_says_that_the_database_is_away(anybody: TestClient) -> None:
    response = anybody.get("/account", headers={"Accept": "text/html", "Cookie": "preceptor_session=x"})
    assert response.status_code == 503
    assert "database" in response.text
    assert response.headers["retry-after"]


@pytest.mark.parametrize(
    ("host", "is_served"),
    [("127.0.0.1:8700", True), ("localhost", True), ("[::1]:8700", True), ("evil.example", False)],
)
def test_an_open_installation_answers_to_names_of_this_machine_only(host: str, is_served: bool) -> None:
    app = create_app(Settings.model_validate({"api_open": True}))
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get(assets.asset_url("app.css"), headers={"Host": host})
        assert response.status_code == (200 if is_served else 421)
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.integration
def test_a_page_sends_strangers_to_the_login_and_back(browser: Callable[[], Browser], owner_key: str) -> None:
    stranger = browser()
    response = stranger.get("/audit", person="ann")
    assert (response.status_code, response.headers["location"]) == (303, "/login?next=/audit%3Fperson%3Dann")
    assert 'name="next" value="/audit?person=ann"' in stranger.get("/login", next="/audit?person=ann").text
    back = stranger.send("/login", key=owner_key, next="/audit?person=ann")
    assert back.headers["location"] == "/audit?person=ann"
    piece = browser().http.get("/audit", headers={"HX-Request": "true"})
    assert (piece.status_code, piece.headers["hx-redirect"]) == (401, "/login")


@pytest.mark.integration
@pytest.mark.parametrize("target", ["//evil.example/", "https://evil.example", "/\\evil.example"])
def test_a_login_leads_to_no_other_site(browser: Callable[[], Browser], owner_key: str, target: str) -> None:
    one = browser()
    assert one.get("/login", next=target).text.count('name="next" value="/"') == 2
    assert one.send("/login", key=owner_key, next=target).headers["location"] == "/"
    assert one.get("/login", next=target).headers["location"] == "/"


@pytest.mark.integration
def test_a_form_without_its_token_or_with_anothers_is_refused(
    owner: Browser, browser: Callable[[], Browser], store: Store
) -> None:
    foreign = browser().token("/login")
    for fields in ({}, {"csrf_token": ""}, {"csrf_token": "x"}, {"csrf_token": foreign}, {"csrf_token": "é"}):
        response = owner.http.post("/persons", data={"name": "mallory", "role": "owner", **fields})
        assert response.status_code == 403, fields
    token = owner.token("/persons")
    headers = {"Sec-Fetch-Site": "cross-site"}
    fields = {"csrf_token": token, "name": "mallory", "role": "owner"}
    assert owner.http.post("/persons", data=fields, headers=headers).status_code == 403
    assert owner.http.post("/logout", data={}).status_code == 403
    with store.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM person WHERE name = 'mallory'")) == 0
    sent = owner.http.post("/persons", data={"name": "ann", "role": "annotator"}, headers={"X-CSRF-Token": token})
    assert sent.status_code == 200


@pytest.mark.integration
def test_a_form_with_what_cannot_be_kept_is_refused_and_said(owner: Browser) -> None:
    token = owner.token("/persons")
    for fields in ({"name": "a\0b"}, {"name": ""}, {"name": "x" * 300}, {"name": "a", "extra": "1"}, {"role": "king"}):
        response = owner.send_as(token, "/persons", **({"name": "a", "role": "annotator"} | fields))
        assert response.status_code == 422, fields
        assert response.headers["content-type"].startswith("text/html")
    broken = {"Content-Type": "multipart/form-data; boundary=x", "Accept": "text/html"}
    assert owner.http.post("/persons", content=b"--y", headers=broken).status_code in (400, 403)


@pytest.mark.integration
@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-7", "nonesuch"])
def test_a_form_in_a_charset_that_is_none_is_refused_before_any_login(
    browser: Callable[[], Browser], charset: str
) -> None:
    page = browser()
    token = page.token("/login")
    half = b"+2AA-"  # in UTF-7, half a character
    for fields in (
        {b"csrf_token": half},
        {b"csrf_token": token.encode(), b"name": half, b"password": half},
        {b"csrf_token": token.encode(), b"name": b"\xff\x00", b"password": b"\xff"},
        {b"csrf_token": token.encode(), half: b"x"},
    ):
        parts = (b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % one for one in fields.items())
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}", "Accept": "text/html"}
        response = page.http.post("/login", content=b"".join(parts) + b"--x--\r\n", headers=headers)
        assert 400 <= response.status_code < 500, (fields, response.text)


@pytest.mark.integration
def test_a_login_asks_for_the_token_of_its_own_visit(browser: Callable[[], Browser], owner_key: str) -> None:
    assert browser().http.post("/login", data={"key": owner_key}).status_code == 403


@pytest.mark.integration
def test_pages_show_only_what_a_role_may_see(
    browser: Callable[[], Browser], person: Callable[[str, Role], str], world: World
) -> None:
    annotator, operator = browser(), browser()
    annotator.log_in(person("ann", Role.ANNOTATOR))
    operator.log_in(person("op", Role.OPERATOR))
    for path in ("/persons", "/audit"):
        response = annotator.get(path)
        assert response.status_code == 403
        assert "ann" in response.text
        assert f'href="{path}"' not in annotator.get("/account").text
    assert operator.get("/audit").status_code == 200
    assert operator.get("/persons").status_code == 403
    token = annotator.token("/account")
    assert annotator.send_as(token, "/persons", name="mallory", role="owner").status_code == 403


@pytest.mark.integration
def test_what_people_write_is_escaped(owner: Browser, store: Store) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    with store.transaction() as session:
        session.execute(
            text("UPDATE person SET name = :name WHERE role = 'owner'"),
            {"name": evil},
        )
    person_id = owner.get("/persons").text.split('href="/persons/')[1].split('"')[0]
    for path in ("/account", "/persons", f"/persons/{person_id}", "/audit", f"/audit?person={evil}"):
        shown = owner.get(path)
        assert shown.status_code == 200, path
        assert "<script>alert" not in shown.text, path
        assert "<img src=x" not in shown.text, path
        assert "&lt;script&gt;" in shown.text, path


@pytest.mark.integration
def test_a_notice_is_escaped_and_said_once(owner: Browser) -> None:
    owner.send("/account/sessions/end", seen_on="/account")
    assert "Sessions ended: 0." in owner.get("/account").text
    assert "Sessions ended" not in owner.get("/account").text
    planted = {"Accept": "text/html", "Cookie": "preceptor_notice=%3Cscript%3Ealert(1)"}
    shown = owner.http.get("/login", headers=planted)
    assert "<script>alert" not in shown.text


@pytest.mark.integration
def test_the_chosen_colours_are_kept(owner: Browser) -> None:
    assert "data-theme" not in owner.get("/account").text
    chosen = owner.send("/theme", seen_on="/account", theme="dark", next="/persons")
    assert chosen.headers["location"] == "/persons"
    assert '<html lang="en" data-theme="dark">' in owner.get("/account").text


@pytest.mark.integration
def test_an_open_installation_shows_pages_as_the_first_owner(settings: Settings, world: World) -> None:
    app = create_app(settings.model_copy(update={"api_open": True}))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        anybody = Browser(client)
        assert "requires no login" in anybody.get("/account").text
        assert anybody.send("/persons", seen_on="/persons", name="ann", role="annotator").status_code == 200
        assert client.post("/persons", data={"name": "mallory", "role": "owner"}).status_code == 403
