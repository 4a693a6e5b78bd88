// The server's public API, and nothing else: OpenAI's endpoints with vLLM's extra fields.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let model = "";

export async function loadModel() {
  const { data } = await getJson("v1/models");
  model = data[0].id;
  return data[0];
}

const headers = () => {
  const key = sessionStorage.getItem("octavo-key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

async function send(path, init) {
  const answer = await fetch(path, { headers: headers(), ...init });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, body.error?.message ?? `${path}: ${answer.status} ${answer.statusText}`);
}

/** Wait while the server says that its model is being loaded. */
export async function untilLoaded() {
  while ((await fetch("health")).status === 503) await new Promise((resolve) => setTimeout(resolve, 500));
}

const getJson = async (path) => (await send(path, {})).json();

const post = (path, body, signal) =>
  send(path, { method: "POST", body: JSON.stringify({ model, ...body }), signal });

export const postJson = async (path, body, signal) => (await post(path, body, signal)).json();

/** The events of a streamed answer, each parsed. */
export async function* events(path, body, signal) {
  const answer = await post(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.code, event.error.message);
      yield event;
    }
  }
}

// Tokens come as ids, since two ids may have one text; their texts are asked for once each.
const texts = new Map();
const idOf = (name) => Number(String(name).replace("token_id:", ""));

export const textOf = (id) => texts.get(id) ?? "";

export async function loadTexts(ids) {
  const unknown = [...new Set(ids)].filter((id) => !texts.has(id));
  if (unknown.length === 0) return;
  const { token_strs } = await postJson("detokenize", { tokens: unknown, return_token_strs: true });
  unknown.forEach((id, i) => texts.set(id, token_strs[i]));
}

export const tokenize = async (prompt, signal) => (await postJson("tokenize", { prompt }, signal)).tokens;

/** Steps of a choice: `{id, logprob, top: [[id, logprob], …] best first}`; the texts of all its ids are loaded. */
export async function steps(choice) {
  const { tokens = [], token_logprobs = [], top_logprobs = [] } = choice.logprobs ?? {};
  const found = tokens.map((name, i) => ({
    id: idOf(name),
    logprob: token_logprobs[i],
    top: Object.entries(top_logprobs?.[i] ?? {}).map(([each, logprob]) => [idOf(each), logprob])
      .sort((a, b) => b[1] - a[1]),
  }));
  await loadTexts(found.flatMap(({ id, top }) => [id, ...top.map(([each]) => each)]));
  return found;
}

/** One completion a prompt, of lists of token ids, not streamed. */
export async function complete(prompt, options, signal) {
  return postJson("v1/completions", { prompt, return_tokens_as_token_ids: true, ...options }, signal);
}

/** Steps as they are written; returns `{usage, finish}`. */
export async function* write(prompt, options, signal) {
  let usage = null, finish = null;
  const body = { prompt, return_tokens_as_token_ids: true, ...options };
  for await (const event of events("v1/completions", body, signal)) {
    usage = event.usage ?? usage;
    for (const choice of event.choices) {
      finish = choice.finish_reason ?? finish;
      yield* await steps(choice);
    }
  }
  return { usage, finish };
}
