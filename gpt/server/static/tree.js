// The beam tree: a row for each step, lines to what grew from what, grey where nothing that was kept grew.

import { el, find, fixed, visible } from "./dom.js";
import { textOf } from "./api.js";
import { surprise } from "./strip.js";

const ROW = 62; // px from a row to the next, as in views.css
const SVG = "http://www.w3.org/2000/svg";

/** `levels`: the steps that `beamSearch` yielded; `finished`: its result so far, whose first is the best. */
export function drawTree(levels, finished) {
  const columns = Math.max(1, ...levels.map((level) => level.length));
  const alive = ancestors(levels, finished.length ? finished.map(({ last }) => last) : leaves(levels));
  const best = ancestors(levels, finished.slice(0, 1).map(({ last }) => last));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const boxes = levels.flatMap((level, step) => level.map((node, place) => {
    const key = `${step}:${place}`;
    const kind = best.has(key) ? "best" : alive.has(key) ? "alive" : "dead";
    if (step > 0) svg.append(line(node.parent, place, step, columns, kind));
    return box(node, step, place, columns, kind);
  }));
  const tree = find("tree");
  tree.style.height = `${levels.length * ROW}px`;
  tree.replaceChildren(svg, ...boxes);
}

const leaves = (levels) => (levels.length ? levels.at(-1).map((_, place) => [levels.length - 1, place]) : []);

function ancestors(levels, ends) {
  const found = new Set();
  for (let [step, place] of ends) {
    for (; step >= 0; place = levels[step][place].parent, step--) found.add(`${step}:${place}`);
  }
  return found;
}

const middle = (place, columns) => `${(100 * (place + 0.5)) / columns}%`;

function line(from, to, step, columns, kind) {
  const node = document.createElementNS(SVG, "line");
  const ends = { x1: middle(from, columns), y1: step * ROW - 20, x2: middle(to, columns), y2: step * ROW + 4 };
  for (const [name, value] of Object.entries(ends)) node.setAttribute(name, value);
  node.setAttribute("class", kind);
  return node;
}

function box(node, step, place, columns, kind) {
  const text = visible(textOf(node.ids.at(-1)));
  const said = `step ${step + 1}, ${text}, log-probability ${fixed(node.sum)}${node.ended ? ", ended" : ""}`;
  const made = el("div", {
    class: `node ${kind}${node.ended ? " ended" : ""}`, role: "treeitem", "aria-label": said, title: said,
    "aria-level": step + 1,
  }, el("span", { class: "token-text" }, text), el("small", {}, fixed(node.sum)));
  made.style.setProperty("--left", middle(place, columns));
  made.style.setProperty("--width", `${100 / columns}%`);
  made.style.setProperty("--top", `${step * ROW}px`);
  made.style.setProperty("--surprise", surprise(node.logprobs.at(-1)));
  return made;
}
