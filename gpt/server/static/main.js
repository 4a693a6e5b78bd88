// Tabs, theme, the model's name: what all views share.

import { loadModel, untilLoaded } from "./api.js";
import { setUpChat } from "./chat.js";
import { setUpCompare } from "./compare.js";
import { find } from "./dom.js";
import { arrowKeys } from "./keys.js";
import { setUpKnobs } from "./knobs.js";
import { guarded } from "./tasks.js";
import { readPrompt, redraw, setUpWrite } from "./write.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(name) {
  for (const tab of tabs) {
    const isShown = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    find(tab.getAttribute("aria-controls")).hidden = !isShown;
  }
  document.body.dataset.view = name;
}

function setUpTheme() {
  const kept = localStorage.getItem("octavo-theme");
  const isDark = () => document.documentElement.dataset.theme === "dark";
  const set = (theme) => { document.documentElement.dataset.theme = theme; };
  set(kept ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  find("theme").addEventListener("click", () => {
    set(isDark() ? "light" : "dark");
    localStorage.setItem("octavo-theme", document.documentElement.dataset.theme);
  });
}

const start = guarded(async () => {
  await untilLoaded();
  const { id, max_model_len: longest } = await loadModel();
  find("model").textContent = longest ? `${id}, ${longest.toLocaleString("en")} tokens` : id;
  await readPrompt();
});

setUpTheme();
setUpKnobs(redraw);
setUpWrite();
setUpCompare();
setUpChat();
for (const tab of tabs) tab.addEventListener("click", () => show(tab.id.slice("tab-".length)));
arrowKeys(find("tabs"), "[role=tab]", ["ArrowLeft", "ArrowRight"], (tab) => tab.click());
show("write");
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("octavo-key", find("key").value);
  find("key-form").hidden = true;
  start();
});
start();
