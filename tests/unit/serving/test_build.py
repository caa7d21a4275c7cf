"""``echolm build``: what it refuses, and that Triton and ``echolm serve`` take what it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echolm import contracts
from echolm.cli import main as cli
from echolm.embedding import minilm
from echolm.engines.options import read_options
from echolm.errors import ConfigurationError
from echolm.serving import ServeOptions, preflight
from echolm.serving.build import PROFILES, built_root
from echolm.serving.checkpoint import Checkpoint
from echolm.serving.serve import model_repositories
from echolm.settings.loading import load_settings
from echolm_client.cli import exit_codes
from gguf_files import write_gguf
from google.protobuf import text_format
from tokenizers import Tokenizer, models
from tritonclient.grpc import model_config_pb2

CHATML = {"<|im_start|>": 10, "<|im_end|>": 11}
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 32_768,
    "eos_token_id": 11,
}
LARGE = {**SMALL, "hidden_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 4_096}


def checkpoint(
    directory: Path, config: dict[str, Any], added: dict[str, int] | None = None, **files: Any
) -> Path:
    """A folder as a checkpoint has it, with weights that nothing reads."""
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text(json.dumps(config))
    tokens = added or CHATML
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **tokens}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(tokens))
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "small-2b", SMALL)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "large-70b", LARGE)


@pytest.fixture(autouse=True)
def embedders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Building the embedder takes a while and is tested elsewhere: notes the forms."""
    forms: list[str] = []

    def build(directory: Path, form: str) -> None:
        forms.append(form)
        directory.mkdir(exist_ok=True)
        (directory / "model.onnx").write_text(form)

    monkeypatch.setattr(minilm, "build", build)
    yield forms


@pytest.fixture
def build(small: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, profile: str = "vllm") -> tuple[int, str, Path]:
        status = cli.main(
            [
                "build",
                f"--profile={profile}",
                f"--small={small}",
                f"--large={large}",
                f"--output={tmp_path / 'out'}",
                *arguments,
            ]
        )
        return status, capsys.readouterr().err, tmp_path / "out"

    return run


def parameters(output: Path, llm: str) -> dict[str, str]:
    (file,) = output.glob(f"*/{llm}/config.pbtxt")
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    given = {key: value.string_value for key, value in config.parameters.items()}
    contract = contracts.llm(llm, given["engine"])
    assert {t.name for t in config.input} == {t.name for t in contract.inputs}
    return given


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_what_is_written_is_what_serve_takes(
    build: Any, profile: str, small: Path, large: Path
) -> None:
    # The libraries are not in this environment.
    status, messages, output = build(f"--set=python={sys.executable}", profile=profile)
    assert status == 0, messages
    settings = load_settings(output / "echolm.toml")
    root = built_root(output / "echolm.toml", profile)
    models = preflight.models_in(
        model_repositories(ServeOptions(profile=profile, repository_root=root))
    )
    preflight.check_models(models, settings)
    assert {path.parent.parent for path in models.values()} == {output}
    assert settings.data_dir == output / "data"
    assert settings.embedding.model_dir == output / "embedder"
    known = PROFILES[profile]
    for name, model in (("small_llm", small), ("large_llm", large)):
        values = parameters(output, name)
        assert values.pop("engine") == known.engine
        parsed = read_options(known.options, values, known.engine)
        llm = settings.llm(name)
        assert parsed.model == str(model)
        assert getattr(parsed, known.context) == llm.context_length
        assert getattr(parsed, known.batch) == llm.capacity
        assert llm.tokenizer == model / "tokenizer.json"
        assert (llm.chat_template, llm.revision) == ("chatml", model.name)
        assert (llm.prior_quality, llm.prior_ratings) == (None, None)  # it cannot know them
    assert (settings.judging.kind, settings.judge_llm.name) == ("llm", "large_llm")
    assert settings.judging.sample_share == 0.01
    assert settings.no_judge == ""
    assert "How good the LLMs are is learnt" in (output / "echolm.toml").read_text()


def test_the_retriever_gets_as_many_processes_as_are_asked_for(build: Any) -> None:
    _, _, output = build("--processes=3")

    def instances(model: str) -> int:
        file = output / "core" / model / "config.pbtxt"
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        return int(config.instance_group[0].count)

    assert instances("retriever") == 3
    assert instances("example_manager") == 1  # it alone writes
    assert instances("router") == 1  # plans and their reports meet in it


def test_tritons_backend_gets_the_embedder_and_texts_of_equal_length(
    build: Any, embedders: list[str]
) -> None:
    _, _, output = build(profile="tensorrt_llm")
    model = output / "tensorrt_llm" / "embedder"
    assert (model / "1" / "model.onnx").read_text() == "fp32"
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    # Else ONNX Runtime would take all cores of a machine without a GPU for each call.
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert embedders == ["fp32"]
    assert load_settings(output / "echolm.toml").embedding.pad_to_multiple_of == 32


