// A conversation, streamed.

import { events } from "./api.js";
import { el, facts, find } from "./dom.js";
import { knobs } from "./knobs.js";
import { measure, numbersOf } from "./numbers.js";
import { guarded, newTask } from "./tasks.js";

const LONGEST = 512; // tokens of an answer
const messages = [];

const task = newTask((running) => { find("stop-chat").disabled = !running; });

export function setUpChat() {
  find("ask").addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    await ask();
  }));
  find("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      find("ask").requestSubmit();
    }
  });
  find("stop-chat").addEventListener("click", () => task.stop());
  find("new-chat").addEventListener("click", () => {
    task.stop();
    messages.length = 0;
    find("messages").replaceChildren();
    facts(find("chat-numbers"), []);
    find("question").focus();
  });
}

async function ask() {
  const content = find("question").value.trim();
  if (content === "" || task.running) return;
  find("question").value = "";
  messages.push({ role: "user", content });
  show("user", content);
  const answer = { role: "assistant", content: "" }, shown = show("assistant", "");
  const clock = measure();
  let usage = null, finish = null;
  await withdrawing(content, () => task.run(async (signal) => {
    const body = { messages: [...messages], ...knobs(), max_tokens: LONGEST };
    for await (const event of events("v1/chat/completions", body, signal)) {
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      finish = choice?.finish_reason ?? finish;
      if (!choice?.delta?.content) continue;
      clock.token();
      answer.content += choice.delta.content;
      shown.textContent = answer.content;
      shown.scrollIntoView({ block: "end" });
    }
  }));
  messages.push(answer);
  const pairs = numbersOf([], clock.end({ usage, finish })).slice(3);
  facts(find("chat-numbers"), [["tokens", usage ? String(usage.completion_tokens) : null], ...pairs]);
}

/** Do the work; where it fails, the question is a draft again. */
async function withdrawing(content, work) {
  try {
    await work();
  } catch (error) {
    messages.pop();
    find("messages").lastChild.remove();
    find("messages").lastChild.remove();
    find("question").value = content;
    throw error;
  }
}

function show(role, content) {
  const text = el("p", {}, content);
  const name = el("h3", {}, role === "user" ? "You" : "Model");
  find("messages").append(el("div", { class: `message ${role}` }, name, text));
  text.scrollIntoView({ block: "end" });
  return text;
}
