"""lm-eval's own runner on Octavo, offline, on tasks that are made here: equal scores for every batch size, and HF's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import save_tiny
from transformers import AutoTokenizer

from octavo.bench.peers.export_hf import network
from octavo.gpt import LLM
from octavo.gpt.loading import hub

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm-eval is not installed: `make eval` installs it", allow_module_level=True)

QUESTIONS = [
    ("The capital of Japan is", ["Tokyo", "Paris", "Lima", "Cairo"]),
    ("Two plus two is", ["four", "seven", "a river", "blue"]),
    ("The opposite of hot is", ["cold", "green", "tall", "Monday"]),
    ("Water freezes into", ["ice", "steam and smoke", "sand", "gold"]),
    ("A baby cat is called a", ["kitten", "puppy", "calf", "chick"]),
    ("The sun rises in the", ["east", "west", "kitchen", "evening"]),
    ("Bees make", ["honey", "milk", "bread and butter", "paper"]),
    ("The third planet from the sun is", ["Earth", "Mars", "Jupiter", "the Moon"]),
    ("Bread is baked in an", ["oven", "icebox", "aquarium", "envelope"]),
    ("The author of Hamlet is", ["William Shakespeare", "Isaac Newton", "Napoleon", "Marie Curie"]),
    ("A triangle has", ["three sides", "nine sides", "no sides at all", "wheels"]),
    ("Fish breathe with", ["gills", "feathers", "their tails", "leaves"]),
]
DATA = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}}}}}\ntest_split: test\n"
CHOICE = "task: made_choice\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
CHOICE += "doc_to_target: 0\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
ROLLING = "task: made_text\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
ROLLING += "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]\n"
ANSWER = (
    "task: made_answer\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{choices[0]}}'\n"
)
ANSWER += "generation_kwargs: {until: ['\\n', '.'], max_gen_toks: 12}\n"
ANSWER += "metric_list: [{metric: exact_match}]\n"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"question": question, "choices": choices, "text": f"{question} {choices[0]}."}
        for question, choices in QUESTIONS
    ]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    for name, text in {"choice": CHOICE, "text": ROLLING, "answer": ANSWER}.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text + DATA.format(path=path))
    return tmp_path / "tasks"


def scores(tasks: Path, model: str, model_args: str, *options: str) -> dict[str, Any]:
    """What lm-eval's command line writes: each task's metrics, and every request's own answer."""
    out = tasks.parent / f"out-{len(list(tasks.parent.iterdir()))}"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks.parent / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "octavo.gpt.adapters.lm_eval", "run", "--model", model]
    command += ["--model_args", model_args, "--tasks", "made_choice,made_text,made_answer", "--include_path"]
    command += [str(tasks), "--output_path", str(out), "--log_samples", "--seed", "0", *options]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = out.rglob("results_*.json")
    table = json.loads(results.read_text())["results"]
    found = {f"{task} {name}": value for task, line in table.items() for name, value in line.items() if "," in name}
    for path in sorted(out.rglob("samples_*.jsonl")):
        samples = map(json.loads, path.read_text().strip().split("\n"))
        found[path.name.split("_2")[0]] = [sample["filtered_resps"] for sample in samples]
    return found


def equal_scores(tasks: Path, model_args: str, *options: str) -> dict[str, Any]:
    """The scores of batch size 1, which those of 4 and 16 are to the digit."""
    alone, *others = (
        scores(tasks, "octavo", f"{model_args},backend=cpu,dtype=bfloat16", "--batch_size", size, *options)
        for size in ("1", "4", "16")
    )
    assert others == [alone, alone]
    return alone


@pytest.mark.slow
def test_scores_are_equal_for_every_batch_size_and_those_of_transformers(tmp_path: Path, tasks: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    equal_scores(tasks, f"pretrained={folder}", "--apply_chat_template")
    ours = scores(tasks, "octavo", f"pretrained={folder},backend=cpu,dtype=float32", "--batch_size", "4")
    theirs = scores(tasks, "hf", f"pretrained={folder},dtype=float32", "--device", "cpu", "--batch_size", "4")
    assert ours.keys() == theirs.keys()
    assert ours["samples_made_answer"] == theirs["samples_made_answer"]
    for name in ("made_choice acc,none", "made_choice acc_norm,none", "made_text byte_perplexity,none"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    flat = torch.tensor([[float(answer[0]) for answer in each] for each in ours["samples_made_choice"]])
    other = torch.tensor([[float(answer[0]) for answer in each] for each in theirs["samples_made_choice"]])
    torch.testing.assert_close(flat, other, atol=2e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_has_equal_scores_for_every_batch_size(tmp_path: Path, tasks: Path) -> None:
    """And transformers' scores of the same weights beside them, printed: `make eval`."""
    twin, file = str(tmp_path / "twin"), hub.resolve("smollm2")
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(twin)
    with LLM("smollm2", backend="reference", dtype="bfloat16", weights="dense") as llm:
        network(llm.model).save_pretrained(twin)
    found = {"octavo, 1, 4 and 16": equal_scores(tasks, f"pretrained={twin}")}
    for size in ("1", "16"):
        found[f"hf, {size}"] = scores(
            tasks, "hf", f"pretrained={twin},dtype=bfloat16", "--device", "cpu", "--batch_size", size
        )
    for name in (name for name in found["hf, 1"] if not name.startswith("samples_") and "stderr" not in name):
        print(f"{name:32}", {who: values[name] for who, values in found.items()})
    sums = {
        who: [float(each[0]) for doc in values["samples_made_choice"] for each in doc] for who, values in found.items()
    }
    print("first log-likelihoods", {who: values[:4] for who, values in sums.items()})
    assert found["octavo, 1, 4 and 16"]["made_choice acc,none"] >= 0.5
