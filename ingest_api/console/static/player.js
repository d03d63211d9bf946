/* The player of an episode: the same steps that its links and its form open, without loading the page anew. */
"use strict";
(() => {
  const form = document.getElementById("player");
  if (!form) return;
  const byId = (id) => document.getElementById(id);
  const [range, at, play, status, shown] = ["step", "at", "play", "player-status", "shown"].map(byId);
  const offsets = form.dataset.offsets.split(",").map(Number);
  const xs = form.dataset.xs.split(",");
  const last = offsets.length - 1;
  const longestMs = 2000, shortestMs = 80;
  let current = Number(range.value), wanted = current, busy = false, playing = false, timer = 0;

  byId("go").hidden = true;
  play.hidden = byId("pace").hidden = false;

  const address = (step) => `${form.dataset.part}&step=${step}`;
  const mark = (step) => {
    range.value = step;
    at.textContent = `${step} of ${last}`;
    range.setAttribute("aria-valuetext", `step ${step} of ${last}`);
    byId("previous").href = address(Math.max(step - 1, 0));
    byId("next").href = address(Math.min(step + 1, last));
    document.querySelectorAll(".marker").forEach((line) => { line.setAttribute("x1", xs[step]); line.setAttribute("x2", xs[step]); });
  };
  const load = async (step) => {
    const answer = await fetch(address(step), { headers: { "hx-request": "true", "hx-current-url": location.href } });
    const login = answer.headers.get("hx-redirect");
    if (login) { location.assign(login); return; }
    if (!answer.ok) throw new Error(String(answer.status));
    const part = new DOMParser().parseFromString(await answer.text(), "text/html");
    // A frame takes the place of the last one once it is there: nothing flickers.
    await Promise.allSettled([...part.images].map((each) => { const image = new Image(); image.src = each.src; return image.decode(); }));
    shown.replaceChildren(...part.body.childNodes);
    current = step;
    history.replaceState(null, "", address(step));
  };
  /* One load at a time; of the steps asked for meanwhile, the last one counts. */
  const go = async (step) => {
    wanted = Math.min(Math.max(step, 0), last);
    mark(wanted);
    if (busy) return;
    busy = true;
    try {
      while (current !== wanted) await load(wanted);
      status.textContent = "";
    } catch (error) {
      stop();
      wanted = current;
      mark(current);
      status.textContent = "This step did not load: try again.";
    } finally {
      busy = false;
    }
  };
  const stop = () => {
    playing = false;
    clearTimeout(timer);
    play.textContent = "Play";
    at.setAttribute("aria-live", "polite");
  };
  const tick = async () => {
    if (!playing) return;
    if (current >= last) { stop(); return; }
    const gap = (offsets[current + 1] - offsets[current]) / Number(byId("speed").value);
    timer = setTimeout(async () => { await go(current + 1); tick(); }, Math.min(Math.max(gap, shortestMs), longestMs));
  };
  play.addEventListener("click", async () => {
    if (playing) { stop(); return; }
    playing = true;
    play.textContent = "Pause";
    // A screen reader is not told every step of a film.
    at.setAttribute("aria-live", "off");
    if (current >= last) await go(0);
    tick();
  });
  range.addEventListener("input", () => { stop(); go(Number(range.value)); });
  [["previous", -1], ["next", 1]].forEach(([id, by]) => byId(id).addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    stop();
    go(wanted + by);
  }));
  form.addEventListener("submit", (event) => { event.preventDefault(); go(Number(range.value)); });
})();
