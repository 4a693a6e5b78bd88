// Beam search over the public API: each step asks for the likeliest next tokens of every beam at once.
// The rules are `octavo.gpt.beam_search`'s: a step ranks more continuations than there are beams, so that enough are
// left when some end; one that ends counts only among the first `width`; its score is its log-probability over its
// length.

import { complete, steps } from "./api.js";

const CANDIDATES = 3; // times the beams, enough for two end tokens

/** Whether a token ends a text: the server stops after it. Asked once an id. */
const ends = new Map();
async function endsText(id, prompt, signal) {
  if (!ends.has(id)) {
    const { choices } = await complete([prompt], { max_tokens: 1, temperature: 0, allowed_token_ids: [id] }, signal);
    ends.set(id, choices[0].finish_reason === "stop");
  }
  return ends.get(id);
}

/**
 * Yields the steps, each a list of kept beams, best first: {ids, logprobs, sum, parent, place, ended}; a parent is a
 * place in the step before.
 * Returns the finished texts, best first, each with its `score` and `last`: [step, place] of its node.
 */
export async function* beamSearch(prompt, width, length, mayEnd, signal) {
  const number = CANDIDATES * width;
  let running = [{ ids: [], logprobs: [], sum: 0, place: null }], finished = [];
  for (let step = 1; step <= length && running.length > 0; step++) {
    const asked = { max_tokens: 1, temperature: 0, logprobs: number, ignore_eos: true, skip_special_tokens: false };
    const { choices } = await complete(running.map(({ ids }) => [...prompt, ...ids]), asked, signal);
    const found = await Promise.all(choices.sort((a, b) => a.index - b.index).map(steps));
    const ranked = found
      .flatMap(([{ top }], i) => top.slice(0, number).map(([id, logprob]) => extend(running[i], id, logprob)))
      .sort((a, b) => b.sum - a.sum).slice(0, number);
    for (const beam of ranked) {
      const id = beam.ids.at(-1);
      beam.ended = step === length || (mayEnd(id) && (await endsText(id, prompt, signal)));
    }
    const done = ranked.slice(0, width).filter(({ ended }) => ended);
    const going = ranked.filter(({ ended }) => !ended).slice(0, width);
    const nodes = [...done, ...going].sort((a, b) => b.sum - a.sum);
    nodes.forEach((beam, place) => { beam.place = place; });
    yield nodes;
    const scored = done.map((beam) => ({ ...beam, score: beam.sum / step, last: [step - 1, beam.place] }));
    finished = [...finished, ...scored].sort((a, b) => b.score - a.score).slice(0, width);
    running = going;
    if (finished.length === width && !(going[0]?.sum / step > finished.at(-1).score)) break;
  }
  return finished;
}

const extend = (beam, id, logprob) => ({
  ids: [...beam.ids, id], logprobs: [...beam.logprobs, logprob], sum: beam.sum + logprob, parent: beam.place,
  ended: false,
});
