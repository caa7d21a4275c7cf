from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.settings import LLMSettings, Settings
from echolm.settings.loading import REMOVED_KEYS, RENAMED_KEYS, load_settings
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ECHOLM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "conf" / "echolm.toml"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


LLMS = """
[[llms]]
name = "a"
cost = 1.0
takes_examples = true
tokenizer = "models/tokenizer.json"

[[llms]]
name = "b"
triton_model = "served_as_b"
cost = 3
takes_examples = false
"""


def test_the_defaults_are_a_small_and_a_large_llm() -> None:
    settings = load_settings()
    assert [llm.name for llm in settings.llms] == ["small_llm", "large_llm"]
    assert settings.default_llm.name == "large_llm"
    assert settings.example_sources == {"large_llm"}
    assert settings.event_log_path == settings.data_dir / "events.sqlite"
    assert settings.load_table_path == settings.data_dir / "load.table"
    assert [llm.takes_examples for llm in settings.llms] == [True, False]


def test_a_file_is_read_and_the_rest_keeps_its_default(file: Path) -> None:
    settings = load_settings(write(file, LLMS + "[retrieval]\ntop_n = 7\n"))
    assert settings.retrieval.top_n == 7
    assert settings.retrieval.max_examples == Settings().retrieval.max_examples
    assert [llm.model for llm in settings.llms] == ["a", "served_as_b"]
    assert settings.llm("b").cost == 3
    with pytest.raises(KeyError):
        settings.llm("c")


def test_the_environment_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOLM_CONFIG", str(write(file, "[retrieval]\ntop_n = 7\n")))
    assert load_settings().retrieval.top_n == 7


def test_the_environment_overrides_single_keys_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOLM_RETRIEVAL__TOP_N", "9")
    monkeypatch.setenv("ECHOLM_DATA_DIR", "/elsewhere")
    path = write(file, "data_dir = 'here'\n[retrieval]\ntop_n = 7\nmax_examples = 3\n")
    settings = load_settings(path)
    assert (settings.retrieval.top_n, settings.retrieval.max_examples) == (9, 3)
    assert settings.data_dir == Path("/elsewhere")


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://redis:6380/2",
        "rediss://user:p%40ss@redis.example.org:6380/0",
        "redis://[::1]:6379/",
    ],
)
def test_the_learning_log_can_be_a_redis_server(file: Path, url: str) -> None:
    settings = load_settings(write(file, f"event_log = '{url}'\n"))
    assert settings.event_log == url
    assert settings.event_log_path is None


