// A text as its tokens, each box shaded by how surprising the token was.

import { el, inline, percent, visible } from "./dom.js";
import { textOf } from "./api.js";

const STRONGEST = 10; // bits of surprise at which the shade is full

/** 0 for a certain token, 1 for one of probability 2^-10 and less. */
export const surprise = (logprob) => Math.min(1, Math.max(0, -logprob / Math.LN2 / STRONGEST));

/** A token's box; `origin` is prompt, drawn or picked. A space that it begins with stays with it at a line's end. */
export function tokenBox({ id, logprob, origin }, props = {}) {
  const text = textOf(id);
  const known = logprob !== null && logprob !== undefined;
  const title = `${visible(text)}  id ${id}${known ? `, probability ${percent(Math.exp(logprob))}` : ""}`;
  const shown = inline(text).replace(/^ /, "\u00a0");
  const box = el("span", { class: `token ${origin}`, title, "data-id": id, ...props }, shown);
  if (known) box.style.setProperty("--surprise", surprise(logprob));
  return box;
}

/** The boxes, with a place for a line to break before those that begin with a space. */
export const withBreaks = (boxes) =>
  boxes.flatMap((box) => (box.textContent.startsWith("\u00a0") ? [document.createElement("wbr"), box] : [box]));
