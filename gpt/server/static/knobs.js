// The knobs of a draw, shared by all views, in the API's words.

import { el, find } from "./dom.js";

// name, label, kind, least, most, step, start, what the least means
const KNOBS = [
  ["temperature", "Temperature", "range", 0, 2, 0.05, 0.8, "greedy"],
  ["top_k", "Top-k", "range", 0, 50, 1, 0, "off"],
  ["top_p", "Top-p", "range", 0.05, 1, 0.05, 0.95, null],
  ["min_p", "Min-p", "range", 0, 0.5, 0.01, 0, "off"],
  ["seed", "Seed", "number", 0, 2 ** 31 - 1, 1, 7, null],
  ["max_tokens", "Tokens", "number", 1, 512, 1, 24, null],
];

export function setUpKnobs(changed) {
  for (const [name, label, type, min, max, step, value, least] of KNOBS) {
    const input = el("input", { id: name, type, min, max, step });
    const output = el("output", { htmlFor: name });
    input.value = value;
    const show = () => {
      output.textContent = least !== null && Number(input.value) === min ? least : type === "range" ? input.value : "";
    };
    input.addEventListener("input", () => { show(); changed(); });
    show();
    const title = el("label", { htmlFor: name }, label, " ", output);
    find("knobs").append(el("div", { class: `knob ${name}` }, title, input));
  }
  find("knobs").addEventListener("submit", (event) => event.preventDefault());
}

/** The values as the API takes them; out of its limits a number is brought to the nearest that is not. */
export function knobs() {
  return Object.fromEntries(KNOBS.map(([name, , , min, max, step]) => {
    const value = Number(find(name).value) || 0;
    const within = Math.min(Math.max(value, min), max);
    return [name, step >= 1 ? Math.round(within) : within];
  }));
}
