"""The simulated API answers as the real service was seen to."""

import time
from typing import Any

import httpx
import pytest
import requests
from vastai import VastAI

from tests.vast.fake import FakeVast
from tests.vast.kit import IMAGE, answers, create, until


def test_search_takes_the_query_of_the_sdk(vast: FakeVast, sdk: VastAI) -> None:
    found = sdk.search_offers(
        query="num_gpus=1 gpu_ram>=24 cuda_vers>=13.0 "
        "direct_port_count>=1 inet_down>=500 reliability>0.98 disk_space>=80",
        order="dph_total",
        storage=80,
    )
    assert [offer["id"] for offer in found] == [9101001, 9101002, 9101003, 9101004, 9101005, 9101006]
    assert found[0]["dph_total"] == pytest.approx(0.22 + 80 * 0.15 / 720, abs=1e-6)
    body = vast.requests[-1].body
    assert body["gpu_ram"] == {"gte": 24000.0}
    assert body["cuda_max_good"] == {"gte": "13.0"}
    assert body["verified"] == {"eq": True}
    assert body["order"] == [["dph_total", "asc"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('{"gpu_name": {"eq": "RTX 5090"}}', {9101004}),
        ('{"gpu_name": {"in": ["RTX 5090", "L40S"]}}', {9101004, 9101005}),
        ('{"num_gpus": {"neq": "1"}}', {9101007}),
        ('{"num_gpus": {"gt": 1}}', {9101007}),
        ('{"dph_total": {"lt": "0.2"}}', {9101008, 9101010, 9101012}),
        ('{"disk_space": {"lte": 32}}', {9101012}),
        ('{"driver_version": {"gte": "610.43"}}', {9101004}),
        ('{"driver_version": {"lt": "580.0.0"}}', {9101009}),
        ('{"verified": {"eq": false}}', {9101013}),
        ('{"geolocation": {"in": ["SE", "NO"]}}', {9101002, 9101004}),
    ],
)
def test_search_operators(http: httpx.Client, query: str, expected: set[int]) -> None:
    answer = http.post("/api/v0/bundles/", content=query, headers={"Content-Type": "application/json"})
    assert {offer["id"] for offer in answer.json()["offers"]} == expected


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("{}", "application/json; charset=utf-8"),
        ("{}", "text/plain"),
        ('{"num_gpus": {"about": 1}}', "application/json"),
        ('{"colour": {"eq": "red"}}', "application/json"),
        ('{"num_gpus": 1}', "application/json"),
        ("[]", "application/json"),
        ("{", "application/json"),
    ],
)
def test_search_refuses_what_it_does_not_understand(http: httpx.Client, content: str, kind: str) -> None:
    answer = http.post("/api/v0/bundles/", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_args"


def test_an_instance_from_offer_to_end(vast: FakeVast, sdk: VastAI) -> None:
    vast.boot_seconds = 0.6
    ident = create(sdk, label="mine", env="-p 8000:8000 -e HF_TOKEN=secret", onstart_cmd="true", cancel_unavail=True)
    body = vast.calls("PUT", "/asks/9101002/")[0].body
    assert body["env"] == {"-p 8000:8000": "1", "HF_TOKEN": "secret"}
    assert body["runtype"] == "ssh_direc ssh_proxy"
    assert 9101002 not in {offer["id"] for offer in sdk.search_offers()}

    seen: dict[str | None, Any] = {}
    while (row := sdk.show_instance(id=ident))["actual_status"] != "running":
        seen[row["actual_status"]] = row.get("ports", "absent")
    assert seen == {None: "absent", "created": None, "loading": {}}
    assert row["ports"]["22/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": str(vast.host(ident).port)}
    assert row["extra_env"] == {"HF_TOKEN": "secret"}
    assert row["dph_total"] == pytest.approx(0.36 + 80 * 0.15 / 720, abs=1e-6)
    assert (row["label"], row["image_uuid"], row["intended_status"]) == ("mine", IMAGE, "running")
    assert [each["id"] for each in sdk.show_instances()] == [ident]
    assert vast.spent() == pytest.approx((time.time() - row["start_date"]) * row["dph_total"] / 3600, rel=0.1)

    assert sdk.destroy_instance(id=ident) == {"success": True}
    assert sdk.show_instance(id=ident) is None
    assert sdk.show_instances() == []
    assert 9101002 in {offer["id"] for offer in sdk.search_offers()}
    cost = vast.spent()
    assert 0 < cost == vast.spent()


def test_options_of_docker_are_dropped_in_silence(sdk: VastAI) -> None:
    ident = create(sdk, env={"--shm-size=8g": "1", "A": "b"})
    assert sdk.show_instance(id=ident)["extra_env"] == {"A": "b"}


def test_pages(vast: FakeVast, sdk: VastAI) -> None:
    made = [create(sdk, offer) for offer in (9101001, 9101002, 9101003)]
    first = sdk.show_instances_v1({"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": 2})
    rest = sdk.show_instances_v1({"limit": 2, "after_token": first["next_token"]})
    assert [row["id"] for row in first["instances"] + rest["instances"]] == made
    assert rest["next_token"] is None
    assert [row["id"] for row in sdk.show_instances()] == made


def test_the_old_list_is_gone(http: httpx.Client) -> None:
    assert http.get("/api/v0/instances/").status_code == 410


def test_keys_are_checked(vast: FakeVast) -> None:
    stranger = VastAI(api_key="wrong", server_url=vast.url, retry=1)
    for status in (401, 404):
        vast.faults.auth_status = status
        with pytest.raises(requests.HTTPError) as caught:
            stranger.show_instances()
        assert caught.value.response.status_code == status
        assert caught.value.response.json()["error"] == "auth_error"
    assert httpx.get(f"{vast.url}/api/v1/instances/", trust_env=False).status_code == 401
    assert httpx.get(f"{vast.url}/_control/state", trust_env=False).status_code == 401
    assert [request.authorized for request in vast.requests] == [False, False, False]


def test_an_offer_that_is_gone(vast: FakeVast, sdk: VastAI) -> None:
    vast.faults.offers_gone = 1
    with pytest.raises(requests.HTTPError) as caught:
        create(sdk)
    assert (caught.value.response.status_code, caught.value.response.json()["error"]) == (410, "no_such_ask")
    assert 9101002 not in {offer["id"] for offer in sdk.search_offers()}
    assert vast.instances() == []
    create(sdk, 9101003)


def test_one_create_that_is_repeated_makes_three_instances(vast: FakeVast) -> None:
    vast.faults.create_unavailable = 3
    with pytest.raises(requests.HTTPError, match="503"):
        create(VastAI(api_key=vast.api_key, server_url=vast.url, retry=3))
    assert len(vast.instances()) == 3


@pytest.mark.parametrize(("fault", "made"), [("create_unavailable", 1), ("create_unavailable_empty", 0)])
def test_create_answers_503(vast: FakeVast, sdk: VastAI, fault: str, made: int) -> None:
    setattr(vast.faults, fault, 1)
    with pytest.raises(requests.HTTPError, match="503"):
        create(sdk)
    assert len(vast.instances()) == made


def test_create_is_cut(vast: FakeVast, sdk: VastAI) -> None:
    vast.faults.create_cut = 1
    with pytest.raises(requests.ConnectionError):
        create(sdk)
    assert len(vast.instances()) == 1


def test_success_false(vast: FakeVast, sdk: VastAI) -> None:
    vast.faults.create_refused = 1
    assert sdk.create_instance(id=9101002, image=IMAGE)["success"] is False
    ident = create(sdk)
    vast.faults.destroy_refused = vast.faults.destroy_ignored = 1
    assert sdk.destroy_instance(id=ident)["success"] is False
    assert sdk.destroy_instance(id=ident)["success"] is True
    assert sdk.show_instance(id=ident) is not None


@pytest.mark.parametrize(
    "body", [{"onstart": "#" * 4001}, {"image": None}, {"disk": 0}, {"disk": 401}, {"disk": "80"}, {"env": "-e A=b"}]
)
def test_create_refuses_bad_values(http: httpx.Client, body: dict[str, Any]) -> None:
    good = {"image": IMAGE, "disk": 80, "env": {}, "onstart": "#" * 4000}
    answer = http.put("/api/v0/asks/9101002/", json=good | body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_args")


def test_too_many_requests_and_a_broken_service(vast: FakeVast, sdk: VastAI, http: httpx.Client) -> None:
    vast.faults.rate_limited, vast.faults.broken, vast.faults.paths = 2, 1, "/instances/"
    answers = [http.get("/api/v1/instances/") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 500, 200]
    assert answers[0].headers["content-type"].startswith("text/plain")
    assert "retry-after" not in answers[0].headers
    vast.faults.min_interval = 60
    assert [http.get("/api/v1/instances/").status_code, http.get("/api/v0/ssh/").status_code] == [429, 200]


@pytest.mark.parametrize("state", ["exited", "offline", "unknown"])
def test_an_instance_that_never_runs(vast: FakeVast, sdk: VastAI, state: str) -> None:
    vast.faults.end_state = state
    ident = create(sdk)
    row = vast.wait_status(ident, state)
    assert "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=" in row["status_msg"]
    assert "unsatisfied condition" in sdk.logs(instance_id=ident, tail="5")


def test_logs_are_there_a_little_later_for_everybody(vast: FakeVast, http: httpx.Client) -> None:
    ident = vast.rent(onstart="echo one; echo two; echo three")["id"]
    url = http.put(f"/api/v0/instances/request_logs/{ident}/", json={"tail": "2"}).json()["result_url"]
    assert httpx.get(url, trust_env=False).status_code == 404
    assert until(lambda: answers(url), "the log is ready")
    assert httpx.get(url, trust_env=False).text == "two\nthree\n"


def test_control_from_another_process(vast: FakeVast, http: httpx.Client) -> None:
    assert http.patch("/_control/faults", json={"offers_gone": 2}).json()["offers_gone"] == 2
    assert http.patch("/_control/faults", json={"weather": "bad"}).status_code == 400
    http.patch("/_control/machine", json={"driver": "535.1"})
    row = http.post("/_control/rent", json={"label": "there"}, timeout=30).json()
    assert (row["actual_status"], row["label"], vast.machine.driver) == ("running", "there", "535.1")
    assert http.post("/_control/vanish", json={"ident": row["id"]}).status_code == 200
    assert http.post("/_control/freeze", json={"ident": row["id"]}).status_code == 400
    assert http.post("/_control/explode").status_code == 404
    state = http.get("/_control/state").json()
    assert state["instances"] == []
    assert state["spent"] > 0
