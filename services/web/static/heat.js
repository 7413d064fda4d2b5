// The heat map: a token under the pointer, tapped, or reached by the arrow keys shows its row of the table beside it.
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
      const name = row.cells.length === names.length || place === 0 ? names[place] : place === 1 ? "Chosen" : names.at(-1);
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

  // One stop of the Tab key for the whole map; arrow keys go on from there.
  const reach = (token) => {
    for (const other of tokens) other.tabIndex = other === token ? 0 : -1;
  };
  reach(tokens[0]);

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

  tokens.forEach((token, place) => {
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
    token.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: () => tokens[place + 1],
        ArrowLeft: () => tokens[place - 1],
        ArrowDown: () => besideLine(token, 1),
        ArrowUp: () => besideLine(token, -1),
        Home: () => tokens[0],
        End: () => tokens.at(-1),
      }[event.key]?.();
      if (!to) return;
      event.preventDefault();
      to.focus();
    });
  });

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
