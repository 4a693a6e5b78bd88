// Numbers of a text and of the run that wrote it.

import { fixed } from "./dom.js";

/** A clock of one run: call `token` for each, and `end` with what the server said last. */
export function measure() {
  const start = performance.now();
  let first = 0, latest = 0, count = 0;
  return {
    token() {
      latest = performance.now();
      first ||= latest;
      count += 1;
    },
    end({ usage, finish }) {
      return {
        rate: count > 1 ? (1000 * (count - 1)) / (latest - first) : NaN,
        wait: first - start, count, finish,
        cached: usage?.prompt_tokens_details?.cached_tokens ?? null, prompt: usage?.prompt_tokens ?? null,
      };
    },
  };
}

/** Pairs for `facts`: of the tokens whose log-probability is known, and of the last run if there was one. */
export function numbersOf(tokens, run) {
  const known = tokens.map(({ logprob }) => logprob).filter((logprob) => Number.isFinite(logprob));
  const sum = known.reduce((total, logprob) => total + logprob, 0);
  return [
    ["tokens", String(tokens.length)],
    ["log-probability", known.length ? fixed(sum) : null],
    ["perplexity", known.length ? fixed(Math.exp(-sum / known.length)) : null],
    ["tokens/s", run && Number.isFinite(run.rate) ? fixed(run.rate, 1) : null],
    ["first token", run ? `${fixed(run.wait, 0)} ms` : null],
    ["from the cache", run?.prompt ? `${run.cached ?? 0} of ${run.prompt}` : null],
    ["ended by", run?.finish ?? null],
  ];
}
