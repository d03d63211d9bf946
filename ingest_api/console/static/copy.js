/* A key that is shown once, into the clipboard by one press where the browser lets us. */
"use strict";
(() => {
  const [made, copy, copied] = ["made", "copy", "copied"].map((id) => document.getElementById(id));
  if (!made) return;
  made.addEventListener("focus", () => made.select());
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    made.select();
    try {
      await navigator.clipboard.writeText(made.value);
      copied.textContent = "Copied.";
    } catch {
      copied.textContent = "Press Ctrl+C: it is selected.";
    }
  });
})();
