"""``echolm build --profile local``: what it takes, converts and refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from echolm.cli import main as cli
from echolm.embedding import minilm
from echolm.engines.openvino import OpenVINOOptions
from echolm.engines.options import read_options
from echolm.serving import ServeOptions, conversion, model_config, preflight
from echolm.serving.build import built_root
from echolm.serving.model_source import ModelSource
from echolm.serving.serve import model_repositories
from echolm.settings import LLMSettings, Settings
from echolm.settings.loading import load_settings
from gguf_files import values, write_gguf
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "model_repository" / "local" / "small_llm" / "1" / "openvino"


@pytest.fixture(autouse=True)
def no_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the embedder takes a while and is tested elsewhere."""
    monkeypatch.setattr(minilm, "build", lambda directory, form: None)


class Build:
    """Runs the command; by default over two GGUF files that the engine reads itself."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "out"
        self.small = write_gguf(folder / "small.gguf")
        self.large = write_gguf(folder / "large.gguf", tensors=[(40_960, "Q8_0")])
        self.said = ""

    def __call__(self, *arguments: str, small: Any = None, large: Any = None) -> int:
        command = ["build", "--profile=local", f"--output={self.output}", *arguments]
        command += [f"--small={small or self.small}", f"--large={large or self.large}"]
        status = cli.main(command)
        self.said = self._capsys.readouterr().err
        return status

    def refused(self, *arguments: str, **models: Any) -> str:
        """The message of a command that must fail before anything is written."""
        before = sorted(self.folder.rglob("*"))
        assert self(*arguments, **models) == 2
        assert sorted(self.folder.rglob("*")) == before
        return self.said

    @property
    def settings(self) -> Settings:
        return load_settings(self.output / "echolm.toml")

    def llm(self, role: str) -> tuple[LLMSettings, OpenVINOOptions, Path]:
        """What the configuration, the model's parameters and its folder say."""
        model = self.output / "local" / f"{role}_llm"
        parameters = {k: v.string_value for k, v in model_config.read(model).parameters.items()}
        assert parameters.pop("engine") == "openvino"
        folder = model / "1" / parameters.pop("model_dir")
        options = read_options(OpenVINOOptions, parameters, "openvino")
        return self.settings.llm(f"{role}_llm"), options, folder


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Build:
    return Build(tmp_path, capsys)


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    """An interpreter of an environment whose conversion gives the shipped LLM."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$2" = -c ] || cp -r {SHIPPED} "$4"\n')
    program.chmod(0o755)
    return program


def test_files_that_the_engine_reads_are_served_as_they_are(build: Build) -> None:
    assert build() == 0, build.said
    models = preflight.models_in(
        model_repositories(
            ServeOptions(repository_root=built_root(build.output / "echolm.toml", "local"))
        )
    )
    preflight.check_models(models, build.settings)
    assert {path.parent.parent for path in models.values()} == {build.output}
    for role, file in (("small", build.small), ("large", build.large)):
        llm, options, folder = build.llm(role)
        assert options.model == str(file)
        assert options.context_length == llm.context_length == 4_096
        assert options.num_kv_blocks == 4_096  # tiny blocks: more would only be slower
        assert 1 <= options.threads <= len(os.sched_getaffinity(0))
        assert (llm.chat_template, llm.revision, llm.can_judge) == ("", file.stem, True)
        assert llm.tokenizer == folder / "tokenizer.json"
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert build.settings.llm("small_llm").takes_examples
    assert build.settings.llm("small_llm").cost == pytest.approx(0.102, abs=1e-3)
    assert build.settings.data_dir == build.output / "data"


def test_nothing_is_written_but_the_output(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build() == 0, build.said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "large.gguf", "out", "small.gguf"]
    assert not any((tmp_path / "here").iterdir())


def test_the_end_of_a_turn_ends_an_answer(build: Build, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", values(tokenizer__ggml__eos_token_id=0))
    assert build(small=other) == 0, build.said
    config = build.llm("small")[2] / "generation_config.json"
    assert json.loads(config.read_text())["eos_token_id"] == [0, 2]


def test_a_base_model_gets_a_plain_template_with_stop_words(build: Build, tmp_path: Path) -> None:
    tokens = [t.replace("<|im_", "<|no_") for t in values()["tokenizer.ggml.tokens"]]
    base = values(tokenizer__chat_template=None, tokenizer__ggml__tokens=tokens)
    assert build(small=write_gguf(tmp_path / "base.gguf", base)) == 0, build.said
    llm = build.llm("small")[0]
    assert (llm.chat_template, llm.stop, llm.can_judge) == ("plain", ("\n",), False)
    assert "no chat template, as base models have none" in build.said
    assert build.llm("large")[0].stop == ()


def test_a_cache_holds_a_context_at_least_and_no_more_than_a_gigabyte(
    build: Build, tmp_path: Path
) -> None:
    wide = values(llama__block_count=32, llama__embedding_length=8_192, llama__context_length=8_192)
    wide |= {"llama.attention.head_count_kv": 8, "llama.attention.head_count": 64}
    assert build(large=write_gguf(tmp_path / "wide.gguf", wide)) == 0, build.said
    assert build.llm("large")[1].num_kv_blocks == 258  # 8,192 tokens; a gigabyte were 256
    wide["llama.context_length"] = 2_048
    assert build("--force", large=write_gguf(tmp_path / "wide.gguf", wide)) == 0, build.said
    assert build.llm("large")[1].num_kv_blocks == 256


def test_options_of_the_engine_are_passed_on(build: Build) -> None:
    assert build("--set=max_num_seqs=3", "--small-set=threads=1", "--small-context=512") == 0
    small, large = build.llm("small")[1], build.llm("large")[1]
    assert (small.max_num_seqs, small.threads, small.context_length) == (3, 1, 512)
    assert (large.max_num_seqs, large.context_length) == (3, 4_096)


def test_an_openvino_folder_is_served_where_it_is(build: Build) -> None:
    assert build("--small-template=echolm", small=SHIPPED) == 0, build.said
    llm, options, folder = build.llm("small")
    assert (folder, options.model, llm.context_length) == (SHIPPED, "", 2_048)


def test_what_the_output_replaces_is_no_source(build: Build) -> None:
    build.output.mkdir()
    model = write_gguf(build.output / "small.gguf")
    assert "expected it outside of --output" in build.refused("--force", small=model)


def checkpoint(folder: Path, **config: Any) -> Path:
    """A checkpoint with weights that nothing reads."""
    folder.mkdir()
    shape = json.loads((SHIPPED / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, **config}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    sampling = {"repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps({**sampling, "eos_token_id": 4}))
    (folder / "model.safetensors").write_bytes(b"\0" * 1_000)
    return folder


def test_a_checkpoint_is_converted(
    build: Build, tmp_path: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = checkpoint(tmp_path / "chat-1b")
    monkeypatch.chdir(tmp_path)
    relative = converter.relative_to(tmp_path)
    assert build(f"--converter={relative}", small=small.relative_to(tmp_path)) == 0, build.said
    llm, options, folder = build.llm("small")
    assert folder.is_relative_to(build.output)
    assert (folder / "openvino_model.xml").is_file()
    assert (options.model, llm.revision, llm.chat_template) == ("", "chat-1b", "echolm")
    assert f"converting {small} to INT8" in build.said


def test_recommended_sampling_is_written(build: Build, tmp_path: Path, converter: Path) -> None:
    small = checkpoint(tmp_path / "chat-1b")
    copies = f'#!/bin/sh\n[ "$2" = -c ] || cp -r {SHIPPED} "$4" && [ "$2" = -c ] || cp '
    converter.write_text(f'{copies}{small}/generation_config.json "$4"\n')
    assert build(f"--converter={converter}", small=small) == 0, build.said
    llm = build.llm("small")[0]
    assert (llm.repetition_penalty, llm.top_p, llm.top_k) == (1.1, 0.8, 20)


def test_a_quantization_that_the_engine_lacks_is_converted_with_the_files_own_tokenizer(
    build: Build, tmp_path: Path, converter: Path
) -> None:
    small = write_gguf(tmp_path / "q5.gguf", tensors=[(64, "Q5_0")])
    assert build(f"--converter={converter}", small=small) == 0, build.said
    llm, options, folder = build.llm("small")
    assert (options.model, llm.chat_template) == ("", "")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert made.token_to_id("Ġhello") is not None


def test_a_conversion_that_fails_says_why_and_leaves_no_half_model(
    build: Build, tmp_path: Path, converter: Path
) -> None:
    converter.write_text('#!/bin/sh\n[ "$2" = -c ] || { echo "no such op" >&2; exit 1; }\n')
    small = checkpoint(tmp_path / "odd")
    assert build(f"--converter={converter}", small=small) == 2
    assert "can convert it, got: no such op; see " in build.said
    assert not (build.output / "local" / "small_llm" / "1" / "openvino").exists()


@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_an_environment_that_cannot_convert_is_refused_with_the_commands(
    build: Build, tmp_path: Path, python: str
) -> None:
    small = checkpoint(tmp_path / "chat-1b")
    said = build.refused(f"--converter={python}", small=small)
    assert f"--converter {python}: expected an environment that can convert LLMs" in said
    for command in conversion.install_commands(python):
        assert " ".join(command[3:])[:40] in said


def test_all_that_converts_is_pinned() -> None:
    for package in (*conversion.PACKAGES, *conversion.WITHOUT_DEPENDENCIES):
        assert "==" in package or "<" in package


def sparse(path: Path, gigabytes: int) -> Path:
    """A GGUF file that says and takes so much, and has no block on the disk."""
    return write_gguf(path, tensors=[(gigabytes << 28, "Q8_0")])


def with_weights(folder: Path, gigabytes: int) -> Path:
    """A checkpoint whose weights take so much, and have no block on the disk."""
    os.truncate(folder / "model.safetensors", gigabytes << 30)
    return folder


def test_weights_in_several_forms_count_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    for name in ("consolidated.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"\0" * 3_000)
    assert ModelSource("checkpoint", folder, "c").num_bytes == 1_000
    (folder / "model.safetensors").unlink()
    assert ModelSource("checkpoint", folder, "c").num_bytes == 3_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none", "expected a folder, a .gguf file or a name on the hub"),
        (lambda path: path, r"expected a checkpoint \(config.json\), an OpenVINO model"),
        (
            lambda path: (
                (checkpoint(path / "c") and (path / "c" / "model.safetensors").unlink())
                or path / "c"
            ),
            r"expected weights \(\*\.safetensors, .* got none; fetch the model",
        ),
        (
            lambda path: (
                (checkpoint(path / "c") / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model-00002.safetensors"}}'
                )
                and path / "c"
            ),
            "expected all 1 files of model.safetensors.index.json, got no model-00002.safetensors",
        ),
        (
            lambda path: write_gguf(path / "a.gguf", values(general__architecture="clip")),
            "expected one of the architectures llama, .* got 'clip'",
        ),
        (
            lambda path: write_gguf(path / "a.gguf", tensors=[(32, 99)]),
            "expected tensors of the types .*, got the type number 99",
        ),
        (
            lambda path: write_gguf(
                path / "a.gguf", values(tokenizer__chat_template="{{ '<|user|>' }}{{ oops( }}")
            ),
            "expected a Jinja2 template",
        ),
        (lambda path: sparse(path / "a.gguf", 4_000), "GiB of memory to serve them, got"),
        (
            lambda path: checkpoint(path / "c", hidden_size=1 << 17, num_hidden_layers=100),
            "GiB of memory to convert its .* billion parameters, got",
        ),
        (
            lambda path: with_weights(
                checkpoint(path / "c", num_local_experts=4_096, num_experts_per_tok=2), 4_000
            ),
            "GiB of memory to convert its 2147.5 billion parameters, got",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    build: Build, tmp_path: Path, make: Any, message: str
) -> None:
    (tmp_path / "models").mkdir()
    model = make(tmp_path / "models")
    said = build.refused("--converter=/bin/true", small=model)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--small-gpus=0"], "--small-gpus: expected it with a profile for GPUs"),
        (["--large-memory=0.5"], "--large-memory: expected it with a profile for GPUs"),
        (["--small-set=context_length=9"], "--small-set context_length: expected"),
        (["--set=model=x.gguf"], "--small-set model: expected an option"),
        (["--set=max_seqs=9"], "got 'max_seqs'"),
        (["--small-context=9999"], r"--small-context: expected 1 to 4096"),
        (["--small-template=echolm"], "expected markers that are tokens of the tokenizer"),
        (["--large-template=chatlm"], "expected a folder, a .jinja file or one of"),
    ],
)
def test_what_does_not_fit_is_refused(build: Build, arguments: Sequence[str], message: str) -> None:
    assert re.search(message, build.refused(*arguments)), build.said


def test_a_name_on_the_hub_without_a_network_is_refused(build: Build, tmp_path: Path) -> None:
    code = "import sys; from echolm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "build", "--profile=local", "--small=nobody/nothing"]
    command += [f"--large={build.large}", f"--output={build.output}"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    for part in ("--small nobody/nothing", "on the hub", "hf download nobody/nothing", "got "):
        assert part in done.stderr
    assert not build.output.exists()
