"""Names of the hub beside a server that speaks its API: what is fetched, what the cache does, and each refusal."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.utils
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_folder import CHATML, LIMITS, ids_of, load_tiny, save_tiny

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.cli import main
from octavo.gpt.loading.hub import resolve
from octavo.gpt.loading.huggingface.choice import Wanted
from octavo.gpt.loading.loader import load_tokenizer

from checkpoints import LLAMA, llama_tensors, save_folder
from hub_server import TOKEN, Hub, serving

MESSAGE = [{"role": "user", "content": "Hello"}]
SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json"]
PARTS = [f"m-F16-0000{part}-of-00002.gguf" for part in (1, 2)]
GGUFS = {name: name.encode() for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", *PARTS)}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and beside it what is never fetched."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never read")
    return folder


@pytest.fixture
def hub(server: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server with owner/name on it, an empty cache, and no token."""
    server.repos, server.requests, server.fetched = {}, 0, []
    server.add("owner/name", folder)
    server.add("owner/name-GGUF", GGUFS)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {"HF_HUB_CACHE": tmp_path / "cache", "HF_TOKEN_PATH": tmp_path / "token"}.items():
        monkeypatch.setattr(constants, name, str(value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def refusal(name: str, wanted: Wanted = Wanted.MODEL) -> str:
    """The line that a name is refused with."""
    with pytest.raises(ValueError, match=name.split("@")[0]) as raised:
        resolve(name, wanted)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_model_is_fetched_once_and_no_more_of_it_than_is_read(hub: Hub, folder: Path) -> None:
    there = resolve("owner/name")
    assert hub.take_fetched() == sorted([*SMALL, "model.safetensors"])
    assert all((there / name).read_bytes() == (folder / name).read_bytes() for name in SMALL)
    hub.requests = 0
    assert resolve("owner/name") == resolve("owner/name@main") == there
    assert hub.take_fetched() == []
    assert hub.requests == 2  # the commit of the branch, each time


def test_a_tokenizer_comes_without_weights(hub: Hub, folder: Path) -> None:
    assert load_tokenizer("owner/name").encode("a b") == load_tokenizer(folder).encode("a b")
    assert hub.take_fetched() == SMALL


def test_shards_are_fetched_by_the_index(hub: Hub, tmp_path: Path) -> None:
    save_folder(tmp_path / "m", LLAMA, llama_tensors(), num_shards=2)
    (tmp_path / "m" / "model-00003-of-00003.safetensors").write_bytes(b"of no index")
    hub.add("owner/sharded", tmp_path / "m")
    resolve("owner/sharded")
    fetched = hub.take_fetched()
    assert len(fetched) == 4
    assert "model-00003-of-00003.safetensors" not in fetched


def test_an_unknown_network_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    save_folder(tmp_path / "m", LLAMA | {"architectures": ["MambaForCausalLM"]}, llama_tensors())
    hub.add("owner/mamba", tmp_path / "m")
    with pytest.raises(ValueError, match="architecture MambaForCausalLM is not supported"):
        resolve("owner/mamba")
    assert hub.take_fetched() == ["config.json"]


def test_revisions(hub: Hub) -> None:
    hub.repos["owner/name-GGUF"].revisions["v1"] = {"old.gguf": b"old"}
    assert resolve("owner/name-GGUF@v1").read_bytes() == b"old"
    assert resolve("owner/name-GGUF/old.gguf@v1").read_bytes() == b"old"
    assert resolve(f"owner/name-GGUF@{hub.repos['owner/name-GGUF'].commit('v1')}").read_bytes() == b"old"
    assert refusal("owner/name-GGUF@v2").endswith("of the Hugging Face hub has no revision v2")


def test_revisions_by_vllm_s_arguments(hub: Hub, folder: Path, tmp_path: Path) -> None:
    old = {path.name: path.read_bytes() for path in save_tiny(tmp_path / "old", chat_template="old").iterdir()}
    hub.repos["owner/name"].revisions["v1"] = old
    for options, name, template in (
        ({"revision": "v1"}, "owner/name@v1", "old"),
        ({"revision": "v1", "tokenizer_revision": "main"}, "owner/name@v1", CHATML),
        ({"tokenizer_revision": "v1"}, "owner/name", "old"),
    ):
        with LLM("owner/name", backend="reference", **LIMITS, **options) as llm:
            assert (llm.name, llm.encode_chat(MESSAGE)) == (name, llm.encode_chat(MESSAGE, chat_template=template))
    with pytest.raises(ValueError, match="owner/name@v2 of the Hugging Face hub has no revision v2"):
        LLM("owner/name", revision="v2")


@pytest.mark.parametrize(
    ("text", "files"),
    [("", ["m-Q4_K_M.gguf"]), (":q8_0", ["m-Q8_0.gguf"]), ("/m-Q8_0.gguf", ["m-Q8_0.gguf"]), (":F16", PARTS)],
)
def test_one_gguf_file_is_fetched_with_its_parts(hub: Hub, text: str, files: list[str]) -> None:
    assert resolve(f"owner/name-GGUF{text}").name == files[0]
    assert hub.take_fetched() == files


def test_a_split_gguf_s_tokenizer_is_in_its_first_part(hub: Hub) -> None:
    resolve("owner/name-GGUF:F16", Wanted.TOKENIZER)
    assert hub.take_fetched() == PARTS[:1]


def test_names_that_are_patterns_mean_themselves(hub: Hub) -> None:
    hub.add("owner/odd", {"[ab]*.gguf": b"this", "a.gguf": b"not this", "b.gguf": b"nor this"})
    assert resolve("owner/odd/[ab]*.gguf").read_bytes() == b"this"
    assert hub.take_fetched() == ["[ab]*.gguf"]


def test_a_listing_does_not_lead_out_of_the_cache(hub: Hub) -> None:
    hub.add("owner/odd", {"../../../../m-Q4_K_M.gguf": b"outside", "config.json": b"{}"})
    assert "no GGUF file is there" in refusal("owner/odd:Q4_K_M")


@pytest.fixture(params=["HF_HUB_OFFLINE is set", "http://127.0.0.1:9 cannot be reached", "answers with status 503"])
def silence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A state in which the hub says nothing, and how to bring it about."""

    def begin(hub: Hub) -> None:
        if "OFFLINE" in request.param:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        elif "reached" in request.param:
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        for repo in hub.repos.values():
            repo.status = 503

    return request.param, begin


def test_what_is_cached_serves_while_the_hub_is_silent(hub: Hub, silence: tuple[str, Any]) -> None:
    _, begin = silence
    names = ("owner/name", "owner/name-GGUF:Q8_0", "owner/name-GGUF")
    there = [resolve(name) for name in names[:2]]
    begin(hub)
    assert [resolve(name) for name in names] == [*there, there[1]]  # of the GGUF files only one is there


def test_what_is_not_cached_is_told_while_the_hub_is_silent(hub: Hub, silence: tuple[str, Any]) -> None:
    why, begin = silence
    resolve("owner/name", Wanted.TOKENIZER)
    resolve("owner/name-GGUF:Q8_0")
    hub.add("owner/other", {})
    begin(hub)
    for name in ("owner/name@v1", "owner/other"):
        line = refusal(name)
        assert f"{name} of the Hugging Face hub is not whole in the cache {constants.HF_HUB_CACHE}, and " in line
        assert why in line
    for name, missing in (("owner/name", "no model.safetensors or"), ("owner/name-GGUF:Q4_K_M", "no file of quant")):
        line = refusal(name)
        assert line.startswith(f"{name}, as far as it is in the cache (")
        assert why in line
        assert missing in line


def test_gated_private_and_missing_repositories(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/gated", folder, gated=True)
    hub.add("owner/private", folder, private=True)
    assert "is gated: accept its terms on its page of the hub, then set HF_TOKEN" in refusal("owner/gated")
    for name in ("owner/private", "owner/missing", "owner/missing/file.gguf"):
        assert "is not there or is private, and no file or folder here has that name: check the name" in refusal(name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for name in ("owner/private", "owner/name"):
        assert f"{hub.endpoint} refuses the token of HF_TOKEN or `hf auth login` (status 401)" in refusal(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("owner/gated").is_dir()
    assert resolve("owner/private").is_dir()
    assert "is not there or is private" in refusal("owner/missing")


def test_a_hub_that_takes_too_long(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.repos["owner/name"].wait_s = 0.5
    assert f"{hub.endpoint} does not answer in time" in refusal("owner/name")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_what_cannot_be_stored(hub: Hub, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ValueError("wrapped") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert refusal("owner/name").endswith(f"hub cannot be stored in {constants.HF_HUB_CACHE}: {said}")


def test_progress_bars_are_the_library_s_and_closed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    download, drawn, screen = huggingface_hub.snapshot_download, [], io.StringIO()
    # A switch of the whole process: transformers turns it off where somebody asks that library to be quiet.
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "progress_bar_states", {})

    def snapshot_download(*arguments: Any, tqdm_class: Any = None, **options: Any) -> str:
        if tqdm_class:
            drawn.append(tqdm_class(total=3, file=screen, disable=False))
            assert issubclass(tqdm_class, huggingface_hub.utils.tqdm)
        return download(*arguments, tqdm_class=tqdm_class, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve("owner/name")
    assert len(drawn) == 2
    assert all(bar.disable for bar in drawn)  # as tqdm marks closed ones
    assert screen.getvalue().endswith("\n")  # what is printed next begins a line
    assert capsys.readouterr() == ("", "")  # no terminal
    resolve("owner/name")
    assert len(drawn) == 2  # none where all is there


def test_adapters(hub: Hub, folder: Path, tmp_path: Path) -> None:
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    module = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    rows = json.loads((folder / "config.json").read_text())["intermediate_size"]
    (tmp_path / "lora").mkdir()
    save_file(
        {f"{module}A.weight": torch.ones(2, width), f"{module}B.weight": torch.ones(rows, 2)},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "lora" / "optimizer.pt").write_bytes(b"never read")
    hub.add("owner/lora", tmp_path / "lora")
    texts = []
    for adapter in ("owner/lora", tmp_path / "lora", None):
        with load_tiny(folder, backend="reference", adapter=adapter) as llm:
            texts.append(ids_of(llm, ["a b"]))
    assert hub.take_fetched() == ["adapter_config.json", "adapter_model.safetensors"]
    assert texts[0] == texts[1] != texts[2]
    hub.add("owner/old", {"adapter_config.json": b"{}", "adapter_model.bin": b""})
    assert "no adapter_model.safetensors is there; adapter_model.bin is a pickle" in refusal(
        "owner/old", Wanted.ADAPTER
    )
    assert "no adapter_config.json is there" in refusal("owner/name", Wanted.ADAPTER)


def test_the_command_line_fetches_once_and_then_works_offline(hub: Hub, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo.gpt", "generate", "a b", "--model", "owner/name", "--temperature", "0"]
    command += ["--max-tokens", "8", "--backend", "reference", "--dtype", "float32"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    with load_tiny(folder, backend="reference") as llm:
        (expected,) = llm.generate("a b", SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    for offline in ("0", "1"):
        hub.requests = 0
        environment["HF_HUB_OFFLINE"] = offline
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == expected.outputs[0].text.strip()
    assert hub.take_fetched() == sorted([*SMALL, "model.safetensors"])
    assert hub.requests == 0  # of the second time


def test_the_command_line_says_in_one_line_what_is_wrong(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "a", "--model", "owner/missing"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("octavo: owner/missing of the Hugging Face hub is not there or is private")
