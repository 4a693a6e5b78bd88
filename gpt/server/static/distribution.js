// What may come next: each token's probability in the model, after the temperature, and after the filters.

import { complete, steps } from "./api.js";
import { luck } from "./noise.js";

export const SHOWN = 20; // tokens that the server names of each step

/**
 * Ask for one step in three ways: as the model has it, with the temperature alone, and with every filter. The prefix
 * is cached after the first, and the same seed draws the same token, so this is the step that was or will be taken.
 * Returns {rows: [{id, raw, tempered, kept, luck}], others: {raw, tempered, kept}, drawn, usage}; a column and its
 * others sum to 1. The drawn token has the largest ln(kept) + luck; luck is null at temperature 0.
 */
export async function distribution(prefix, knobs, signal) {
  const { temperature, seed } = knobs;
  const processed = { logprobs_mode: "processed_logprobs" };
  const asked = [{ ...knobs }, { temperature, seed, ...processed }, { ...knobs, ...processed }];
  const one = { max_tokens: 1, logprobs: SHOWN, ignore_eos: true, skip_special_tokens: false };
  if (temperature === 0) asked.length = 1; // nothing is drawn: all is the likeliest token's
  const answers = await Promise.all(asked.map((options) => complete([prefix], { ...options, ...one }, signal)));
  const first = async ({ choices }) => (await steps(choices[0]))[0];
  const [raw, tempered = sure(raw), kept = tempered] = await Promise.all(answers.map(first));
  const { rows, ...rest } = table(raw, tempered, kept);
  const withLuck = rows.map((row) => ({ ...row, luck: temperature > 0 ? luck(seed, prefix.length, row.id) : null }));
  return { ...rest, rows: withLuck, usage: answers[0].usage };
}

const sure = ({ id }) => ({ id, logprob: 0, top: [[id, 0]] });

/** Join the three columns by id, in the model's order; what the server did not name of a column is with the others. */
export function table(raw, tempered, kept) {
  const columns = { raw, tempered, kept };
  const maps = Object.entries(columns).map(([name, step]) => [name, new Map([[step.id, step.logprob], ...step.top])]);
  const ids = [...new Set([...raw.top.map(([id]) => id), raw.id])];
  const rows = ids.map((id) => ({
    id, ...Object.fromEntries(maps.map(([name, logprobs]) => [name, Math.exp(logprobs.get(id) ?? -Infinity)])),
  }));
  const rest = (name) => Math.max(0, 1 - rows.reduce((sum, row) => sum + row[name], 0));
  return { rows, others: Object.fromEntries(Object.keys(columns).map((name) => [name, rest(name)])), drawn: raw.id };
}
