// One thing at a time, that can be stopped; what goes wrong is one line on the page.

import { find } from "./dom.js";

export function say(message) {
  find("alert").hidden = message === "";
  find("alert").textContent = message;
}

/** `action`, with its error told; a stop is no error. A refusal for want of the key asks for it. */
export const guarded = (action) => async (...values) => {
  try {
    say("");
    return await action(...values);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) find("key-form").hidden = false;
    say(error.message);
  }
};

/** A task that a new run, or `stop`, ends; `changed` hears whether one is running. */
export function newTask(changed) {
  let current = null;
  return {
    get running() { return current !== null; },
    stop: () => current?.abort(),
    async run(work) {
      current?.abort();
      const mine = (current = new AbortController());
      changed(true);
      try {
        await work(mine.signal);
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      } finally {
        if (current === mine) {
          current = null;
          changed(false);
        }
      }
    },
  };
}
