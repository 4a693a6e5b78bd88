// Greedy, sampling and beam search side by side, from one prompt.

import { textOf, tokenize, write } from "./api.js";
import { beamSearch } from "./beam.js";
import { el, facts, find, fixed } from "./dom.js";
import { knobs } from "./knobs.js";
import { measure, numbersOf } from "./numbers.js";
import { tokenBox, withBreaks } from "./strip.js";
import { guarded, newTask } from "./tasks.js";
import { drawTree } from "./tree.js";

const DRAWS = 3; // texts that are sampled, with seeds that follow each other
const number = (id) => Math.min(Math.max(Math.round(Number(find(id).value)) || 1, find(id).min), find(id).max);

const task = newTask((running) => { find("run").textContent = running ? "Stop" : "Run all three"; });

export function setUpCompare() {
  find("run").addEventListener("click", guarded(() => (task.running ? task.stop() : runAll())));
  find("compare-prompt").addEventListener("keydown", (event) => { if (event.key === "Enter") find("run").click(); });
  find("tab-compare").addEventListener("click", () => { find("compare-prompt").value ||= find("prompt").value; });
}

async function runAll() {
  await task.run(async (signal) => {
    const prompt = await tokenize(find("compare-prompt").value, signal);
    const length = number("length"), set = knobs();
    for (const name of ["greedy", "sampled", "beams", "tree"]) find(name).replaceChildren();
    await follow(prompt, { ...set, temperature: 0, max_tokens: length }, "greedy", null, signal);
    for (let draw = 0; draw < DRAWS; draw++) {
      const seed = set.seed + draw;
      await follow(prompt, { ...set, seed, max_tokens: length }, "sampled", `seed ${seed}`, signal);
    }
    await search(prompt, number("width"), length, signal);
  });
}

/** Write one text into a column, token by token. */
async function follow(prompt, options, column, name, signal) {
  const clock = measure(), tokens = [], place = card(column, name);
  const writing = write([prompt], { ...options, logprobs: 1, skip_special_tokens: false }, signal);
  for (let step = await writing.next(); ; step = await writing.next()) {
    if (step.done) return facts(place.numbers, numbersOf(tokens, clock.end(step.value)));
    clock.token();
    tokens.push({ ...step.value, origin: "drawn" });
    place.text.append(...withBreaks([tokenBox(tokens.at(-1))]));
    facts(place.numbers, numbersOf(tokens, null));
  }
}

async function search(prompt, width, length, signal) {
  const levels = [], mayEnd = (id) => /^(<.*>|\[.*\])?$/.test(textOf(id));
  const searching = beamSearch(prompt, width, length, mayEnd, signal);
  for (let step = await searching.next(); ; step = await searching.next()) {
    const beams = step.value;
    if (!step.done) levels.push(beams);
    drawTree(levels, step.done ? beams : []);
    find("beams").replaceChildren();
    beams.forEach((beam, rank) => showBeam(beam, rank));
    if (step.done) return;
  }
}

function showBeam({ ids, logprobs, score }, rank) {
  const place = card("beams", score === undefined ? `beam ${rank + 1}` : `${rank + 1}. score ${fixed(score, 3)}`);
  const tokens = ids.map((id, i) => ({ id, logprob: logprobs[i], origin: "drawn" }));
  place.text.append(...withBreaks(tokens.map((token) => tokenBox(token))));
  facts(place.numbers, numbersOf(tokens, null));
}

function card(column, name) {
  const text = el("p", { class: "tokens" }), numbers = el("dl", { class: "numbers" });
  find(column).append(el("div", { class: "card" }, name === null ? null : el("h3", {}, name), text, numbers));
  return { text, numbers };
}