def test_a_built_engine_brings_its_context_and_takes_another_tokenizer(
    build: Any, small: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "rank0.engine").write_bytes(b"weights")
    (engine / "config.json").write_text('{"build_config": {"max_seq_len": 20000}}')
    arguments = [f"--large={engine}", f"--large-tokenizer={small}"]
    status, messages, output = build(*arguments, profile="tensorrt_llm")
    assert status == 0, messages
    large = load_settings(output / "echolm.toml").llm("large_llm")
    assert (large.context_length, large.tokenizer) == (20_000, small / "tokenizer.json")
    values = parameters(output, "large_llm")
    assert (values["model"], values["tokenizer"]) == (str(engine), str(small))
    assert build(*arguments, "--force", profile="vllm")[0] == exit_codes.USAGE


def test_what_is_left_out_follows_from_the_checkpoints(build: Any, embedders: list[str]) -> None:
    _, _, output = build("--large-gpus=1,2,3,4")
    settings = load_settings(output / "echolm.toml")
    small, large = settings.llm("small_llm"), settings.llm("large_llm")
    assert (small.context_length, large.context_length) == (8_192, 4_096)
    assert small.takes_examples and not large.takes_examples
    assert 0.01 <= small.cost < large.cost == 1
    assert (small.pool, large.pool) == ("", "")
    values = parameters(output, "large_llm")
    assert (values["tensor_parallel_size"], values["gpu_memory_utilization"]) == ("4", "0.9")
    assert embedders[0] in ("cuda", "fast")


def test_llms_on_one_gpu_share_its_memory_and_load(build: Any) -> None:
    _, messages, output = build()
    assert "take turns there unless NVIDIA's MPS runs" in messages
    settings = load_settings(output / "echolm.toml")
    assert {llm.pool for llm in settings.llms} == {"gpus"}
    shares = [
        parameters(output, llm)["gpu_memory_utilization"] for llm in ("small_llm", "large_llm")
    ]
    assert shares == ["0.3", "0.6"]


def test_copies_of_an_engine_add_to_its_capacity_and_divide_its_gpus(build: Any) -> None:
    _, _, output = build("--small-set=copies=2", "--small-gpus=0,1,2,3", "--embedder=fp32")
    small, large = load_settings(output / "echolm.toml").llms
    assert (small.capacity, large.capacity) == (512.0, 256.0)
    values = parameters(output, "small_llm")
    assert (values["copies"], values["tensor_parallel_size"]) == ("2", "2")


def test_llms_on_gpus_of_their_own_share_nothing(build: Any) -> None:
    _, messages, output = build("--small-gpus=0", "--large-gpus=1")
    assert {llm.pool for llm in load_settings(output / "echolm.toml").llms} != {"gpus"}
    assert "MPS" not in messages


def test_options_of_the_engines_are_passed_on(build: Any) -> None:
    _, _, output = build(
        "--set=load_format=dummy",
        "--large-set=quantization=fp8",
        "--large-set=pipeline_parallel_size=2",
        "--large-gpus=0,1",
        "--small-context=2048",
        '--small-set=engine_args={"block_size": 32}',
        "--embedder=fp32",
    )
    small, large = parameters(output, "small_llm"), parameters(output, "large_llm")
    assert json.loads(small["engine_args"]) == {"block_size": 32}
    assert (small["load_format"], small["max_model_len"]) == ("dummy", "2048")
    assert (large["quantization"], large["tensor_parallel_size"]) == ("fp8", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--small=/no/such"], "--small /no/such: expected a folder"),
        (["--small-memory=0.5", "--large-memory=0.6"], "GPU 0: expected shares .* 0.6 .large."),
        (["--small-memory=1.5"], "gpu_memory_utilization: expected a share"),
        (["--small-context=40000"], "--small-context: expected 1 to 32768"),
        (["--processes=0"], "--processes: expected 1 or more, got 0"),
        (["--large-context=0"], "--large-context: expected 1 to 4096"),
        (["--small-template=alpaca"], "expected .* one of .*chatml.*alpaca.*--small-template"),
        (["--set=max_seqs=3"], "expected options among .*'max_seqs'"),
        (["--small-set=max_model_len=9"], "as --small-context"),
        (["--large-gpus=a"], "gpus: expected numbers"),
        (["--large-gpus=0,1", "--large-set=tensor_parallel_size=4"], "expected 4 of them"),
        (["--profile=remote"], "--profile: expected one of local, .*vllm.* got 'remote'"),
        (["--small-tokenizer=/no/such"], "expected /no/such/tokenizer.json"),
        (["--repository-root=/no/such"], "--repository-root"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    build: Any, arguments: list[str], message: str, tmp_path: Path
) -> None:
    import re

    status, messages, output = build(*arguments)
    assert status == exit_codes.USAGE
    assert re.search(message, messages), messages
    assert not output.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: expected JSON"),
        ("config.json", "[]", "expected a JSON object, got list"),
        ("config.json", "{}", "expected the context length as max_position_embeddings"),
        ("config.json", None, r"expected a checkpoint \(config.json\)"),
        ("tokenizer.json", None, "tokenizer.json, got no such file"),
        ("tokenizer.json", "{}", "expected a tokenizer of the tokenizers library"),
        ("tokenizer.json", '{"a": 1}', "expected a tokenizer of the tokenizers library"),
    ],
)
def test_a_checkpoint_that_says_too_little_is_refused(
    build: Any, small: Path, file: str, content: str | None, message: str
) -> None:
    import re

    if content is None:
        (small / file).unlink()
    else:
        (small / file).write_text(content)
    status, messages, _ = build()
    assert status == exit_codes.USAGE
    assert re.search(message, messages), messages


