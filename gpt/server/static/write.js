// The view in which a text is written: its tokens, one step in large, and another token at any step.

import { complete, loadTexts, steps, textOf, tokenize, write } from "./api.js";
import { clearBars, showBars } from "./bars.js";
import { distribution, SHOWN } from "./distribution.js";
import { debounced, el, facts, find, fixed, percent, visible } from "./dom.js";
import { arrowKeys } from "./keys.js";
import { knobs } from "./knobs.js";
import { measure, numbersOf } from "./numbers.js";
import { tokenBox, withBreaks } from "./strip.js";
import { guarded, newTask } from "./tasks.js";

let prompt = []; // tokens as they were read from the field
let tokens = []; // {id, logprob or null, origin}
let selected = 0; // a step: a token's place, or tokens.length for the next one
let last = null; // numbers of the last run
const undone = []; // texts before each pick

const ids = (end = tokens.length) => tokens.slice(0, end).map(({ id }) => id);

export function setUpWrite() {
  find("prompt").addEventListener("input", debounced(guarded(readPrompt), 350));
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("go").click();
  });
  find("go").addEventListener("click", guarded(() => (task.running ? task.stop() : writeOn(knobs().max_tokens))));
  find("one").addEventListener("click", guarded(() => writeOn(1)));
  find("again").addEventListener("click", guarded(startOver));
  find("undo").addEventListener("click", guarded(undo));
  arrowKeys(find("tokens"), ".token", ["ArrowLeft", "ArrowRight"], (box) => select(Number(box.dataset.index)));
  arrowKeys(find("bars"), ".candidate", ["ArrowUp", "ArrowDown"]);
  find("bars").addEventListener("keydown", guarded((event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move && selected + move >= 0 && selected + move <= tokens.length) return select(selected + move);
  }));
}

const task = newTask((running) => {
  find("go").textContent = running ? "Stop" : "Write on";
  find("one").disabled = running;
});

/** Read the prompt anew: its tokens with their probabilities, and what may come next. */
export async function readPrompt() {
  await task.run(async (signal) => {
    const found = await tokenize(find("prompt").value, signal);
    undone.length = 0;
    if (found.length === 0) return restart([]);
    const asked = { max_tokens: 1, echo: true, logprobs: 1, temperature: 0 };
    const read = await steps((await complete([found], asked, signal)).choices[0]);
    restart(found.map((id, i) => ({ id, logprob: read[i].logprob ?? null, origin: "prompt" })));
  });
  await select(tokens.length);
}

function restart(found) {
  [prompt, tokens, last] = [found, found, null];
  find("undo").disabled = true;
}

/** Write up to `number` tokens after those that are there. */
async function writeOn(number) {
  if (tokens.length === 0) return;
  await task.run(async (signal) => {
    const clock = measure();
    const writing = write([ids()], { ...knobs(), max_tokens: number, logprobs: 1, skip_special_tokens: false }, signal);
    for (;;) {
      const { value, done } = await writing.next();
      if (done) {
        last = clock.end(value);
        break;
      }
      if (signal.aborted) return; // the tokens may be others' by now
      clock.token();
      const follows = selected === tokens.length;
      tokens = [...tokens, { id: value.id, logprob: value.logprob, origin: "drawn" }];
      if (follows) selected = tokens.length;
      render();
    }
  });
  await select(number === 1 ? tokens.length : selected);
}

function keepForUndo() {
  undone.push(tokens);
  find("undo").disabled = false;
}

/** Back to the prompt. */
async function startOver() {
  task.stop();
  keepForUndo();
  [tokens, last] = [prompt, null];
  await select(tokens.length);
}

/** Take another token at the selected step: at the end the text grows by it, before the end it is written anew. */
async function pick(id, logprob) {
  task.stop();
  keepForUndo();
  const at = selected, wasLast = at === tokens.length;
  tokens = [...tokens.slice(0, at), { id, logprob, origin: "picked" }];
  if (!wasLast) await writeOn(knobs().max_tokens);
  await select(wasLast ? tokens.length : at);
}

async function undo() {
  task.stop();
  tokens = undone.pop() ?? tokens;
  find("undo").disabled = undone.length === 0;
  await select(Math.min(selected, tokens.length));
}

const choose = guarded(pick);
let inspecting = new AbortController();

/** Show one step in large. */
export async function select(index) {
  selected = index;
  render();
  inspecting.abort();
  inspecting = new AbortController();
  const token = tokens[index];
  find("step-title").textContent = token ? `Step ${index + 1}: “${visible(textOf(token.id))}”` : "The next token";
  if (index === 0) {
    find("step-facts").textContent = tokens.length ? "The first token has nothing before it." : "Type a prompt.";
    return clearBars();
  }
  const { signal } = inspecting;
  const found = await distribution(ids(index), knobs(), signal);
  if (signal.aborted) return;
  await loadTexts([found.drawn]);
  showBars(found, token?.id, choose);
  showStep(found, token);
}

export const redraw = debounced(guarded(() => select(selected)), 120);

function showStep({ rows, drawn, usage }, token) {
  const left = rows.filter((row) => row.kept > 0).length;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  find("step-facts").replaceChildren(
    token?.logprob != null ? `Log-probability ${fixed(token.logprob)}, ${percent(Math.exp(token.logprob))}. ` : "",
    `The draw is “${visible(textOf(drawn))}”. ${left} of the ${rows.length} likeliest are left by the filters. `,
    el("span", { class: "cached" }, `${cached} of ${usage.prompt_tokens} tokens before it came from the cache.`));
}

function render() {
  const box = find("tokens");
  const focused = box.contains(document.activeElement);
  const make = (token, i) => tokenBox(token, {
    role: "option", tabIndex: i === selected ? 0 : -1, "aria-selected": String(i === selected), "data-index": i,
    onclick: guarded(() => select(i)),
  });
  const next = el("span", {
    class: "token next", role: "option", tabIndex: selected === tokens.length ? 0 : -1, "data-index": tokens.length,
    "aria-selected": String(selected === tokens.length), "aria-label": "the next token",
    onclick: guarded(() => select(tokens.length)),
  }, "+");
  box.replaceChildren(...withBreaks(tokens.map(make)), next);
  if (focused) box.querySelector('[tabindex="0"]').focus();
  facts(find("numbers"), numbersOf(tokens, last));
}
