"""What is committed in grafana/ is what the generator writes; and it fits together."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from gradwatch import grafana
from gradwatch.errors import ConfigError, MissingExtra
from gradwatch.exporters.ports import DEFAULT_PORT
from gradwatch.grafana import alertmanager, stack
from gradwatch.grafana.links import LOCAL_RUNBOOKS, default_runbooks

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "grafana"
COMPOSE = stack.compose()


def test_the_committed_files_are_what_the_generator_writes():
    generated = grafana.files(LOCAL_RUNBOOKS)
    committed = {str(path.relative_to(COMMITTED)): path for path in COMMITTED.rglob("*") if path.is_file()}
    assert sorted(committed) == sorted(generated)
    different = [name for name, text in generated.items() if committed[name].read_text(encoding="utf-8") != text]
    assert not different, f"run: gradwatch grafana export grafana   (out of date: {different})"


def test_export_replaces_its_own_files_and_leaves_others_alone(tmp_path):
    (tmp_path / "dashboards").mkdir()
    (tmp_path / "dashboards/gradient-health.json").write_text("old")
    (tmp_path / "dashboards/mine.json").write_text("mine")
    written = grafana.export(tmp_path)
    assert all(path.is_file() for path in written)
    assert json.loads((tmp_path / "dashboards/gradient-health.json").read_text())["uid"] == "gradwatch-gradient-health"
    assert (tmp_path / "dashboards/mine.json").read_text() == "mine"
    assert {path.relative_to(tmp_path).as_posix() for path in written} == set(grafana.files())


def test_alerts_link_to_the_runbook_that_the_caller_names(tmp_path):
    grafana.export(tmp_path, runbooks="https://wiki.example/runbooks")
    rules = (tmp_path / "prometheus/rules.yml").read_text()
    assert "runbook_url: https://wiki.example/runbooks#gradwatchgradientexplosion\n" in rules
    assert "docs/runbooks.md" not in rules


def test_without_pyyaml_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"gradwatch-tf\[grafana\]"):
        grafana.files()


@pytest.mark.parametrize("name", [name for name in grafana.files() if name.endswith((".yml", ".json"))])
def test_every_file_parses_and_holds_no_address_but_loopback(name):
    text = grafana.files()[name]
    assert json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) <= {"127.0.0.1"}


def test_yaml_says_the_same_as_the_data_it_was_made_of():
    files = grafana.files()
    assert yaml.safe_load(files["docker-compose.yml"]) == COMPOSE
    assert yaml.safe_load(files["alertmanager/alertmanager.yml"]) == alertmanager.configuration()


# -- docker-compose -------------------------------------------------------------------------------------


def test_compose_mounts_only_what_is_exported():
    exported = {Path(name) for name in grafana.files()}
    there = exported | {parent for path in exported for parent in path.parents}
    mounts = [volume.split(":") for service in COMPOSE["services"].values() for volume in service["volumes"]]
    for source, target, *mode in mounts:
        if source.startswith("./"):
            assert Path(source) in there
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"], target


def test_compose_pins_its_images_and_listens_on_loopback_only():
    services = COMPOSE["services"]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", service["image"]) for service in services.values())
    for name in ("prometheus", "alertmanager"):
        assert any(re.match(r"--web.listen-address=127.0.0.1:\d+$", flag) for flag in services[name]["command"])
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert not any("ports" in service for service in services.values())


def test_secrets_come_from_the_environment_and_stand_in_no_file():
    told = grafana.Told(slack="https://hooks.example.org/SECRET", webhook="https://example.org/SECRET", pagerduty=True)
    for name, text in grafana.files(told=told).items():
        assert "SECRET" not in text, name
    compose, config = stack.compose(told), alertmanager.configuration(told)
    mounted = {entry["target"]: entry["source"] for entry in compose["services"]["alertmanager"]["configs"]}
    files = set(re.findall(r"/etc/alertmanager/secrets/\w+", json.dumps(config)))
    assert files == set(mounted)
    for source in mounted.values():
        assert re.match(r"\$\{GRADWATCH_\w+:-[^}]*set-GRADWATCH_\w+[^}]*\}$", compose["configs"][source]["content"])


def test_what_the_export_is_told_stands_in_a_file_of_its_own_that_compose_reads(tmp_path):
    secret = tmp_path / ".env"
    secret.write_text("GRAFANA_ADMIN_PASSWORD=mine\nGRADWATCH_SLACK_URL='old'\n")
    told = grafana.Told(slack="https://hooks.example.org/$1/x", email="team@example.org", smtp="smtp.example.org:587")
    assert secret in grafana.export(tmp_path, told=told)
    assert secret.read_text() == "GRAFANA_ADMIN_PASSWORD=mine\nGRADWATCH_SLACK_URL='https://hooks.example.org/$1/x'\n"
    assert secret.stat().st_mode & 0o077 == 0, "nobody else reads it"


def test_git_is_told_to_leave_the_secrets_alone(tmp_path):
    grafana.export(tmp_path)
    assert not (tmp_path / ".gitignore").exists(), "there is no secret"
    told = grafana.Told(slack="https://hooks.example.org/x")
    assert tmp_path / ".gitignore" in grafana.export(tmp_path, told=told)
    assert (tmp_path / ".gitignore").read_text() == ".env\n"
    (tmp_path / ".gitignore").write_text("mine\n.env")
    grafana.export(tmp_path, told=told)
    assert (tmp_path / ".gitignore").read_text() == "mine\n.env"
    (tmp_path / ".gitignore").write_text("mine")
    grafana.export(tmp_path, told=told)
    assert (tmp_path / ".gitignore").read_text() == "mine\n.env\n"


def test_one_receiver_is_enough_and_nothing_else_is_there():
    for told, kind in (
        (grafana.Told(), "slack_configs"),
        (grafana.Told(slack="https://hooks.example.org/x"), "slack_configs"),
        (grafana.Told(webhook="https://example.org/x"), "webhook_configs"),
        (grafana.Told(email="team@example.org", smtp="smtp.example.org:587"), "email_configs"),
    ):
        [nobody, team] = alertmanager.configuration(told)["receivers"]
        assert nobody == {"name": "nobody"}
        assert set(team) == {"name", kind}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"slack": "hooks.example.org"}, "slack must be an http"),
        ({"webhook": "file:///x"}, "webhook must be an http"),
        ({"email": "team@example.org"}, "give both"),
        ({"smtp": "smtp.example.org:587"}, "give both"),
        ({"email": "team", "smtp": "smtp.example.org:587"}, "email must be an address"),
        ({"email": "team@example.org", "smtp": "smtp.example.org"}, "smtp must be host and port"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_shown(told, words):
    with pytest.raises(ConfigError, match=words):
        grafana.Told(**told)


def test_the_runbooks_are_those_of_the_repository_where_it_is_known(monkeypatch):
    monkeypatch.setenv("GRADWATCH_REPOSITORY", "https://git.example/team/gradwatch/")
    assert re.fullmatch(r"https://git.example/team/gradwatch/blob/v[\w.]+/docs/runbooks.md", default_runbooks())
    monkeypatch.delenv("GRADWATCH_REPOSITORY")
    assert default_runbooks().startswith("http")


# -- the parts fit --------------------------------------------------------------------------------------


def test_grafana_reads_the_prometheus_that_compose_starts():
    source = stack.data_sources()["datasources"][0]
    assert (
        f"--web.listen-address={source['url'].removeprefix('http://')}" in COMPOSE["services"]["prometheus"]["command"]
    )
    assert source["jsonData"]["timeInterval"] == stack.prometheus()["global"]["scrape_interval"]


def test_grafana_finds_the_dashboards_where_compose_mounts_them():
    path = stack.dashboard_provider()["providers"][0]["options"]["path"]
    volumes = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./dashboards:{path}:ro" in volumes
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(path)
    assert f"dashboards/{Path(home).name}" in grafana.files()


def test_prometheus_scrapes_the_port_that_gradwatch_serves_on_by_default():
    [target] = stack.targets()
    assert target["targets"] == [f"127.0.0.1:{DEFAULT_PORT}"]
    [job] = stack.prometheus()["scrape_configs"]
    assert job["job_name"] == "gradwatch"
    assert Path("prometheus/targets/local.json").match("prometheus/" + job["file_sd_configs"][0]["files"][0])


def test_prometheus_sends_alerts_to_the_alertmanager_that_compose_starts():
    [target] = stack.prometheus()["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert f"--web.listen-address={target}" in COMPOSE["services"]["alertmanager"]["command"]