def test_a_wrong_address_of_the_learning_log_is_refused_without_its_password(file: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(file, "event_log = 'http://user:sesame@redis'\n"))
    assert "event_log: Value error, expected a file, or redis://" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_relative_paths_are_relative_to_the_file(file: Path) -> None:
    text = "data_dir = 'data'\nevent_log = '../log.sqlite'\n[embedding]\nmodel_dir = '/abs'\n"
    text += "[routing]\nload_table = 'shm/table'\n[judging]\nprompt = 'judge.txt'\n"
    settings = load_settings(write(file, text + LLMS))
    assert settings.judging.prompt == file.parent / "judge.txt"
    assert settings.data_dir == file.parent / "data"
    assert settings.event_log_path == file.parent.parent / "log.sqlite"
    assert settings.load_table_path == file.parent / "shm" / "table"
    assert settings.embedding.model_dir == Path("/abs")
    assert settings.llm("a").tokenizer == file.parent / "models" / "tokenizer.json"
    assert settings.llm("b").tokenizer is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[retrieval]\ntop = 5\n", r"retrieval\.top: .*not permitted.*, got 5"),
        ("nonsense = 1\n", r"nonsense: .*not permitted"),
        ("[retrieval]\ntop_n = 'many'\n", r"retrieval\.top_n: .*valid integer.*, got 'many'"),
        ("[retrieval]\ntop_n = 0\n", r"retrieval\.top_n: .*greater than or equal to 1.*, got 0"),
        ("[retrieval]\nindex_type = 'TREE'\n", r"retrieval\.index_type: .*'IVF_FLAT'.*got 'TREE'"),
        ("[retrieval]\ncollection = 'a b'\n", r"retrieval\.collection"),
        ("[retrieval]\nutility_half_life_h = 0\n", r"utility_half_life_h: .*greater than 0"),
        ("[routing]\nsimilarity_saturation = 0.5\n", r"similarity_saturation: removed, .*measured"),
        ("[retrieval]\nutility_threshold = 0.5\n", r"utility_threshold: removed, .*how many"),
        ("[retrieval]\nutility_discount = 0.9\n", r"removed.*see retrieval.utility_half_life_h"),
        ("[routing]\nexploration_floor = 0.6\n", r"at most 1 / number of llms"),
        (
            "[routing]\ndefault_llm = 'x'\n",
            r"expected one of \['small_llm'.*\], got 'x'",
        ),
        ("event_log = 'redis:///0'\n", r"event_log: .*expected a file, or redis://host"),
        ("event_log = 'redis://host:x'\n", r"event_log: .*, got 'redis://host:x'"),
        ("event_log = 'redis://host/db'\n", r"event_log: .*database number"),
        ("event_log = 'http://host'\n", r"event_log: .*rediss:// for TLS, got 'http://host'"),
        ("[learning]\nredis_prefix = ''\n", r"learning\.redis_prefix: "),
        ("[limits]\nmax_tokens = 5\n", r"default_max_tokens must not exceed max_tokens"),
        ("[judging]\nkind = 'oracle'\n", r"judging\.kind: .*'similarity'.*, got 'oracle'"),
        ("[judging]\nkind = 'grader'\n", r"judging\.grader: expected module:function .*got none"),
        ("[judging]\ngrader = 'a.b'\n", r"judging\.grader: .*pattern.*got 'a\.b'"),
        ("[judging]\nsample_share = 2\n", r"judging\.sample_share: .*less than or equal to 1"),
        ("[judging]\nsimilarity_floor = 1\n", r"judging\.similarity_floor: .*less than 1"),
        ("[judging]\njudge_llm = 'x'\n", r"judging\.judge_llm: expected one of .*, got 'x'"),
        (
            "[judging]\njudge_llm = 'large_llm'\n",
            r"judging\.judge_llm: expected an LLM with llms\.can_judge = true, got 'large_llm'",
        ),
        ("[replay]\noff_peak = true\n", r"expected a judge .*, but large_llm cannot judge"),
        (
            "[judging]\nkind = 'none'\n[replay]\noff_peak = true\n",
            r"replay\.off_peak: expected a judge .*, but judging\.kind is 'none'",
        ),
        ("[routing]\nwarm_up_ratings = -1\n", r"routing\.warm_up_ratings: .*greater than or"),
        ("[judging]\nreference_llm = 'x'\n", r"judging\.reference_llm: expected one of"),
        ("[routing]\nsolicit_share = -1\n", r"routing\.solicit_share: .*greater than or equal"),
        ("[examples]\nfrom_llms = ['x']\n", r"examples\.from_llms: expected names among"),
        ("llms = []\n", r"llms: .*at least 1"),
        ("[[llms]]\nname = 'a'\ntakes_examples = true\n", r"llms\.0\.cost: Field required"),
        (LLMS.replace('"b"', '"a"', 1), r"names must be unique, got \['a', 'a'\]"),
        (LLMS.replace('name = "b"', 'name = "auto"'), r"'auto' is reserved"),
        (LLMS.replace('name = "b"', 'name = "stored"'), r"'stored' is reserved"),
        ("[routing]\nreuse_error = 0.9\n", r"routing\.reuse_error: .*less than or equal to 0\.5"),
        (LLMS.replace('name = "b"', 'name = "b b"'), r"llms\.1\.name: .*pattern"),
        ("[retrieval\n", r"expected TOML, got: "),
    ],
)
def test_a_wrong_key_or_value_stops_the_start(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_settings(write(file, text))
    assert str(file) in str(caught.value)


def test_the_former_name_of_a_key_gets_told_the_present_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"[routing]\nexchange_rate = 0.1\n[examples]\nmax_examples = 5\n{LLMS}"
    text += "prompt_template = 'chatml'\n"
    monkeypatch.setenv("ECHOLM_RETRIEVAL__REPLICAS", "2")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(file, text))
    message = str(caught.value).lower()
    assert "routing.exchange_rate: renamed to routing.cost_weight" in message
    assert "examples.max_examples: renamed to examples.max_stored" in message
    assert "retrieval.replicas: renamed to retrieval.milvus_replicas" in message
    assert "llms.1.prompt_template: renamed to llms.chat_template" in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [("chatml", "chatml"), ("models/a", "{folder}/models/a"), ("t.jinja", "{folder}/t.jinja")],
)
def test_a_chat_template_is_a_path_unless_it_is_built_in(
    file: Path, value: str, expected: str
) -> None:
    settings = load_settings(write(file, f"{LLMS}chat_template = '{value}'\n"))
    assert settings.llm("b").chat_template == expected.format(folder=file.parent.resolve())


