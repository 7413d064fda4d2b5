// The heat map: shows the table row of the token under the pointer, tapped, or reached by the arrow keys.
// Without this script a token is a link to its row.
"use strict";

for (const map of document.querySelectorAll("[data-heat]")) {
  const tokens = [...map.querySelectorAll(".token")];
  const detail = map.querySelector("[data-heat-detail]");
  const table = map.querySelector("[data-heat-table]");
  if (!tokens.length || !detail || !table) continue;
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent);
  let held = null;

  const make = (name, ...children) => {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  };

  const describe = (index) => {
    const row = table.querySelector(`[data-row="${index}"]`);
    const facts = make("dl");
    facts.className = "facts";
    [...row.cells].forEach((cell, place) => {
      const copy = make("dd");
      copy.append(...[...cell.childNodes].map((node) => node.cloneNode(true)));
      const name = row.cells.length === names.length || place === 0 ? names[place] : place === 1 ? "Policy" : names.at(-1);
      facts.append(make("dt", name), copy);
    });
    return facts;
  };

  const show = (token) => {
    if (held === token) return;
    held?.classList.remove("held");
    held = token;
    token.classList.add("held");
    detail.replaceChildren(describe(token.dataset.index));
  };

  // One stop of the Tab key for the whole map; arrow keys move on from there.
  let current = tokens[0];
  const reach = (token) => {
    current = token;
    for (const other of tokens) other.tabIndex = other === token ? 0 : -1;
  };
  reach(current);

  const besideLine = (from, step) => {
    const here = from.getBoundingClientRect();
    let best = null;
    for (const token of tokens) {
      const box = token.getBoundingClientRect();
      const lines = Math.round((box.top - here.top) / here.height);
      if (Math.sign(lines) !== step) continue;
      const far = Math.abs(lines) * 10000 + Math.abs(box.left - here.left);
      if (!best || far < best.far) best = { token, far };
    }
    return best?.token;
  };

  const target = (key) => {
    const place = tokens.indexOf(current);
    return {
      ArrowRight: () => tokens[place + 1],
      ArrowLeft: () => tokens[place - 1],
      ArrowDown: () => besideLine(current, 1),
      ArrowUp: () => besideLine(current, -1),
      Home: () => tokens[0],
      End: () => tokens.at(-1),
    }[key];
  };

  // On the whole map: the skip link leads here, and its first arrow key enters the map at the current token.
  map.querySelector(".tokens").addEventListener("keydown", (event) => {
    const find = target(event.key);
    if (!find) return;
    const isInside = event.target !== event.currentTarget;
    const to = isInside || event.key === "Home" || event.key === "End" ? find() : current;
    if (!to) return;
    event.preventDefault();
    to.focus();
  });

  for (const token of tokens) {
    token.addEventListener("mouseenter", () => show(token));
    token.addEventListener("focus", () => {
      reach(token);
      show(token);
    });
    token.addEventListener("click", (event) => {
      event.preventDefault();
      token.focus();
      show(token);
    });
  }

  const choice = map.querySelector("[data-heat-switch]");
  if (choice) {
    choice.hidden = false;
    choice.addEventListener("click", (event) => {
      const by = event.target.closest("[data-by]")?.dataset.by;
      if (!by) return;
      for (const button of choice.querySelectorAll("[data-by]")) button.setAttribute("aria-pressed", String(button.dataset.by === by));
      for (const end of map.querySelectorAll("[data-scale]")) end.hidden = end.dataset.scale !== by;
      for (const token of tokens) {
        const heat = by === "cost" ? token.dataset.cost : token.dataset.toGo;
        token.className = token.className.replace(/heat-\d/, `heat-${heat}`);
      }
    });
  }
}
