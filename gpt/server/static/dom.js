// The page's only way to make elements. Text enters as text nodes alone, so no model can write markup.

export const find = (id) => document.getElementById(id);

/** An element: props are properties of it, but for `class`, `aria-…`, `data-…` and `role`, which are attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (/^(class|role|aria-|data-)/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const UNSEEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g;
const escaped = (character) => "\\x" + character.charCodeAt(0).toString(16).padStart(2, "0");

/** A token's text within a text: line ends are shown and kept, control characters are shown. */
export const inline = (text) => text.replace(UNSEEN, escaped).replace(/\n/g, "⏎\n") || "∅";

/** A token's text where it stands alone: on one line, spaces at its ends are shown too. */
export const visible = (text) =>
  inline(text).replace(/⏎\n/g, "⏎").replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));

export const percent = (p) => (p >= 0.9995 ? "100" : p >= 0.0005 ? (100 * p).toFixed(1) : p > 0 ? "<0.1" : "0") + " %";
export const fixed = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : "–");

/** Fill a <dl> of name and value pairs; a value of null leaves its pair out. */
export function facts(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null);
  list.replaceChildren(...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** Run `action` after `wait` ms without another call. */
export function debounced(action, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(action, wait, ...values);
  };
}
