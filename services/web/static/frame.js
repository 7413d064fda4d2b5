// Every page: the strip of links begins where one is, and a piece that goes stale says so.
// Without this script nothing refreshes itself either.
"use strict";

(() => {
  const links = document.querySelector(".links");
  const here = links?.querySelector("[aria-current=page]");
  if (here) {
    const [strip, link] = [links.getBoundingClientRect(), here.getBoundingClientRect()];
    links.scrollLeft += link.left + link.width / 2 - (strip.left + strip.width / 2);
  }

  const stale = document.getElementById("stale");
  if (!stale) return;
  let since = new Date();
  document.body.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.elt.matches("[data-live]")) return;
    if (event.detail.successful) since = new Date();
    const words = event.detail.successful ? "" : `Not up to date since ${since.toLocaleTimeString()}: ${
      event.detail.xhr.status ? "the server could not answer" : "the server cannot be reached"}. It goes on by itself.`;
    if (stale.textContent !== words) stale.textContent = words;
    stale.hidden = !words;
    document.documentElement.toggleAttribute("data-stale", Boolean(words));
  });
})();
