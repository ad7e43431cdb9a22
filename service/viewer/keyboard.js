/** Keys: what can be done without a pointer. */

import { find } from "./dom.js";

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Whether somebody is typing, or chooses from a list: their keys are theirs. */
const isTaken = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName) && element.type !== "checkbox";

/** Do what keys say; all that they say is in the list of shortcuts. */
export function listenToKeys({ ask, moveHead, head, paint, chooseAxis, state }) {
  const deeds = {
    "+": () => head.matrix.zoom(1.5),
    "=": () => head.matrix.zoom(1.5),
    "-": () => head.matrix.zoom(1 / 1.5),
    0: () => head.matrix.fit(),
    s: () => paint({ hidesFirst: !state.hidesFirst }),
    t: () => chooseAxis(state.by === "query" ? "key" : "query"),
    "/": () => find("sought").focus(),
    "?": () => find("shortcuts").showModal(),
    Escape: () => head.lock(null),
  };
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
      return;
    }
    if (event.key === "Escape" && event.target === find("sought")) find("sought").blur();
    if (event.ctrlKey || event.metaKey || event.altKey || isTaken(event.target) || find("shortcuts").open) return;
    const isShown = head.capture !== undefined, arrow = ARROWS[event.key], deed = deeds[event.key];
    if (!(isShown && (arrow || deed)) && event.key !== "?") return;
    event.preventDefault();
    if (arrow && event.shiftKey) head.step(...arrow);
    else if (arrow) moveHead(...arrow);
    else deed();
  });
}
