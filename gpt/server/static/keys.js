// Keyboard: one element of a list can be tabbed to, arrows move from there, Enter and Space choose.

const moves = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 };

/** `keys`: which arrows move within the list; `moved` hears of the element that has the focus then. */
export function arrowKeys(list, selector, keys, moved = () => {}) {
  list.addEventListener("keydown", (event) => {
    const all = [...list.querySelectorAll(selector)];
    const at = all.indexOf(document.activeElement);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      all[at].click();
      return;
    }
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1
      : keys.includes(event.key) ? at + moves[event.key] : -1;
    if (to < 0 || to >= all.length) return;
    event.preventDefault();
    all[at].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
    moved(all[to]);
  });
}
