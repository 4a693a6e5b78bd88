// One step in large: the candidates as rows, and in each three bars.

import { el, find, fixed, percent, visible } from "./dom.js";
import { textOf } from "./api.js";

const COLUMNS = [["raw", "model"], ["tempered", "temperature"], ["kept", "filters"]];

/** Show a distribution; `taken` is the id that the text has at this step, if any, `pick` what choosing a row does. */
export function showBars({ rows, others, drawn }, taken, pick) {
  const list = find("bars");
  const focused = list.contains(document.activeElement);
  const head = el("div", { class: "row head", role: "presentation" }, el("span", {}, "token"),
    ...COLUMNS.map(([name, label]) => el("span", { class: name }, label)), el("span", { class: "luck" }, "luck"));
  const shown = rows.map((row) => candidate(row, drawn, taken, pick));
  const rest = el("div", { class: "row rest", role: "presentation" },
    el("span", { class: "name" }, "all others"), ...cells(others));
  const sum = (name) => rows.reduce((total, row) => total + row[name], others[name]);
  const foot = el("div", { class: "row sum", role: "presentation" }, el("span", {}, "sum"),
    ...COLUMNS.map(([name]) => el("span", {}, sum(name).toFixed(3))));
  list.replaceChildren(head, ...shown, rest, foot);
  const first = shown[Math.max(0, rows.findIndex(({ id }) => id === (taken ?? drawn)))];
  first.tabIndex = 0;
  if (focused) first.focus();
}

export const clearBars = () => find("bars").replaceChildren();

const cells = (row, isCut = false) => COLUMNS.map(([name]) => {
  const bar = el("i", { class: name });
  bar.style.setProperty("--p", row[name]);
  const number = isCut && name === "kept" ? "cut" : percent(row[name]);
  return el("span", { class: "cell", "data-p": row[name] }, el("b", {}, number), bar);
});

function candidate(row, drawn, taken, pick) {
  const text = visible(textOf(row.id)), isCut = row.kept === 0, isDrawn = row.id === drawn;
  const marks = [isDrawn ? "drawn" : null, row.id === taken && !isDrawn ? "taken" : null].filter(Boolean);
  const said = [...COLUMNS.map(([name, label]) => `${label} ${percent(row[name])}`), `luck ${fixed(row.luck ?? NaN)}`];
  const name = el("span", { class: "name" }, el("span", { class: "token-text" }, text),
    ...marks.map((mark) => el("em", { class: mark }, mark)));
  return el("div", {
    class: `row candidate${isCut ? " cut" : ""}${isDrawn ? " is-drawn" : ""}`, role: "option", tabIndex: -1,
    title: `id ${row.id}`, "data-id": row.id, "aria-selected": String(row.id === (taken ?? drawn)),
    "aria-label": [text, ...said, ...(isCut ? ["cut"] : []), ...marks].join(", "),
    onclick: () => pick(row.id, Math.log(row.raw)),
  }, name, ...cells(row, isCut), el("span", { class: "luck" }, row.luck === null ? "–" : fixed(row.luck)));
}
