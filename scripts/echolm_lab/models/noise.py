"""A worse small LLM: the same model with noise in its weights, as after a bad update."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

SMALL_LLM = "small_llm"
_LEAST_SIZE = 500  # smaller constants are norms and shapes


def worse_repository(source: Path, target: Path, noise: float, seed: int) -> Path:
    """A copy of the model repository whose small LLM is worse.

    Args:
        source: holds ``core`` and ``local``.
        noise: standard deviation of the noise, in units of each weight matrix's own.
    """
    shutil.copytree(source, target)
    directory = target / "local" / SMALL_LLM / "1" / "openvino"
    add_noise(directory / "openvino_model.xml", noise, seed)
    return target


def add_noise(model_xml: Path, noise: float, seed: int) -> None:
    """Add noise to every weight matrix of an OpenVINO model, in place."""
    import openvino as ov  # only here: evaluations without this one need not load it

    rng = np.random.default_rng(seed)
    model = ov.Core().read_model(str(model_xml))
    for op in model.get_ops():
        if op.get_type_name() != "Constant" or op.data.size < _LEAST_SIZE:
            continue
        weights = op.data
        if not np.issubdtype(weights.dtype, np.floating):
            continue
        wide = weights.astype(np.float32)
        wide = wide + rng.normal(0.0, noise * float(wide.std()), wide.shape)
        noisy = ov.opset13.constant(wide.astype(weights.dtype))
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(noisy.output(0))
    noisy_xml = model_xml.with_name("noisy.xml")
    ov.save_model(model, str(noisy_xml), compress_to_fp16=False)
    # The old file is mapped while the model lives; another one takes its name.
    noisy_xml.replace(model_xml)
    noisy_xml.with_suffix(".bin").replace(model_xml.with_suffix(".bin"))