def test_a_forgotten_profile_is_told(tmp_path: Path) -> None:
    config = tmp_path / "echolm.toml"
    config.touch()
    assert built_root(config, "local") is None
    (tmp_path / "core").mkdir()
    assert built_root(config, "local") is None
    (tmp_path / "vllm").mkdir()
    assert built_root(config, "vllm") == tmp_path
    with pytest.raises(ConfigurationError, match="got 'local'; choose it with --profile vllm"):
        built_root(config, "local")


def test_an_earlier_build_is_replaced_only_when_told(build: Any) -> None:
    assert build()[0] == 0
    status, messages, output = build("--small-context=1024")
    assert status == exit_codes.USAGE
    assert "--force" in messages
    (output / "data").mkdir()
    (output / "data" / "milvus.db").touch()
    assert build("--small-context=1024", "--force")[0] == 0
    assert load_settings(output / "echolm.toml").llm("small_llm").context_length == 1024
    assert (output / "data" / "milvus.db").exists()


def test_answers_that_would_not_end_are_warned_of(build: Any, small: Path) -> None:
    (small / "config.json").write_text(json.dumps({**SMALL, "eos_token_id": 2}))
    status, messages, _ = build()
    assert status == 0
    assert "warning: <|im_end|> ends a turn in the chat template" in messages


def test_a_small_llm_that_is_no_smaller_is_warned_of(build: Any, large: Path) -> None:
    assert "warning: the small LLM is no smaller" in build(f"--small={large}")[1]


def test_a_checkpoints_own_chat_template_is_taken(build: Any, small: Path) -> None:
    (small / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    status, messages, output = build()
    assert status == 0, messages
    llms = load_settings(output / "echolm.toml")
    assert llms.llm("small_llm").chat_template == ""
    assert llms.llm("large_llm").chat_template == "chatml"


@pytest.mark.parametrize(
    ("added", "template"),
    [
        (CHATML, "chatml"),
        # Phi's tokens are nearly those of the demo pair, its turns are others.
        ({"<|system|>": 1, "<|user|>": 2, "<|assistant|>": 3, "<|end|>": 4}, None),
        ({"<s>": 1, "</s>": 2}, "plain"),  # a base model
    ],
)
def test_without_one_a_built_in_template_is_known_by_the_tokenizer(
    tmp_path: Path, added: dict[str, int], template: str | None
) -> None:
    read = Checkpoint.read(checkpoint(tmp_path / "one", SMALL, added))
    if template is None:
        with pytest.raises(ConfigurationError, match=r"got none; set .*plain \(with --small"):
            read.chat_template("", "--small-template")
    else:
        assert read.chat_template("", "--small-template") == template


def test_a_template_whose_markers_are_no_tokens_is_refused(build: Any) -> None:
    status, messages, _ = build("--small-template=echolm")
    assert status == exit_codes.USAGE
    assert "expected markers that are tokens" in messages
    assert "<|assistant|>" in messages


def test_all_places_that_name_the_end_of_an_answer_count(tmp_path: Path) -> None:
    directory = checkpoint(
        tmp_path / "one",
        {**SMALL, "eos_token_id": None},
        CHATML,
        generation_config={"eos_token_id": [1, 2]},
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}},
    )
    read = Checkpoint.read(directory)
    assert read.end_ids == {1, 2, 11}
    assert read.missing_end("chatml") == ""


def test_size_is_that_of_the_weights_a_token_meets(tmp_path: Path) -> None:
    # Qwen2.5-3B has 3.09e9 parameters, 2.77e9 of them outside the embedding.
    qwen = {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    }
    read = Checkpoint.read(checkpoint(tmp_path / "dense", qwen))
    assert read.num_parameters == pytest.approx(3.09e9, rel=0.01)
    # Qwen3-30B-A3B: 3.3e9 of 30.5e9 at a time.
    experts = {
        **qwen,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "intermediate_size": 6144,
    }
    mixture = Checkpoint.read(checkpoint(tmp_path / "mixture", experts))
    assert mixture.num_parameters == pytest.approx(3.0e9, rel=0.06)


def test_weights_must_be_there_unless_random_ones_are_asked_for(build: Any, small: Path) -> None:
    (small / "model.safetensors").unlink()
    status, messages, output = build()
    assert (status, output.exists()) == (exit_codes.USAGE, False)
    assert "expected weights (*.safetensors" in messages
    assert build("--set=load_format=dummy")[0] == 0


def test_other_kinds_of_models_are_refused_for_gpus(build: Any, tmp_path: Path) -> None:
    status, messages, _ = build(f"--small={write_gguf(tmp_path / 'a.gguf')}")
    assert status == exit_codes.USAGE
    assert "expected a Hugging Face checkpoint, got another kind of model (gguf)" in messages
