"""The page at `/` in a real browser: what it shows is what the engine says, and every view works by keyboard."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: octavo[serve]")

from served import served, wait_for

pytestmark = pytest.mark.slow  # beside `make test-slow`, `make browser` runs it
PROMPT = "the quick brown fox"
COLUMNS = "raw", "tempered", "kept"
SLOW = 10_000  # ms that anything on the page may take


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(tmp_path_factory.mktemp("page") / "model", quiet=True) as running:
        yield running


@pytest.fixture
def page(chromium: Any, server: Any) -> Iterator[Any]:
    """The page with a prompt that is read; a test fails where the browser's console has an error."""
    opened, complaints = chromium.new_page(viewport={"width": 1400, "height": 900}), []
    opened.set_default_timeout(SLOW)
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(server.url)
    opened.get_by_role("spinbutton", name="Tokens").fill("12")
    type_prompt(opened, server, PROMPT)
    yield opened
    opened.close()
    assert complaints == []


def type_prompt(page: Any, server: Any, text: str) -> list[int]:
    """Type the prompt, wait until its tokens and the bars of the next one are there, and return its ids."""
    ids = server.serving.llm.encode(text)
    page.get_by_label("Prompt").first.fill(text)
    wait_for(lambda: ids_of(page) == ids)
    page.locator("#bars").evaluate("bars => bars.replaceChildren()")
    page.locator("#tokens .token.next").click()
    page.locator(".candidate").first.wait_for()
    return ids


def ids_of(page: Any) -> list[int]:
    boxes = page.locator("#tokens .token:not(.next)")
    return boxes.evaluate_all("all => all.map(box => Number(box.dataset.id))")


def columns(page: Any) -> dict[str, list[float]]:
    """The probabilities that the bars show: of each column, of every candidate, and at last of all others."""
    cells = page.locator(".candidate .cell, .rest .cell").evaluate_all("all => all.map(cell => Number(cell.dataset.p))")
    return {name: cells[i::3] for i, name in enumerate(COLUMNS)}


def write(page: Any) -> list[int]:
    """Have the page write on to its end, and return all ids."""
    page.get_by_role("button", name="Write on").click()
    page.locator("#numbers dt", has_text="ended by").wait_for()
    page.get_by_role("button", name="Write on").wait_for()
    page.locator(".candidate").first.wait_for()
    return ids_of(page)


def set_knob(page: Any, name: str, value: float) -> None:
    """Move a knob, and wait for the bars that it changed."""
    page.locator("#bars").evaluate("bars => bars.replaceChildren()")
    page.get_by_label(name).fill(str(value))
    page.locator(".candidate").first.wait_for()


def run_beams(page: Any, width: int, length: int) -> None:
    """Run the three ways to choose, to their ends."""
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("spinbutton", name="Beams").fill(str(width))
    page.get_by_role("spinbutton", name="Tokens").fill(str(length))
    page.get_by_role("button", name="Run all three").click()
    page.locator("#beams .card h3", has_text="score").first.wait_for()
    page.get_by_role("button", name="Run all three").wait_for()


def test_a_prompt_becomes_tokens_and_bars_that_sum_to_one(page: Any, server: Any) -> None:
    ids = type_prompt(page, server, "a lazy dog and <b>bold</b>")
    assert ids_of(page) == ids
    assert page.locator("#tokens b").count() == 0
    for name, values in columns(page).items():
        assert len(values) > 10
        assert sum(values) == pytest.approx(1, abs=1e-6), name
    assert page.locator(".candidate.is-drawn").count() == 1


def test_bars_are_the_engines_own_numbers(page: Any, server: Any) -> None:
    from octavo.gpt import SamplingParams

    set_knob(page, "Temperature", 0.5)
    set_knob(page, "Top-k", 5)
    ids = ids_of(page)
    params = SamplingParams(temperature=0.5, top_k=5, top_p=0.95, seed=7, max_tokens=1)
    found = server.serving.llm.draw(ids, params, n=5)
    shown = columns(page)
    for i, each in enumerate(found.candidates):
        assert [shown[name][i] for name in COLUMNS] == pytest.approx([each.raw, each.tempered, each.kept], abs=1e-5)
    assert sum(p > 0 for p in shown["kept"][:-1]) == found.num_kept


