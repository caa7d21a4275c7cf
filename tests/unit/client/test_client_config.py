from __future__ import annotations

import pytest
from echolm_client import EchoLMError, InvalidRequest, ServerError, Timeout, Unavailable
from echolm_client._config import Endpoint, checked_metrics_url
from echolm_client._errors import Cancelled, from_server
from echolm_client._metrics import parse_samples, parse_stats

PAGE = """\
# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="echolm",version="1"} 3
nv_inference_count{model="echolm",version="2"} 4
nv_inference_count{model="feedback",version="1"} 0
nv_inference_exec_count{model="echolm",version="1"} 9
echolm_answers_total{llm="small_llm",reason="a \\"b\\", c\\\\d"} 2 1700000000
echolm_answers_total{llm="large_llm",reason=""} 1.5e1
echolm_load 0.25

no such line {
"""


@pytest.mark.parametrize(
    ("url", "scheme", "address", "base"),
    [
        ("localhost", "grpc", "localhost:8001", ""),
        ("localhost:9", "grpc", "localhost:9", ""),
        ("grpcs://h", "grpcs", "h:8001", ""),
        ("http://h", "http", "h:8000", "http://h:8000"),
        ("https://h:443/a/b/", "https", "h:443", "https://h:443/a/b"),
        ("http://[::1]:8000", "http", "[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_addresses(url: str, scheme: str, address: str, base: str) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.scheme, endpoint.address) == (scheme, address)
    assert endpoint.is_grpc == scheme.startswith("grpc")
    assert endpoint.is_secure == scheme.endswith("s")
    assert not base or endpoint.base_url == base


def test_metrics_are_on_the_same_host() -> None:
    assert Endpoint.parse("https://h:1").default_metrics_url == "http://h:8002/metrics"
    assert Endpoint.parse("[::1]:1").default_metrics_url == "http://[::1]:8002/metrics"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h",
        "h:port",
        "h:99999",
        "http://",
        "grpc://h/path",
        "a b",
        "h..x",
        "[::1",
        "[::z]",
    ],
)
def test_bad_addresses_say_what_was_expected(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected \[scheme://\]host"):
        Endpoint.parse(url)


def test_a_metrics_page_is_asked_for_over_http() -> None:
    assert checked_metrics_url("http://h:1/metrics") == "http://h:1/metrics"
    assert checked_metrics_url("h:1/metrics") == "http://h:1/metrics"
    for url in ("ftp://h", "grpc://h", "h:port", "http://", ""):
        with pytest.raises(ValueError, match=r"metrics url: expected http\[s\]://host"):
            checked_metrics_url(url)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("StatusCode.INVALID_ARGUMENT", InvalidRequest),
        ("400", InvalidRequest),
        ("UNAVAILABLE", Unavailable),
        ("503", Unavailable),
        ("DEADLINE_EXCEEDED", Timeout),
        ("CANCELLED", Cancelled),
        ("NOT_FOUND", ServerError),
        ("INTERNAL", ServerError),
        ("500", ServerError),
        ("", ServerError),
        (None, ServerError),
    ],
)
def test_a_status_has_its_kind_of_error(status: str | None, kind: type[EchoLMError]) -> None:
    error = from_server(status, "why")
    assert type(error) is kind and str(error) == "why"
    assert error.status == (status or "").removeprefix("StatusCode.")
    assert error.code == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", InvalidRequest),
        ("context_length", InvalidRequest),
        ("unavailable", Unavailable),
        ("cancelled", Cancelled),
        ("configuration", ServerError),
        ("internal", ServerError),
    ],
)
@pytest.mark.parametrize("status", [None, "400", "500", "INTERNAL"])
@pytest.mark.parametrize("before", ["", "in ensemble 'retrieval', "])
def test_a_code_says_more_than_the_status(
    code: str, kind: type[EchoLMError], status: str | None, before: str
) -> None:
    error = from_server(status, f"{before}[{code}] text_input: expected [unavailable] text, got 3")
    assert type(error) is kind and error.code == code
    assert str(error) == f"{before}text_input: expected [unavailable] text, got 3"
    assert error.status == (status or "")


def test_what_only_looks_like_a_code_is_none() -> None:
    for message in ("[new_code] why", "[unavailable]: why", "x: expected y, got z"):
        error = from_server(None, message)
        assert type(error) is ServerError and str(error) == message


def test_an_error_without_a_message_says_its_status() -> None:
    assert "502" in str(from_server("502", ""))


def test_a_timeout_is_pythons_timeout_too() -> None:
    assert issubclass(Timeout, TimeoutError)


def test_stats_keep_what_concerns_echolm() -> None:
    stats = parse_stats(PAGE)
    assert stats.inferences == {"echolm": 7, "feedback": 0}
    assert [sample.name for sample in stats.samples] == ["echolm_answers_total"] * 2 + [
        "echolm_load"
    ]
    assert stats.samples[0].labels == {"llm": "small_llm", "reason": 'a "b", c\\d'}


def test_values_are_summed_over_labels_not_asked_for() -> None:
    stats = parse_stats(PAGE)
    assert stats.value("echolm_answers_total") == 17
    assert stats.value("echolm_answers_total", llm="large_llm") == 15
    assert stats.value("echolm_nothing") == 0


def test_a_line_that_is_no_sample_is_passed_over() -> None:
    assert next(s.value for s in parse_samples("a 1\nb x\n# c 2\nd{e} {\nf NaN")) == 1
    assert len(list(parse_samples("a 1\nb x\n"))) == 1


def test_a_counter_keeps_the_name_that_it_has_on_the_page() -> None:
    page = "# TYPE nv_inference_count counter\nnv_inference_count 3\n"
    assert [(s.name, s.value) for s in parse_samples(page)] == [("nv_inference_count", 3.0)]
