"""Reads Triton's metrics page (Prometheus text format)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from echolm_client._types import Sample, Stats


def parse_samples(page: str) -> Iterator[Sample]:
    """The samples of a metrics page; lines that are not in the format are passed over.

    Line by line, so that one bad line does not cost the page, and without the comments:
    told that a metric is a counter, the parser would add ``_total`` to Triton's own names.
    """
    for line in page.split("\n"):
        if line.lstrip().startswith("#"):
            continue
        try:
            families = list(text_string_to_metric_families(line))
        except ValueError:
            continue
        for family in families:
            for sample in family.samples:
                yield Sample(sample.name, sample.labels, float(sample.value))


def parse_stats(page: str) -> Stats:
    """What of a metrics page concerns EchoLM."""
    inferences: dict[str, int] = {}
    samples = []
    for sample in parse_samples(page):
        if sample.name == "nv_inference_count":
            # One line per model version, and per GPU where there is one.
            model = sample.labels.get("model", "")
            inferences[model] = inferences.get(model, 0) + int(sample.value)
        elif sample.name.startswith("echolm_"):
            samples.append(sample)
    return Stats(inferences, tuple(samples))