def test_the_largest_probability_and_luck_is_what_the_engine_draws(page: Any, server: Any) -> None:
    from octavo.gpt import SamplingParams

    set_knob(page, "Temperature", 2)
    set_knob(page, "Top-k", 8)
    for seed in range(4):
        set_knob(page, "Seed", seed)
        params = SamplingParams(temperature=2, top_k=8, top_p=0.95, seed=seed, max_tokens=1)
        (drawn,) = server.serving.llm.generate([ids_of(page)], params, use_tqdm=False)[0].outputs[0].token_ids
        assert page.locator(".candidate.is-drawn").get_attribute("data-id") == str(drawn)
        luck = [
            float(each.replace("\N{MINUS SIGN}", "-")) for each in page.locator(".candidate .luck").all_inner_texts()
        ]
        kept = columns(page)["kept"]
        scores = [math.log(p) + noise if p else -math.inf for p, noise in zip(kept, luck, strict=False)]
        assert page.locator(".candidate").nth(scores.index(max(scores))).get_attribute("data-id") == str(drawn)


def test_another_token_changes_the_text_from_there_on(page: Any, server: Any) -> None:
    before = write(page)
    start = len(server.serving.llm.encode(PROMPT))
    assert len(before) == start + 12
    page.locator("#tokens .token").nth(start).click()
    page.get_by_role("heading", name=f"Step {start + 1}:").wait_for()
    page.locator(f'.candidate[data-id="{before[start]}"][aria-selected="true"]').wait_for()
    other = page.locator('.candidate[aria-selected="false"]').first.get_attribute("data-id")
    page.locator(f'.candidate[data-id="{other}"]').focus()
    page.keyboard.press("Enter")
    page.locator("#tokens .token.picked").wait_for()
    wait_for(lambda: len(ids_of(page)) == len(before) + 1)
    page.get_by_role("button", name="Write on").wait_for()
    after = ids_of(page)
    assert after[:start] == before[:start]
    assert after[start] == int(other)
    assert after[start:] != before[start:]
    page.locator(".cached", has_text=re.compile(r"^[1-9]\d* of")).wait_for()
    page.get_by_role("button", name="Undo").click()
    page.locator("#tokens .token.picked").wait_for(state="detached")
    assert ids_of(page) == before


def test_arrow_keys_walk_through_steps_and_candidates(page: Any) -> None:
    page.locator("#tokens .token.next").focus()
    page.keyboard.press("ArrowLeft")
    last = len(ids_of(page))
    page.get_by_role("heading", name=f"Step {last}:").wait_for()
    page.locator(".candidate").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.matches('.candidate:nth-child(3)')")


def test_beams_are_those_of_the_engine(page: Any, server: Any) -> None:
    run_beams(page, 3, 5)
    found = server.serving.llm.beam_search(PROMPT, 3, 5)[0]
    cards = page.locator("#beams .card").all()
    shown = [[int(box.get_attribute("data-id")) for box in card.locator(".token").all()] for card in cards]
    assert shown == [beam.token_ids for beam in found]
    assert page.locator(".node.best").count() == len(found[0].token_ids)
    assert page.locator("#greedy .card").count() == 1
    assert page.locator("#sampled .card").count() == 3


def test_a_chat_answers(page: Any) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Message").fill("hello <img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.locator("#chat-numbers dt", has_text="tokens").first.wait_for()
    assert page.locator(".message.assistant p").inner_text() != ""
    assert page.locator(".message img").count() == 0
    assert page.locator("#alert").is_hidden()


@pytest.mark.parametrize("width", [400, 1400])
def test_no_view_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    run_beams(page, 4, 2)
    for name in ("Write", "Compare", "Chat"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_switch_changes_the_theme_and_the_browser_remembers(page: Any) -> None:
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.get_by_role("button", name="Light or dark").click()
    dark = paper()
    assert dark != light
    page.reload()
    assert paper() == dark