def test_every_renamed_key_is_a_key_no_more_and_its_new_name_is_one() -> None:
    def known(name: str) -> bool:
        section, key = name.split(".")
        value = getattr(Settings(), section)
        return key in type(value[0] if section == "llms" else value).model_fields

    assert not [former for former in (*RENAMED_KEYS, *REMOVED_KEYS) if known(former)]
    assert all(known(present) for present in RENAMED_KEYS.values())


def test_a_missing_file_says_how_to_name_one(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a readable file.*ECHOLM_CONFIG"):
        load_settings(file)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ECHOLM_RETREIVAL__TOP_N", "5", r"ECHOLM_RETREIVAL__TOP_N: expected .*RETRIEVAL"),
        ("ECHOLM_RETRIEVAL__TOPN", "5", r"retrieval\.(topn|TOPN): .*not permitted"),
        ("ECHOLM_RETRIEVAL__TOP_N", "many", r"retrieval\.top_n: .*valid integer.*, got 'many'"),
    ],
)
def test_a_wrong_environment_variable_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_a_variable_can_name_a_file_with_the_value(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, '[feedback]\nsigning_key = "of the file"\n')
    secrets = {"FEEDBACK__SIGNING_KEY": "key", "EVENT_LOG": "redis://:password@log:6379/0"}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(secret + "\n")
        monkeypatch.setenv(f"ECHOLM_{name}_FILE", str(tmp_path / name))
    settings = load_settings(file)
    assert settings.feedback.signing_key.get_secret_value() == "key"
    assert settings.feedback.token_ttl_s == Settings().feedback.token_ttl_s
    assert settings.event_log == "redis://:password@log:6379/0"


@pytest.mark.parametrize(
    ("content", "other", "message"),
    [
        ("", {}, "SIGNING_KEY_FILE: expected a value in .*, got an empty file"),
        (None, {}, "SIGNING_KEY_FILE: expected a readable file, got .*: No such file"),
        (
            "key",
            {"ECHOLM_FEEDBACK__SIGNING_KEY": "x"},
            "SIGNING_KEY and ECHOLM_FEEDBACK__SIGNING_KEY_FILE: expected one of them, got both",
        ),
        ("key", {"ECHOLM_NONSENSE_FILE": "x"}, "ECHOLM_NONSENSE_FILE: expected"),
    ],
)
def test_a_file_that_cannot_give_the_value_stops_the_start(
    content: str | None,
    other: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    monkeypatch.setenv("ECHOLM_FEEDBACK__SIGNING_KEY_FILE", str(tmp_path / "key"))
    for name, value in other.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOLM_FEEDBACK__SIGNING_KEY", " hush\n")  # as files end
    settings = load_settings()
    assert "hush" not in repr(settings)
    assert settings.feedback.signing_key.get_secret_value() == "hush"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().retrieval.top_n = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["llm", "similarity", "none"])
def test_a_single_llm_takes_every_kind_of_judge(file: Path, kind: str) -> None:
    text = f"[judging]\nkind = '{kind}'\n[[llms]]\nname = 'a'\ncost = 1\ntakes_examples = true\n"
    assert load_settings(write(file, text)).judging.kind == kind


