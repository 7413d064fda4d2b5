// Every page: a piece that refreshes itself shows when it is no longer up to date.
"use strict";

(() => {
  const stale = document.getElementById("stale");
  if (!stale) return;
  let since = new Date();
  document.body.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.elt.matches("[data-live]")) return;
    if (event.detail.successful) since = new Date();
    const words = event.detail.successful ? "" : `Not up to date since ${since.toLocaleTimeString()}: ${
      event.detail.xhr.status ? "the server could not answer" : "the server cannot be reached"}. Retrying.`;
    if (stale.textContent !== words) stale.textContent = words;
    stale.hidden = !words;
    document.documentElement.toggleAttribute("data-stale", Boolean(words));
  });
})();
