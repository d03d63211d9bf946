/* Around the parts of a page that renew themselves: what a person did to them stays, and what stops is said. */
"use strict";
(() => {
  const kept = new Map();
  const keptOf = (part) => {
    const state = { scroll: [], open: [] };
    part.querySelectorAll("[data-scroll]").forEach((e) => e.id && state.scroll.push([e.id, e.scrollLeft]));
    part.querySelectorAll("details[id]").forEach((e) => state.open.push([e.id, e.open]));
    return state;
  };
  /* Between press and release a renewal would take the link from under the pointer, and its click with it. */
  let pressed = false;
  document.addEventListener("pointerdown", (event) => { pressed = event.button === 0; }, true);
  ["pointerup", "pointercancel", "contextmenu", "blur"].forEach((name) => window.addEventListener(name, () => { pressed = false; }, true));
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (pressed) event.detail.shouldSwap = false;
    else kept.set(event.detail.target, keptOf(event.detail.target));
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    const state = kept.get(event.detail.target);
    kept.delete(event.detail.target);
    if (!state) return;
    state.scroll.forEach(([id, left]) => { const e = document.getElementById(id); if (e) e.scrollLeft = left; });
    state.open.forEach(([id, open]) => { const e = document.getElementById(id); if (e) e.open = open; });
  });
  /* Told once when it stops and once when it goes on, not at every renewal. */
  const say = (event, broken) => {
    const status = document.getElementById("live-status");
    if (!status || (status.dataset.broken === "1") === broken) return;
    status.dataset.broken = broken ? "1" : "0";
    status.textContent = broken ? "Not renewed: the API does not answer. What you see is old." : "Renewed again.";
  };
  document.addEventListener("htmx:sendError", (event) => say(event, true));
  document.addEventListener("htmx:responseError", (event) => say(event, event.detail.xhr.status >= 500));
  document.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.successful) say(event, false); });
})();