def test_the_strongest_llm_judges_and_is_what_others_are_compared_with(file: Path) -> None:
    settings = load_settings(write(file, "[replay]\noff_peak = true\n" + LLMS))
    assert (settings.judge_llm.name, settings.reference_llm.name) == ("b", "b")
    assert settings.no_judge == ""
    named = "[judging]\njudge_llm = 'a'\nreference_llm = 'a'\n"
    settings = load_settings(write(file, named + LLMS))
    assert (settings.judge_llm.name, settings.reference_llm.name) == ("a", "a")


def test_any_number_of_llms_is_possible() -> None:
    llms = tuple(LLMSettings(name=f"m{i}", cost=i + 1, takes_examples=i == 0) for i in range(5))
    assert Settings(llms=llms).default_llm.name == "m4"


def test_nothing_is_kept_in_the_current_folder() -> None:
    settings = load_settings()
    assert settings.data_dir == Path.home() / ".local/share/echolm"
    assert settings.embedding.model_dir == Path.home() / ".cache/echolm/embedder"


def test_a_path_may_begin_at_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = load_settings(write(file, 'data_dir = "~/here"\nevent_log = "~/log.sqlite"\n'))
    assert (settings.data_dir, settings.event_log) == (Path("/home/me/here"), "/home/me/log.sqlite")


def test_without_a_home_only_paths_at_home_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: the import must not fail either.
    script = """if True:
        import os, pwd
        from pathlib import Path
        def no_user(uid): raise KeyError(uid)
        os.environ.pop("HOME"); pwd.getpwuid = no_user
        from echolm.errors import ConfigurationError
        from echolm.settings.loading import load_settings
        try:
            load_settings()
        except ConfigurationError as error:
            print(error)
        os.environ["ECHOLM_DATA_DIR"] = "/data"
        os.environ["ECHOLM_EMBEDDING__MODEL_DIR"] = "/embedder"
        print(load_settings().embedding.model_dir)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expected a home directory for ~, got none; set HOME" in done.stdout
    assert done.stdout.endswith("\n/embedder\n")


def test_a_section_that_changes_something_of_a_shipped_llm_keeps_the_rest(file: Path) -> None:
    text = '[[llms]]\nname = "large_llm"\ncapacity = 2.0\n[[llms]]\nname = "small_llm"\n'
    large, small = load_settings(write(file, text)).llms
    shipped_small, shipped_large = Settings().llms
    assert large == shipped_large.model_copy(update={"capacity": 2.0})
    assert small == shipped_small


@pytest.mark.parametrize(
    "key",
    ['tokenizer = "t"', 'triton_model = "mine"', 'url = "h:8001"', 'chat_template = "chatml"'],
)
def test_another_llm_of_a_shipped_ones_name_takes_nothing_from_it(file: Path, key: str) -> None:
    text = f'[[llms]]\nname = "large_llm"\ncost = 1\ntakes_examples = false\n{key}\n'
    (large,) = load_settings(write(file, text)).llms
    assert (large.can_judge, large.capacity) == (True, 48.0)
    with pytest.raises(ConfigurationError, match=r"llms\.0\.cost: Field required"):
        load_settings(write(file, text.replace("cost = 1\n", "")))


def test_an_empty_stop_word_is_refused(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="stop: expected texts that are not empty"):
        load_settings(write(file, LLMS + 'stop = [""]\n'))


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("[limits]\nrequest_timeout_s = inf", "limits.request_timeout_s"),
        ("[routing]\ncost_weight = nan", "routing.cost_weight"),
        ("[replay]\ntemperature = inf", "replay.temperature"),
        ('[triton]\nadmin_key = "a key: with=signs"', "triton"),
    ],
)
def test_what_no_server_can_run_with_is_refused(tmp_path: Path, lines: str, key: str) -> None:
    file = tmp_path / "echolm.toml"
    file.write_text(lines)
    with pytest.raises(ConfigurationError, match=f"  {key}: ") as refused:
        load_settings(file)
    assert "signs" not in str(refused.value)
